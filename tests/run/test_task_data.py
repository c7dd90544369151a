"""Data of the two tasks: no name of two classes, splits that no name crosses, equal bytes for equal seeds, rows that training reads."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations, islice
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.errors import UserError
from stylora.evaluate.task_settings import set_of
from stylora.run.task_data.column_names import FIELDS, OTHERS, SHARES
from stylora.run.task_data.columns import STYLES, column_rows, part_writings, styled
from stylora.run.task_data.draws import Claims, deal, generator, key, pick, shuffled
from stylora.run.task_data.parts import FILES, TEST_SEEN, TEST_UNSEEN, TRAIN, VALIDATION, homes
from stylora.run.task_data.pollutants import POLLUTANTS
from stylora.run.task_data.unified import CLASSES, SYSTEM, unified_rows
from stylora.run.task_data.vehicles import VEHICLES
from stylora.run.task_data.wordings import slip, wordings
from stylora.run.task_data.writing import make
from stylora.samples.conversations import Conversation, read_conversations

ROOT = Path(__file__).parents[2]
MADE = {"unified": unified_rows, "columns": column_rows}
FIRST_BYTES = {  # of seed 0: a change of these is a change of everyone's data, and of every figure measured on it
    "unified": "70c0d6d4339d868f", "columns": "ea66528bb1daa3f9",
}  # fmt: skip


@pytest.fixture(scope="module", params=[0, 7], ids=lambda seed: f"seed {seed}")
def unified(request) -> dict[str, list[dict]]:
    return unified_rows(request.param)


@pytest.fixture(scope="module", params=[0, 7], ids=lambda seed: f"seed {seed}")
def columns(request) -> dict[str, list[dict]]:
    return column_rows(request.param)


def asked(row: dict) -> str:
    return row["messages"][1]["content"]


def answered(row: dict) -> str:
    return row["messages"][2]["content"]


def aliases(row: dict) -> set[str]:
    """Kind and alias of each name in a row."""
    kind, _, names = row["group"].partition(":")
    return {f"{kind}:{name}" for name in (names.split("+") if kind in FIELDS else [names])}


def bare(row: dict) -> str:
    """The text behind the marker."""
    return asked(row).partition("] ")[2]


# -------------------------------------------------------------------------------------------------------- lists of names


def test_thirteen_types_and_seven_pollutants():
    assert len(VEHICLES) == len(SHARES) == 13 and list(VEHICLES) == list(SHARES) and len(POLLUTANTS) == 7
    for classes, least in ((VEHICLES, 18), (POLLUTANTS, 9)):
        for label, names in classes.items():
            assert names[0] == label and len(names) >= least
            assert any(name.isascii() for name in names) and any(not name.isascii() for name in names)


@pytest.mark.parametrize(
    "classes",
    [VEHICLES, POLLUTANTS, *({**FIELDS[kind], "": OTHERS[kind]} for kind in FIELDS)],
    ids=["vehicles", "pollutants", "micro", "macro"],
)
def test_no_name_has_two_labels(classes):
    """Nor stands twice under one, in whatever case, width or punctuation."""
    every = [key(name) for names in classes.values() for name in names]
    assert len(set(every)) == len(every) and all(every)


def test_no_column_name_breaks_a_group():
    """`group` joins names by `+`."""
    assert not [name for fields in FIELDS.values() for names in fields.values() for name in names if "+" in name or ":" in name]


# --------------------------------------------------------------------------------------------------------------- unified


def test_counts_and_balance(unified, columns):
    assert sum(map(len, unified.values())) >= 4000 and sum(map(len, columns.values())) >= 2500
    for rows in unified.values():
        counts = [sum(answered(row) == label for row in rows) for classes in CLASSES.values() for label in classes]
        assert sum(counts) == len(rows) and max(counts) <= 2 * min(counts)
    for rows in columns.values():
        found = [field for row in rows for field in json.loads(answered(row)).values()]
        counts = [found.count(field) for fields in FIELDS.values() for field in fields]
        assert sum(counts) == len(found) and max(counts) <= 2 * min(counts)


def test_every_answer_is_a_label_of_its_kind(unified):
    for row in (row for rows in unified.values() for row in rows):
        assert asked(row).startswith(f"[{row['source']}] ") and answered(row) in CLASSES[row["source"]]
        assert row["group"].split(":", 1)[1] in CLASSES[row["source"]][answered(row)]


def test_no_text_stands_twice_or_contradicts(unified):
    """Within a file no equal rows; between files nothing that differs in case, width, blanks and marks alone."""
    owners: dict[str, tuple[str, str, str]] = {}
    texts = [asked(row) for rows in unified.values() for row in rows]
    assert len(set(texts)) == len(texts)
    for file, rows in unified.items():
        for row in rows:
            owner = (file, row["group"], answered(row))
            assert owners.setdefault(key(asked(row)), owner) == owner


@pytest.mark.parametrize("task", MADE)
def test_splits_by_alias(task):
    """test_unseen and half of validation: aliases of their own. test_seen and the other half: those of the training rows."""
    known = {file: [aliases(row) for row in rows] for file, rows in MADE[task](3).items()}
    trained = set().union(*known[TRAIN])
    assert all(names <= trained for names in known[TEST_SEEN])
    new = [not names & trained for names in known[VALIDATION]]
    assert sum(new) * 2 == len(new) and all(names <= trained or fresh for names, fresh in zip(known[VALIDATION], new, strict=True))
    unseen = set().union(*known[TEST_UNSEEN])
    assert not unseen & set().union(*(names for file in (TRAIN, VALIDATION, TEST_SEEN) for names in known[file]))


def test_unseen_aliases_are_never_written_as_a_seen_one(unified):
    """The whole text of an unseen row, less its marks, is no name of a training row; nor the other way round."""
    own = {file: {key(row["group"].split(":", 1)[1]) for row in rows} for file, rows in unified.items()}
    assert not {key(bare(row)) for row in unified[TEST_UNSEEN]} & own[TRAIN]
    assert not {key(bare(row)) for row in unified[TRAIN]} & own[TEST_UNSEEN]


def test_every_trained_alias_is_trained_as_it_is(unified):
    texts = {asked(row) for row in unified[TRAIN]}
    assert {f"[{row['source']}] {row['group'].split(':', 1)[1]}" for row in unified[TRAIN]} <= texts


def test_wordings_differ(unified):
    """Case, width, marks, attributes, questions: each alias is mostly written in other ways than its own."""
    rows = unified[TRAIN]
    plain = sum(bare(row) == row["group"].split(":", 1)[1] for row in rows)
    assert plain < 0.2 * len(rows)
    for part in ("（柴油）", "是什么类型", "车型：", "Ａ", "【", "国六", "是什么污染物", "CO₂", "vehicle type: "):
        assert any(part in asked(row) or part.casefold() in asked(row) for row in rows), part


def test_the_system_prompt_names_every_class(unified):
    assert 400 <= len(SYSTEM) <= 500 and all(label in SYSTEM for classes in CLASSES.values() for label in classes)
    assert {row["messages"][0]["content"] for rows in unified.values() for row in rows} == {SYSTEM}


# --------------------------------------------------------------------------------------------------------------- columns


def test_answers_map_columns_to_fields(columns):
    """Keys sorted and copied from the question; values fields of the kind, each once; two to eight different columns."""
    for row in (row for rows in columns.values() for row in rows):
        marker, _, names = asked(row).partition(" ")
        names, mapping = json.loads(names), json.loads(answered(row))
        assert marker == f"[{row['source']}]" and 2 <= len(names) <= 8 and len({key(name) for name in names}) == len(names)
        assert mapping and list(mapping) == sorted(mapping) and set(mapping) <= set(names)
        assert len(set(mapping.values())) == len(mapping) and set(mapping.values()) <= set(FIELDS[row["source"]])
        assert answered(row) == json.dumps(mapping, ensure_ascii=False, sort_keys=True)
        assert len(aliases(row)) == len(mapping)


def test_a_column_means_one_thing_and_stands_in_one_file(columns):
    """Also columns that mean nothing; whatever their case and marks. So the writings of test_seen are in no other file."""
    owners: dict[tuple[str, str], tuple[str, str | None]] = {}
    for file, rows in columns.items():
        for row in rows:
            mapping = json.loads(answered(row))
            for name in json.loads(asked(row).partition(" ")[2]):
                owner = (file, mapping.get(name))
                assert owners.setdefault((row["source"], key(name)), owner) == owner


def test_some_columns_mean_nothing_and_the_order_is_random(columns):
    rows = [(json.loads(asked(row).partition(" ")[2]), json.loads(answered(row))) for row in columns[TRAIN]]
    assert 0.1 < sum(len(names) - len(mapping) for names, mapping in rows) / sum(len(names) for names, _ in rows) < 0.5
    asked_first = [names.index(next(iter(mapping))) == 0 for names, mapping in rows]
    assert 0.1 < sum(asked_first) / len(asked_first) < 0.9


# ----------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("task", MADE)
def test_equal_bytes_for_equal_seeds(task, tmp_path):
    """Of two runs, and of any machine: the digest is that of the first one."""
    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        make(task, path)
    digest = hashlib.blake2b(digest_size=8)
    for file in FILES:
        one, other = ((path / f"{file}.jsonl").read_bytes() for path in paths)
        assert one == other and b"\r" not in one and one.endswith(b"\n")
        digest.update(one)
    assert digest.hexdigest() == FIRST_BYTES[task]
    make(task, paths[0], seed=1, force=True)
    assert all((paths[0] / f"{file}.jsonl").read_bytes() != (paths[1] / f"{file}.jsonl").read_bytes() for file in FILES)


@pytest.mark.parametrize("task", MADE)
def test_training_reads_every_row(task, tmp_path):
    made = make(task, tmp_path)
    read = list(read_conversations([str(tmp_path)], reports=[]))
    assert all(isinstance(row, Conversation) for row in read) and len(read) == sum(found.rows for found in made.files.values())
    assert all(row.group and len(row.messages) == 3 for row in read)


def test_what_is_there_is_not_replaced_unasked(tmp_path):
    (tmp_path / "train.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="train.jsonl: got a file that is there already"):
        make("unified", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    make("unified", tmp_path, force=True)
    assert {path.stem for path in tmp_path.iterdir()} == {*FILES, "notes"}
    with pytest.raises(UserError, match="notes.txt: got a file, expected a folder"):
        make("unified", tmp_path / "notes.txt")
    with pytest.raises(UserError, match="did you mean 'unified'"):
        make("unifed", tmp_path)


def test_the_command(command, tmp_path):
    told = json.loads(command("data", "make", "columns", tmp_path / "d", "--seed", "3", "--json").out)
    assert told["task"] == "columns" and told["seed"] == 3 and [Path(path).stem for path in told["files"]] == list(FILES)
    assert sum(found["rows"] for found in told["files"].values()) >= 2500
    again = command("data", "make", "columns", tmp_path / "d")
    assert again.code == 2 and "--force" in again.err
    assert "validation.jsonl" in command("data", "make", "columns", tmp_path / "d", "--force").out


def test_the_page_says_how_many_rows():
    page = (ROOT / "docs/commands/data.md").read_text(encoding="utf-8")
    files = {task: rows(0) for task, rows in MADE.items()}
    for file in FILES:
        assert f"| {file}.jsonl | {len(files['unified'][file]):,} | {len(files['columns'][file]):,} |" in page


@pytest.mark.parametrize("kind", FIELDS)
def test_every_name_has_writings_for_its_files(kind):
    """Also where another name's took some away: `grade (pct)` is "grade pct"."""
    for seed in range(5):
        for (file, home), fields in part_writings(kind, seed).items():
            assert all(forms for names in fields.values() for forms in names.values()), (file, home)
            assert all(fields.values()), (file, home)


