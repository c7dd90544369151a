"""Where anchors lie, what they weigh, the share drawn; the `kl` section; that nothing else of a sample changes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from stylora.forest import MASK, Sample, build_trie, chain, edges
from stylora.samples import anchors as module
from stylora.samples.anchors import Kl, add_anchors
from stylora.samples.objective import Objective, Vocabulary, build_sample

VOCABULARY = Vocabulary(ordinary=np.arange(50, 60, dtype=np.int32), fim=None)
WINDOW = np.arange(100, 160, dtype=np.int32)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def conversation(*ids: int, weight: float = 1.0) -> Sample:
    """`s s u1 a1 .`: learned are a1 and the stop token."""
    return Sample(forest=chain(ids), edges=edges([2, 3], ids[3:], weight))


def anchors(sample: Sample) -> list[tuple[int, float]]:
    return list(zip(sample.anchors.source.tolist(), sample.anchors.weight.tolist(), strict=True))


@pytest.mark.parametrize(
    ("on", "expected"),
    [("edges", [(2, 1), (3, 1)]), ("all", [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]), ("general", [(2, 1), (3, 1)])],
)
def test_the_drawing_of_the_module(on, expected):
    assert anchors(add_anchors(conversation(1, 1, 2, 3, 4), Kl(on=on), general=True, rng=rng())) == expected


@pytest.mark.parametrize("on", ["edges", "all", "general"])
def test_the_drawing_is_the_codes_in_the_module_and_on_its_page(on):
    """A weight stands below its token."""
    page = (Path(__file__).parents[2] / "docs/kl.md").read_text(encoding="utf-8")
    for text in (module.__doc__, page):
        drawn = [line for line in text.splitlines() if re.match(r" *(read|edges|all|general)  ", line)]
        lines = {line.split()[0]: line.split("  edges  u1")[0] for line in drawn}
        tokens = [match.start() for match in re.finditer(r"\S+", lines["read"])][1:]
        weights = [(tokens.index(match.start()), float(match[0])) for match in re.finditer(r"(?<= )\d(?= |$)", lines[on])]
        assert weights == anchors(add_anchors(conversation(1, 1, 2, 3, 4), Kl(on=on), general=True, rng=rng()))


def test_general_anchors_lie_in_general_rows_alone():
    sample = conversation(1, 1, 2, 3, 4)
    assert add_anchors(sample, Kl(on="general"), general=False, rng=rng()) is sample
    for on in ("edges", "all"):
        apart = [anchors(add_anchors(sample, Kl(on=on), general=general, rng=rng())) for general in (True, False)]
        assert apart[0] == apart[1]


def test_weights_of_several_edges_add_up():
    sample = Sample(forest=chain([1, 2, 3]), edges=edges([2, 0, 2], [7, 8, 9], np.array([0.5, 1.0, 2.0])))
    expected = {"edges": [(0, 1.0), (2, 2.5)], "general": [(0, 1.0), (2, 1.0)], "all": [(0, 1.0), (1, 1.0), (2, 1.0)]}
    for on, found in expected.items():
        sampled = add_anchors(sample, Kl(on=on), general=True, rng=rng())
        assert anchors(sampled) == found
        assert sampled.anchors.source.dtype == np.int32 and sampled.anchors.weight.dtype == np.float32


def test_in_a_trie_every_token_has_the_samples_that_pass_through_it():
    samples = [conversation(1, 1, 2, 3, 4), conversation(1, 1, 2, 5, 4), conversation(1, 1, 2, 3, 4)]
    held = build_trie([add_anchors(sample, Kl(on="all"), general=False, rng=rng()) for sample in samples])
    assert held.forest.ids.tolist() == [1, 1, 2, 3, 4, 5, 4] and held.anchors.weight.tolist() == [3, 3, 3, 2, 2, 1, 1]
    held = build_trie([add_anchors(sample, Kl(on="edges"), general=False, rng=rng()) for sample in samples])
    assert anchors(held) == [(2, 3), (3, 2), (5, 1)]


def test_only_anchors_are_added_and_beta_0_adds_none():
    sample = conversation(1, 1, 2, 3, 4, weight=0.25)
    held = add_anchors(sample, Kl(on="all"), general=True, rng=rng())
    assert replace(held, anchors=sample.anchors) == sample
    for on in ("edges", "all", "general"):
        assert add_anchors(sample, Kl(beta=0.0, on=on), general=True, rng=rng()) is sample


def test_a_share_is_drawn_and_the_draw_is_the_generators():
    sample = Sample(forest=chain(range(4000)), edges=edges(range(0, 4000, 2), range(2000), 2.0))
    kl = Kl(sample=0.25)
    held = add_anchors(sample, kl, general=False, rng=rng())
    assert len(held.anchors) == pytest.approx(500, abs=4 * (2000 * 0.25 * 0.75) ** 0.5)
    assert set(held.anchors.source.tolist()) <= set(range(0, 4000, 2)) and set(held.anchors.weight.tolist()) == {2.0}
    assert anchors(held) == anchors(add_anchors(sample, kl, general=False, rng=rng()))
    assert anchors(held) != anchors(add_anchors(sample, kl, general=False, rng=np.random.default_rng(1)))


def test_a_sample_without_edges_has_nothing_to_hold_but_its_tokens():
    sample = Sample(forest=chain([1, 2]), edges=edges([], []))
    assert [len(add_anchors(sample, Kl(on=on), general=True, rng=rng()).anchors) for on in ("edges", "general", "all")] == [0, 0, 2]


def test_a_bare_on_in_yaml_is_the_key():
    assert Kl(**{"beta": 0.2}) == Kl.model_validate(yaml.safe_load("{beta: 0.2, on: edges}"))
    assert Kl.model_validate(yaml.safe_load("{on: general}")).on == "general"


@pytest.mark.parametrize(
    "settings",
    [dict(beta=-0.1), dict(beta=float("inf")), dict(beta=float("nan")), dict(sample=0), dict(sample=1.1), dict(on="style"),
     dict(reference="teacher"), dict(direction="both"), dict(betta=1)],
)  # fmt: skip
def test_refusals(settings):
    with pytest.raises(ValidationError):
        Kl(**settings)


# ---------------------------------------------------------------------------------------------------- as an objective has it


def built(kind: str, kl: Kl | None, *, general: bool = False, key: tuple[int, ...] = (0, 0, 7, 1)) -> Sample:
    return build_sample(Objective(kind=kind, kl=kl), WINDOW, vocabulary=VOCABULARY, key=key, general=general)


def same_but_anchors(one: Sample, other: Sample) -> bool:
    arrays = [[*vars(sample.forest).values(), *vars(sample.edges).values()] for sample in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))


@pytest.mark.parametrize("kind", ["clm", "span"])
def test_an_objective_anchors_its_samples_and_leaves_their_masks(kind):
    plain = built(kind, None)
    assert not len(plain.anchors)
    for kl in (Kl(), Kl(on="all"), Kl(sample=0.5), Kl(on="general"), Kl(beta=0.0)):
        assert same_but_anchors(built(kind, kl), plain)
    assert built(kind, Kl()).anchors.source.tolist() == plain.edges.source.tolist()
    assert len(built(kind, Kl(on="general")).anchors) == len(built(kind, Kl(beta=0.0)).anchors) == 0


def test_general_rows_are_read_without_noise_where_they_are_held():
    """The same edges over the window as it stands; under any other `on` a general row is noised as ever."""
    noised, clean = built("span", Kl(), general=True), built("span", Kl(on="general"), general=True)
    assert MASK in noised.forest.ids.tolist() and clean.forest.ids.tolist() == WINDOW.tolist()
    assert same_but_anchors(replace(clean, forest=noised.forest), noised)
    assert clean.anchors.source.tolist() == clean.edges.source.tolist()
    assert same_but_anchors(clean, built("span", Kl(on="general", beta=0.0), general=True)), "beta alone changes nothing that is read"


def test_the_draw_comes_from_the_samples_key():
    keys = [(0, 0, 7, 1), (0, 0, 7, 1), (0, 1, 7, 1), (0, 0, 7, 2)]
    draws = [built("clm", Kl(sample=0.5), key=key).anchors.source.tolist() for key in keys]
    assert draws[0] == draws[1] and draws[0] != draws[2] and draws[0] != draws[3]


@pytest.mark.parametrize("kind", ["clm", "span", "fim"])
def test_a_stored_objective_opens_again(kind):
    objective = Objective(kind=kind, kl=Kl(beta=0.2, on="general", sample=0.5))
    for dumped in (objective.model_dump(), objective.model_dump(mode="json")):
        assert Objective.model_validate(dumped) == objective
    assert "kl" not in Objective(kind=kind).model_dump()
