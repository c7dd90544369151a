"""Wordings of a name of a vehicle or a pollutant, as tables, forms and people write it: what is said stays the same, its writing does not.

    轿车  ->  车型：轿车    轿 车    国六轿车(柴油)    轿轿车    vehicle type: 轿车    二手轿车是什么类型
    sedan ->  SEDAN        ｓｅｄａｎ   old sedan        sedna   车型: Sedan         sedan (diesel)

A slip of one letter never touches what tells classes apart: digits, numerals, 长 and 短. Knows no classes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from .draws import pick

PLAIN = 0.25  # share of the wordings that put nothing around the name
SLIPS = 0.12  # share with a slip of one letter, of names that are long enough for one
WRITTEN = 0.45  # share in other case, width or blanks

ATTRIBUTES = {
    "vehicle": {
        "zh": ("国五", "国六", "新款", "老旧", "二手", "白色", "本地", "外地", "国产", "进口", "自有", "租赁", "在用", "报废", "2019款"),
        "en": ("old ", "new ", "used ", "white ", "Euro 6 ", "Euro V ", "local-plate ", "leased ", "2021 ", "in-use "),
    },
    "pollutant": {
        "zh": ("实测", "年均", "尾气中的", "道路", "机动车", "小时", "累计", "模拟", "冷启动", "热运行", "监测点", "全年"),
        "en": ("measured ", "exhaust-pipe ", "annual ", "hourly ", "running ", "cold-start ", "modelled ", "road ", "tailpipe ", "daily "),
    },
}  # fmt: skip
FRAMES = {
    "vehicle": (
        "车型：{}", "车辆类型:{}", "类型 {}", "vehicle type: {}", "type={}", "车辆：{}", "{}是什么类型", "{}属于哪一类", "{}（柴油）",
        "{}(汽油)", "{}(柴油)", "{} (diesel)", "{} (gasoline)", "{}-新能源", "{}[混动]", "“{}”怎么归类", "请归一：{}", "{} 3辆", "{}/辆",
        "{}（国四）", "{} x2", "这是{}", "登记为{}", "名称 {}", "{}，车龄5年", "No.7 {}", "class: {}", "{}车型",
    ),
    "pollutant": (
        "污染物：{}", "污染物:{}", "pollutant: {}", "{}排放", "{}排放量", "{}浓度", "{}排放因子", "{} emissions", "{} emission factor",
        "{}（g/km）", "{}(mg/m3)", "{} [kg]", "{} ppm", "{}是什么污染物", "{}属于哪一种", "指标：{}", "{}总量", "{}限值", "{} level",
        "请归一：{}", "“{}”是指什么", "{}监测值", "项目 {}", "species={}", "{}(吨)", "{}_t",
    ),
}  # fmt: skip
"""What is written around a name, `{}`. Nothing here says anything of the class."""

KEPT = re.compile(r"[^A-Za-z一-鿿]|[一二三长短]")
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def wordings(name: str, kind: str, rng: random.Random) -> Iterator[str]:
    """Without end, and some of them several times; the first is the name itself. kind: of ATTRIBUTES and FRAMES"""
    yield name
    while True:
        text = slip(name, rng) if rng.random() < SLIPS else name
        if rng.random() < WRITTEN:
            text = written(text, rng)
        if rng.random() >= PLAIN:
            language = "en" if name.isascii() and rng.random() < 0.8 else "zh"
            attribute = pick(rng, ATTRIBUTES[kind][language]) if rng.random() < 0.5 else ""
            frame = pick(rng, FRAMES[kind]) if not attribute or rng.random() < 0.5 else "{}"
            text = frame.format(attribute + text)
        yield text


def slip(name: str, rng: random.Random) -> str:
    """Two neighbouring letters exchanged or one doubled, of a name of at least seven Latin letters or four characters, else the name."""
    if len(name) < (7 if name.isascii() else 4):
        return name
    at = int(rng.random() * (len(name) - 1))
    one, other = name[at], name[at + 1]
    if KEPT.search(one + other):
        return name
    return name[:at] + (other + one if rng.random() < 0.5 else one + one + other) + name[at + 2 :]


def written(text: str, rng: random.Random) -> str:
    """The same letters in other case, width, blanks or marks."""
    return pick(rng, (str.upper, str.title, str.lower, full_width, spread, with_marks, subscripts))(text)


def full_width(text: str) -> str:
    """Latin letters, digits and marks as wide as Chinese characters: `ＳＵＶ`."""
    return text.translate(FULL_WIDTH)


def subscripts(text: str) -> str:
    """The digits of formulas below the line: `CO₂`; of names that are none, as they are."""
    return text.translate(SUBSCRIPTS) if re.search(r"[A-Z][A-Za-z]?\d", text) else text


def spread(text: str) -> str:
    """Blanks at the ends and between Chinese characters."""
    return f" {re.sub(r'(?<=[一-鿿])(?=[一-鿿])', ' ', text)}  "


def with_marks(text: str) -> str:
    """Hyphens for blanks, else brackets around it."""
    return text.replace(" ", "_") if " " in text else f"【{text}】"
