"""The questions that `stylora evaluate --three-way` asks where neither a stage nor a recipe says what is asked.

Ten each of rewriting, going on and describing, in plain modern Chinese. None of them asks for a style, so what an answer sounds like is the
model's own doing. Knows nothing but these texts.
"""

from __future__ import annotations

INSTRUCTIONS = {
    "rewrite": (
        "换一种说法：他走进屋里，把湿了的外衣挂在门后。", "把这句话写得更生动：天黑了，路上一个人也没有。",
        "换一种说法：两个人为了一件小事吵了起来。", "把这句话写得更生动：老人坐在门口，等儿子回家。",
        "换一种说法：河水涨了，船过不去，大家只好等着。", "把这句话写得更生动：她听见有人敲门，没有出声。",
        "换一种说法：他赶了一天的路，又累又饿。", "把这句话写得更生动：孩子们看见下雪了，都跑了出来。",
        "换一种说法：店里的伙计把客人让到楼上坐下。", "把这句话写得更生动：他认出了那个多年不见的朋友。",
    ),
    "continue": (
        "接着写一段：他推开门，屋里没有灯，", "接着写一段：天还没亮，村口就来了一个人，", "接着写一段：她把信看完，放在桌上，",
        "接着写一段：雨越下越大，桥上的人都散了，", "接着写一段：老人笑了笑，从怀里拿出一样东西，",
        "接着写一段：走到半山腰，前面忽然没有路了，",
        "接着写一段：大家正在吃饭，外面有人喊了一声，", "接着写一段：他回头一看，后面跟着一个孩子，",
        "接着写一段：船到了对岸，岸上站着两个人，", "接着写一段：那天夜里风很大，他睡不着，",
    ),
    "describe": (
        "写一写：雨后的小巷", "写一写：赶集的早晨", "写一写：深夜的渡口", "写一写：一位做饭的师傅", "写一写：雪地里的足迹",
        "写一写：山里的一间旧屋", "写一写：两个人下棋", "写一写：秋天的田野", "写一写：一匹跑累了的马", "写一写：客人离开以后的院子",
    ),
}  # fmt: skip
"""kind -> questions"""
