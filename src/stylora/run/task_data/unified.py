"""Rows of the task `unified`: a name of a vehicle type or a pollutant in any wording -> its standard name.

    user       [vehicle] 国六小轿车（柴油）
    assistant  Passenger Car

Every class has equally many rows in each file, and the aliases of a class equally many within one. Knows no files on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from .draws import Claims, generator
from .parts import FILES, TEST_SEEN, TEST_UNSEEN, TRAIN, VALIDATION, Row, demands, homes, in_random_order, living_in, row
from .pollutants import POLLUTANTS
from .vehicles import VEHICLES
from .wordings import wordings

CLASSES = {"vehicle": VEHICLES, "pollutant": POLLUTANTS}
ROWS = {TRAIN: 180, VALIDATION: 20, TEST_SEEN: 20, TEST_UNSEEN: 20}  # of each class

SYSTEM = f"""你是机动车排放数据的标准化助手，把用户给出的名称归一为标准名称。
[vehicle] 后面是车型，只能归为以下 13 种 MOVES 车型之一：{", ".join(VEHICLES)}。
[pollutant] 后面是污染物，只能归为以下 7 种之一：{", ".join(POLLUTANTS)}。
规则：忽略大小写、空格、标点、错字、燃料、排放标准和修饰语；只输出一个标准名称，不解释，不加标点。"""


def unified_rows(seed: int) -> dict[str, list[Row]]:
    """File -> its rows."""
    found = {(kind, label): homes(names, seed, label) for kind, classes in CLASSES.items() for label, names in classes.items()}
    claims = Claims()
    for (kind, _), at_home in found.items():
        for alias, home in at_home.items():  # a name is its own, before any other's wordings come near it
            its_own = claims.claim(f"[{kind}] {alias}", alias, home)
            assert its_own, f"{alias} stands twice"
    files: dict[str, list[Row]] = {name: [] for name in FILES}
    for (kind, label), at_home in found.items():
        worded = {alias: texts(kind, alias, seed) for alias in at_home}
        for file, home, count in demands(ROWS):
            for alias in cycled(living_in(home, at_home), count):
                text = next(text for text in worded[alias] if claims.claim(text, alias, file))
                files[file].append(row(SYSTEM, text, label, group=f"{kind}:{alias}", source=kind))
    return in_random_order(files, seed)


def texts(kind: str, alias: str, seed: int) -> Iterator[str]:
    """What a user writes of it, each once."""
    told: set[str] = set()
    for wording in wordings(alias, kind, generator(seed, "words", kind, alias)):
        text = f"[{kind}] {wording}"
        if text not in told:
            told.add(text)
            yield text


def cycled(aliases: list[str], count: int) -> Iterator[str]:
    """`count` aliases in turn."""
    return (alias for _, alias in zip(range(count), cycle(aliases), strict=False))
