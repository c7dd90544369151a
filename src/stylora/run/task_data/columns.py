"""Rows of the task `columns`: the column names of a table -> JSON of name and standard field, for the columns that mean one.

    user       [micro] ["车速(km/h)", "备注", "elapsed_time"]
    assistant  {"elapsed_time": "time_sec", "车速(km/h)": "speed_kph"}

Keys are sorted, for a model cannot guess an order that was thrown. The fields of a kind of table take turns, and so do the aliases of a
field. Aliases are parted by field and writings of an alias by file, so the columns of `test_unseen` are all new, and those of
`test_seen` are new in their writing. Knows no files on disk.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from .column_names import FIELDS, OTHERS, UNITS, share_field
from .draws import Claims, deal, generator, key, pick, shuffled
from .parts import FILES, TEST_SEEN, TEST_UNSEEN, TRAIN, VALIDATION, Row, demands, homes, in_random_order, living_in, row
from .vehicles import VEHICLES

ROWS = {
    "micro": {TRAIN: 760, VALIDATION: 80, TEST_SEEN: 80, TEST_UNSEEN: 80},
    "macro": {TRAIN: 1500, VALIDATION: 160, TEST_SEEN: 160, TEST_UNSEEN: 160},
}
MAPPED = {"micro": (1, 4), "macro": (2, 7)}  # columns of a table that mean a field: least, most
COLUMNS = (2, 8)  # of a table: least, most
OTHER = ""  # the "field" of columns that mean none

NAMED = {"zh": ("{}", "原始{}", "{}值", "{}数据", "实测{}"), "en": ("{}", "raw {}", "{} value", "{} data", "obs {}")}
SHARED = {
    "zh": ("{}占比", "{}比例", "{}百分比", "{}份额", "{}比重", "{}占总数比例", "{} pct", "{} share"),
    "en": ("{} share", "{} pct", "{} percent", "{} ratio", "{} proportion", "share of {}", "pct {}", "{} zhanbi", "{} bili"),
}
"""What is put around a name, for fields and for shares of vehicles, whose names alone would be counts."""
STYLES = ("snake", "upper", "camel", "pascal", "kebab", "title", "words")

SYSTEM = f"""你是交通数据的列名映射助手。输入是一张表的列名（JSON 数组），输出一个 JSON 对象：列名 -> 标准字段。
[micro] 单车逐秒数据的字段：{", ".join(FIELDS["micro"])}。
[macro] 路段数据的字段：{", ".join(list(FIELDS["macro"])[:4])}，以及车型占比 share_车型_pct，车型为：\
{", ".join(share_field(vehicle)[len("share_") : -len("_pct")] for vehicle in VEHICLES)}。
规则：列名照抄；每个字段最多对应一列；没有对应字段的列不输出；键按字符排序；只输出 JSON。"""


@dataclass(frozen=True, kw_only=True)
class Column:
    """name: as it stands in the table; field: what it means, OTHER for none; alias: the name it came from"""

    name: str
    field: str
    alias: str


def column_rows(seed: int) -> dict[str, list[Row]]:
    """File -> its rows."""
    files: dict[str, list[Row]] = {name: [] for name in FILES}
    for kind in FIELDS:
        writings = part_writings(kind, seed)
        for file, home, count in demands(ROWS[kind]):
            drawn = tables(kind, writings[file, home], generator(seed, "tables", kind, file, home))
            files[file] += [table_row(kind, table) for table in islice(drawn, count)]
    return in_random_order(files, seed)


def table_row(kind: str, table: list[Column]) -> Row:
    """The conversation about one table."""
    mapping = {column.name: column.field for column in table if column.field != OTHER}
    names = json.dumps([column.name for column in table], ensure_ascii=False)
    group = "+".join(sorted(column.alias for column in table if column.field != OTHER))
    answer = json.dumps(mapping, ensure_ascii=False, sort_keys=True)
    return row(SYSTEM, f"[{kind}] {names}", answer, group=f"{kind}:{group}", source=kind)


# ------------------------------------------------------------------------------------------------------------- tables

Writings = dict[str, dict[str, list[tuple[str, str]]]]
"""field -> alias -> (words, unit) that may be written of it"""


def part_writings(kind: str, seed: int) -> dict[tuple[str, str], Writings]:
    """(file, home of its aliases) -> what may stand there. A writing belongs to one alias and one file, whatever its case and marks."""
    fields = {**FIELDS[kind], OTHER: OTHERS[kind]}
    forms = own_forms(fields)
    found: dict[tuple[str, str], Writings] = {}
    for field, names in fields.items():
        at_home = homes(names, seed, f"{kind} {field}")
        owners = {alias: parted(forms[alias], home, generator(seed, "writings", kind, alias)) for alias, home in at_home.items()}
        for file, home, _ in demands(ROWS[kind]):
            own = living_in(home, at_home)
            there = {alias: [form for form in forms[alias] if owners[alias][key("".join(form))] == file] for alias in own}
            assert all(there.values()), f"a name of {field or kind} without a writing for {file}"
            found.setdefault((file, home), {})[field] = there
    return found


def own_forms(fields: dict[str, tuple[str, ...]]) -> dict[str, list[tuple[str, str]]]:
    """Alias -> every (words, unit) that is no other's: `grade (pct)` is one of "grade pct", which came first."""
    claims = Claims()
    for alias in (alias for names in fields.values() for alias in names):
        claims.claim(alias, alias, OTHER)
    forms = {
        alias: [(around.format(alias), unit) for around in surroundings(field, alias) for unit in ("", *UNITS.get(field, ()))]
        for field, names in fields.items() for alias in names
    }  # fmt: skip
    return {alias: [form for form in all_forms if claims.claim("".join(form), alias, OTHER)] for alias, all_forms in forms.items()}


