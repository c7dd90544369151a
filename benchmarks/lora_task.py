"""A small task to fine-tune on: a word in some wording -> the class it belongs to, as conversations with one system prompt.

    8 classes x 12 words x 9 wordings = 864 rows
    train 560        10 words of each class, 7 wordings of each
    validation 80    the same words, another wording: chooses the learning rate
    seen 80          the same words, yet another wording
    unseen 144       2 words of each class, all wordings: only what the base knows of words can help

Words are told by what a base has read of them; wordings only vary the row. Which wording of a word is held out is drawn by a fixed seed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CLASSES = {
    "水果": "苹果 梨 葡萄 香蕉 橘子 桃子 西瓜 草莓 樱桃 柠檬 石榴 杏子",
    "动物": "老虎 兔子 猴子 大象 狐狸 山羊 骆驼 狮子 松鼠 豹子 黄牛 野猪",
    "职业": "医生 教师 律师 厨师 司机 护士 警察 记者 裁缝 木匠 渔夫 店员",
    "车辆": "卡车 公交车 出租车 摩托车 自行车 吉普车 面包车 救护车 消防车 拖拉机 马车 电车",
    "天气": "下雨 刮风 下雪 打雷 起雾 冰雹 霜冻 晴天 阴天 暴雨 台风 干旱",
    "乐器": "钢琴 笛子 二胡 琵琶 古筝 小提琴 唢呐 吉他 鼓 箫 大提琴 口琴",
    "颜色": "红色 绿色 蓝色 黄色 白色 黑色 紫色 灰色 粉色 橙色 棕色 金色",
    "家具": "桌子 椅子 床 衣柜 沙发 书架 板凳 茶几 屏风 鞋柜 梳妆台 箱子",
}  # fmt: skip
WORDINGS = (
    "{}", "词：{}", "请归类：{}", "{}属于哪一类？", "「{}」是什么", "把{}归到一类", "昨天说起{}，它是什么", "{}，哪一类", "请问{}算什么",
)  # fmt: skip
SYSTEM = f"把词归到一类，只写类名：{'、'.join(CLASSES)}。"
UNSEEN_WORDS = 2


def write_rows(folder: Path) -> dict[str, Path]:
    """Write the four files into a folder: `train`, `validation`, `seen`, `unseen` -> path of its JSONL."""
    rows: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "seen": [], "unseen": []}
    random = np.random.default_rng(0)
    for name, words in CLASSES.items():
        for number, word in enumerate(words.split()):
            order = random.permutation(len(WORDINGS))
            for place, wording in enumerate(order):
                side = "unseen" if number < UNSEEN_WORDS else {0: "validation", 1: "seen"}.get(place, "train")
                rows[side].append(_row(WORDINGS[wording].format(word), name))
    paths = {side: folder / f"{side}.jsonl" for side in rows}
    for side, path in paths.items():
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[side]), encoding="utf-8")
    return paths


def _row(asked: str, answer: str) -> dict[str, object]:
    turns = [("system", SYSTEM), ("user", asked), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}