def test_the_recipes_know_every_label_and_field():
    task = {name: yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text(encoding="utf-8"))["stages"][0]["task"] for name in MADE}
    assert task["unified"]["labels"] == {f"[{kind}]": list(classes) for kind, classes in CLASSES.items()}
    assert set_of(task["unified"]["labels"], "[pollutant] 煤气") == "[pollutant]"
    schema = task["columns"]["json_schema"]
    assert schema["additionalProperties"]["enum"] == [field for fields in FIELDS.values() for field in fields]


# ------------------------------------------------------------------------------------------------------ draws and wordings


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=20), st.integers(0, 2**32))
def test_draws(items, seed):
    rng = generator(seed, "x")
    assert sorted(shuffled(rng, items)) == sorted(items) and pick(rng, items) in items
    dealt = list(islice(deal(rng, items), 2 * len(items)))
    assert sorted(dealt[: len(items)]) == sorted(dealt[len(items) :]) == sorted(items)
    assert [generator(seed, "x").random(), generator(seed, "y").random()] == [generator(seed, word).random() for word in "xy"]


@given(st.sampled_from([name for classes in CLASSES.values() for names in classes.values() for name in names]), st.integers(0, 99))
@settings(deadline=None)
def test_a_slip_keeps_what_tells_classes_apart(name, seed):
    """At most one letter more, the same letters otherwise, and digits, numerals, 长 and 短 as they were."""
    slipped = slip(name, generator(seed))
    kept = [[letter for letter in text if letter in "0123456789一二三长短"] for text in (name, slipped)]
    assert kept[0] == kept[1] and set(slipped) == set(name) and 0 <= len(slipped) - len(name) <= 1