def parted(forms: list[tuple[str, str]], home: str, rng: random.Random) -> dict[str, str]:
    """The file of each writing's key: its alias's home, but of a trained one a share for the files that see it anew."""
    keys = list(dict.fromkeys(key("".join(form)) for form in forms))
    if home != TRAIN:
        return dict.fromkeys(keys, home)
    others = shuffled(rng, keys[1:])  # the first is the plainest, which is trained
    n_seen, n_validation = max(1, len(others) // 5), max(1, len(others) // 6)
    files = [TEST_SEEN] * n_seen + [VALIDATION] * n_validation + [TRAIN] * (len(others) - n_seen - n_validation)
    return {keys[0]: TRAIN, **dict(zip(others, files, strict=True))}


def surroundings(field: str, alias: str) -> tuple[str, ...]:
    """What may be put around a name."""
    return (SHARED if field.startswith("share_") else NAMED)["en" if alias.isascii() else "zh"]


def tables(kind: str, writings: Writings, rng: random.Random) -> Iterator[list[Column]]:
    """Without end, no list of names twice."""
    fields = deal(rng, [field for field in writings if field != OTHER])
    aliases = {field: deal(rng, list(names)) for field, names in writings.items()}
    told: set[tuple[str, ...]] = set()
    while True:
        n_mapped = between(rng, *MAPPED[kind])
        n_other = between(rng, max(0, COLUMNS[0] - n_mapped), min(3, COLUMNS[1] - n_mapped))
        wanted = [*different(fields, n_mapped), *[OTHER] * n_other]
        style = partial(styled, style=pick(rng, STYLES))
        table = []
        for field in wanted:
            alias = next(aliases[field])
            words, unit = a_writing(alias, writings[field][alias], rng)
            table.append(Column(name=style(words) + in_marks(unit, rng), field=field, alias=alias))
        table = shuffled(rng, table)
        names = tuple(column.name for column in table)
        if names not in told and len({key(name) for name in names}) == len(names):
            told.add(names)
            yield table


def a_writing(alias: str, forms: list[tuple[str, str]], rng: random.Random) -> tuple[str, str]:
    """One of them; every other time one with nothing put around the alias, if it may be written so here."""
    plain = [form for form in forms if form[0] == alias]
    return pick(rng, plain if plain and rng.random() < 0.5 else forms)


def between(rng: random.Random, least: int, most: int) -> int:
    """A whole number, both ends among them."""
    return pick(rng, range(least, most + 1))


def different(dealt: Iterator[str], count: int) -> list[str]:
    """The next `count` that differ."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[next(dealt)] = None
    return list(found)


def styled(words: str, *, style: str) -> str:
    """
    >>> [styled("gps speed", style=style) for style in STYLES]
    ['gps_speed', 'GPS_SPEED', 'gpsSpeed', 'GpsSpeed', 'gps-speed', 'Gps Speed', 'gps speed']
    """
    parts = words.split()
    capital = [part[:1].upper() + part[1:] for part in parts]
    camel = parts[0] + "".join(capital[1:])
    return {
        "snake": "_".join(parts), "upper": "_".join(parts).upper(), "camel": camel, "pascal": "".join(capital), "kebab": "-".join(parts),
        "title": " ".join(capital), "words": words,
    }[style]  # fmt: skip


def in_marks(unit: str, rng: random.Random) -> str:
    """A unit as it stands behind a name; nothing for none."""
    if not unit:
        return ""
    marks = ("({})", " ({})", "[{}]", "（{}）", "_{}") if re.fullmatch(r"\w+", unit) else ("({})", " ({})", "[{}]", "（{}）")
    return pick(rng, marks).format(unit)