def test_wordings_begin_with_the_name_and_hold_it():
    for kind, name in (("vehicle", "小轿车"), ("pollutant", "CO2"), ("vehicle", "station wagon")):
        found = list(islice(wordings(name, kind, generator(0, name)), 200))
        assert found[0] == name and len(set(found)) > 60
        whole = sum(key(name) in key(text) for text in found)
        assert whole > 0.8 * len(found)


def test_claims_and_homes():
    claims = Claims()
    assert claims.claim("CO₂", "CO2", TRAIN) and claims.claim("ｃｏ２ ", "CO2", TRAIN)
    assert not claims.claim("co-2", "CO2", TEST_SEEN) and not claims.claim("co2", "CO", TRAIN)
    names = tuple("abcdefghij")
    found = homes(names, 0, "x")
    assert found["a"] == TRAIN and list(found) == list(names) and found != homes(names, 1, "x")
    assert [list(found.values()).count(file) for file in (TRAIN, VALIDATION, TEST_UNSEEN)] == [7, 1, 2]


def test_styles_are_different():
    found = [styled("gps speed", style=style) for style in STYLES]
    assert found == ["gps_speed", "GPS_SPEED", "gpsSpeed", "GpsSpeed", "gps-speed", "Gps Speed", "gps speed"]
    assert all(one != other and key(one) == key(other) for one, other in combinations(found, 2))
