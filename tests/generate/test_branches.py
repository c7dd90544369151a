"""Branches decoded together: isolated they are separate sequences, columnar they are the full forward over what was drawn."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from stylora.errors import UserError
from stylora.forest import whole_row
from stylora.generate import shared_cache
from stylora.generate.branches import OPENED_AT_ONCE, Task, decode_branches
from stylora.generate.column_mask import TRUNK, Places, column_mask
from stylora.generate.decode import decode, end_tokens, open_row, stream
from stylora.generate.settings import Sampling
from stylora.generate.shared_cache import SharedCache, Tail
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.model.rope_2d import install
from stylora.model.visibility import dense
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import Branch, Tree, tree_sample

GREEDY = Sampling(temperature=0, max_new_tokens=12)
DRAWN = Sampling(temperature=1.5, top_p=0.98, max_new_tokens=12, seed=3)
PENALTY = DRAWN.model_copy(update={"repetition_penalty": 1.5})
COLUMNAR = Branches(visibility="columnar", rope_2d_ratio=0)
TRUNK_IDS = np.arange(40, 63)
KINDS = ["Qwen3", "Llama", "Mistral", "Gemma3Text", "Gemma2"]


@pytest.fixture(scope="module")
def model(random_model):
    return random_model("Qwen3")


@pytest.fixture(scope="module")
def adapted(random_model):
    """Two adapters, one on the other."""
    peft = get_peft_model(random_model("Qwen3"), LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False), "style")
    peft.add_adapter("top", LoraConfig(target_modules=["v_proj"], r=2, init_lora_weights=False))
    peft.base_model.set_adapter(["style", "top"])
    return peft.eval()


def openings(count: int, seed: int = 0) -> list[np.ndarray]:
    """Of different lengths, the longest in the middle."""
    random = np.random.default_rng(seed)
    return [random.integers(3, 250, 1 + (5 * i) % 7) for i in range(count)]


def together(model, tokenizer: PreTrainedTokenizerBase, tasks, sampling=GREEDY, **options):
    """{(task, branch): (tokens, text, how it stopped)}"""
    found: dict[tuple[int, int], tuple[list[int], str, str | None]] = {}
    for piece in decode_branches(model, tokenizer, tasks, sampling, **options):
        tokens, text, stopped = found.get((piece.task, piece.branch), ([], "", None))
        assert stopped is None, "a token behind the end"
        found[piece.task, piece.branch] = ([*tokens, piece.token], text + piece.text, piece.stopped)
    return found


def alone(model, tokenizer, task: Task, sampling=GREEDY):
    """Each branch as a sequence of its own, by the loop of `generate`."""
    texts = []
    for number, opening in enumerate(task.openings):
        row = open_row(model, tokenizer, [*task.trunk.tolist(), *opening.tolist()], sampling, number=number, chat=False, where="prompt")
        for _ in decode(model, [row], sampling, end_tokens(model, tokenizer)):
            pass
        texts.append((row.text, row.stopped))
    return texts


def said(found, task: int = 0):
    """(text, how it stopped) of each branch in order"""
    return [found[key][1:] for key in sorted(found) if key[0] == task]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, PENALTY], ids=["greedy", "drawn", "penalty"])
def test_isolated_branches_are_separate_sequences(kind, sampling, random_model, tokenizer):
    model = random_model(kind)
    task = Task(trunk=TRUNK_IDS, openings=openings(5))
    assert said(together(model, tokenizer, [task], sampling)) == alone(model, tokenizer, task, sampling)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_with_a_stack_of_adapters(count, adapted, model, tokenizer):
    task = Task(trunk=TRUNK_IDS, openings=openings(count))
    found = said(together(adapted, tokenizer, [task]))
    assert found == alone(adapted, tokenizer, task)
    assert found != alone(model, tokenizer, task), "the adapters change nothing"


@pytest.mark.parametrize("kind", ["Qwen3Next", "Qwen3_5Text", "Qwen3"])
def test_models_that_keep_no_rows_apart_go_branch_by_branch(kind, random_model, tokenizer):
    model = random_model(kind)
    task = Task(trunk=TRUNK_IDS, openings=openings(3))
    pieces = list(decode_branches(model, tokenizer, [task, task], GREEDY, apart=True))
    assert [(piece.task, piece.branch) for piece in pieces] == sorted((piece.task, piece.branch) for piece in pieces)
    found = together(model, tokenizer, [task, task], apart=True)
    assert said(found) == said(found, 1) == alone(model, tokenizer, task)
    with pytest.raises(UserError, match="columnar branches on layers that do not keep tokens of one row apart"):
        decode_branches(model, tokenizer, [task], GREEDY, branches=COLUMNAR, apart=True)


@pytest.mark.parametrize("live", [1, 2, 5, 64])
def test_waiting_and_several_trunks_change_nothing(live, model, tokenizer):
    tasks = [
        Task(trunk=TRUNK_IDS, openings=openings(4), limits=[3, None, 1, 7]),
        Task(trunk=np.arange(5), openings=openings(3, seed=1)), Task(trunk=np.empty(0, np.int64), openings=openings(2, seed=2)),
    ]  # fmt: skip
    found = together(model, tokenizer, tasks, live=live)
    for number, task in enumerate(tasks):
        for branch, (text, _) in enumerate(alone(model, tokenizer, task)):
            limit = (task.limits or [None] * 9)[branch] or 12
            assert len(found[number, branch][0]) <= limit
            assert text.startswith(found[number, branch][1].rstrip("\ufffd")) if limit < 12 else found[number, branch][1] == text


def test_openings_that_are_too_many_for_one_forward(random_model, tokenizer):
    model = random_model("Qwen3", max_position_embeddings=4096)
    long = np.random.default_rng(0).integers(3, 250, OPENED_AT_ONCE - 10)
    task = Task(trunk=TRUNK_IDS, openings=[long, *openings(4)])
    sampling = GREEDY.model_copy(update={"max_new_tokens": 4})
    assert said(together(model, tokenizer, [task], sampling)) == alone(model, tokenizer, task, sampling)


def test_a_permutation_of_the_branches_permutes_what_they_say(model, tokenizer):
    task = Task(trunk=TRUNK_IDS, openings=openings(6), seeds=[5, 6, 7, 8, 9, 10])
    order = [3, 0, 5, 1, 4, 2]
    other = Task(trunk=TRUNK_IDS, openings=[task.openings[i] for i in order], seeds=[5 + i for i in order])
    first, second = (together(model, tokenizer, [each], DRAWN) for each in (task, other))
    assert [second[0, place] for place in range(6)] == [first[0, i] for i in order]
    assert len({text for _, text, _ in first.values()}) == 6


def test_a_peer_more_changes_nothing(model, tokenizer):
    few, many = (Task(trunk=TRUNK_IDS, openings=openings(9)[:count]) for count in (4, 9))
    before, after = (together(model, tokenizer, [task], DRAWN) for task in (few, many))
    assert all(after[key] == value for key, value in before.items()) and len(after) == 9


def test_a_seed_of_its_own_is_that_of_a_single_prompt(model, tokenizer):
    task = Task(trunk=TRUNK_IDS, openings=openings(3), seeds=[11, None, 12])
    found = together(model, tokenizer, [task], DRAWN)
    ids = [*TRUNK_IDS.tolist(), *task.openings[2].tolist()]
    assert found[0, 2][1] == "".join(stream(model, tokenizer, ids, DRAWN.model_copy(update={"seed": 12})))
    assert found[0, 1][1] == alone(model, tokenizer, task, DRAWN)[1][0]


def test_a_stop_text_ends_its_branch_alone(model, tokenizer):
    task = Task(trunk=TRUNK_IDS, openings=openings(4))
    texts = [text for text, _ in alone(model, tokenizer, task, DRAWN)]
    stop = DRAWN.model_copy(update={"stop": [texts[1][2:4]]})
    assert said(together(model, tokenizer, [task], stop)) == alone(model, tokenizer, task, stop)
    assert alone(model, tokenizer, task, stop)[1][1] == "stop"


# ----------------------------------------------------------------------------------------------------------------- columnar


def full_logits(model, task: Task, said: list[list[int]], columnar: bool) -> dict[tuple[int, int], torch.Tensor]:
    """{(branch, time): logits} of one forward over trunk and branches as a whole, the mask made pair by pair."""
    tokens = [(TRUNK, time, int(token)) for time, token in enumerate(task.trunk)]
    for branch, (opening, drawn) in enumerate(zip(task.openings, said, strict=True)):
        tokens += [(branch, len(task.trunk) + i, int(token)) for i, token in enumerate([*opening, *drawn])]
    visible = torch.tensor([[
        (key[1] < query[1] and (columnar or key[0] in (TRUNK, query[0]))) or key[:2] == query[:2] for key in tokens
    ] for query in tokens])  # fmt: skip
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([[token for *_, token in tokens]]), position_ids=torch.tensor([[time for _, time, _ in tokens]]),
            attention_mask=visible[None, None], use_cache=False,
        ).logits[0]  # fmt: skip
    return {(branch, time): row for (branch, time, _), row in zip(tokens, logits, strict=True)}


def kept_steps(monkeypatch) -> list[tuple[int, int, torch.Tensor]]:
    """Fills with (branch, time, logits behind it) while one task is decoded."""
    read, steps = SharedCache.read, []

    def kept(self, tails):
        scores = read(self, tails)
        steps.extend((tail.branch, tail.time + len(tail.ids) - 1, row) for tail, row in zip(tails, scores, strict=True))
        return scores

    monkeypatch.setattr(SharedCache, "read", kept)
    return steps


@pytest.mark.parametrize("columnar", [False, True])
def test_cached_columns_are_the_full_forward(columnar, model, tokenizer, monkeypatch):
    """To 1e-5, at every token drawn; with branches that stop at different times, whose words the others go on reading."""
    task = Task(trunk=TRUNK_IDS, openings=openings(5), limits=[12, 3, 8, 1, 10])
    steps = kept_steps(monkeypatch)
    found = together(model, tokenizer, [task], branches=COLUMNAR if columnar else None)
    want = full_logits(model, task, [found[0, branch][0] for branch in range(5)], columnar)
    assert max(float((row - want[branch, time]).abs().max()) for branch, time, row in steps) < 1e-5
    drawn = {(branch, time): int(row.argmax()) for branch, time, row in steps}
    for branch, opening in enumerate(task.openings):
        first = len(TRUNK_IDS) + len(opening) - 1
        tokens = found[0, branch][0]
        assert [drawn[branch, first + i] for i in range(len(tokens))] == tokens and len(tokens) == task.limits[branch]


def test_columnar_branches_read_each_other_and_only_what_is_earlier(model, tokenizer):
    """A later token of a peer changes nothing before it, and something after it."""
    task = Task(trunk=TRUNK_IDS, openings=[np.array([3, 4]), np.array([5, 6, 7, 8, 9])])
    other = replace(task, openings=[task.openings[0], np.array([5, 6, 7, 8, 200])])
    texts = [together(model, tokenizer, [each], DRAWN, branches=COLUMNAR)[0, 0][0] for each in (task, other)]
    assert texts[0][:4] == texts[1][:4], "the peer's fifth token is read from the fifth drawn on at the earliest"
    want = [full_logits(model, each, [text, []], True) for each, text in ((task, texts[0]), (other, texts[0]))]
    at = len(TRUNK_IDS) + 4
    assert torch.equal(want[0][0, at], want[1][0, at]) and not torch.equal(want[0][0, at + 1], want[1][0, at + 1])
    assert said(together(model, tokenizer, [task], branches=COLUMNAR)) != said(together(model, tokenizer, [task]))


def test_columnar_trees_do_not_read_each_other(model, tokenizer):
    tasks = [Task(trunk=TRUNK_IDS, openings=openings(4)), Task(trunk=np.arange(5), openings=openings(3, seed=1))]
    apart = [said(together(model, tokenizer, [task], DRAWN, branches=COLUMNAR)) for task in tasks]
    for live in (4, 64):
        found = together(model, tokenizer, tasks, DRAWN, branches=COLUMNAR, live=live)
        assert [said(found, 0), said(found, 1)] == apart
    with pytest.raises(UserError, match="live: got 3, expected at least 4: columnar branches of one trunk advance together"):
        decode_branches(model, tokenizer, tasks, GREEDY, branches=COLUMNAR, live=3)


# -------------------------------------------------------------------------------------------------------------- coordinates


def test_the_coordinate_of_a_branch_is_its_numbers(random_model, tokenizer, monkeypatch):
    """What the rotary module is told, at every column."""
    model, told = random_model("Qwen3"), []

    @contextmanager
    def coordinates(of, branch):
        assert of is model
        told.append(branch.tolist())
        yield

    monkeypatch.setattr(shared_cache, "coordinates", coordinates)
    task = Task(trunk=TRUNK_IDS, openings=[np.array([3, 4]), np.array([5])], limits=[2, 3])
    for positions, one, other in (("replace", 7, 14), ("add", 0, 7)):
        install(model, Branches(branch_stride=7, positions=positions))
        together(model, tokenizer, [task])
        assert told == [[[one, one, other]], [[one, other]], [[other]]]
        told.clear()


@pytest.mark.parametrize("visibility", ["isolated", "columnar"])
@pytest.mark.parametrize("positions", ["replace", "add"])
def test_cached_columns_are_the_forest_that_training_reads(visibility, positions, random_model, tokenizer, monkeypatch):
    """To 1e-5 the logits of `ForestModel` on what was drawn, laid out by `tree_sample`, with coordinates that turn visibly."""
    laid = Branches(visibility=visibility, positions=positions, branch_stride=9, rope_2d_ratio=0.75)
    model = random_model("Llama")
    plain = together(model, tokenizer, [Task(trunk=TRUNK_IDS, openings=openings(4))])
    install(model, laid)
    task = Task(trunk=TRUNK_IDS, openings=openings(4), limits=[9, 2, 7, 9])
    steps = kept_steps(monkeypatch)
    found = together(model, tokenizer, [task], branches=laid)
    assert said(found) != said(plain)
    nothing = np.empty(0, np.int32)
    paths = [
        Branch(ids=np.array([*opening, *found[0, n][0]], np.int32), source=nothing, target=nothing, weight=nothing, characters=0)
        for n, opening in enumerate(task.openings)
    ]
    tree = Tree(trunk=TRUNK_IDS.astype(np.int32), branches=tuple(paths), trunk_characters=0, stop=2, quoted=False)
    forest = tree_sample(tree, laid).forest
    reader = ForestModel(model, words=300, columnar=visibility == "columnar").eval()
    with torch.no_grad():
        logits = reader.logits(reader.hidden(to_tensors(whole_row(forest), model.device))[0])
    starts = np.cumsum([len(TRUNK_IDS), *(len(path.ids) for path in paths)])
    assert len(steps) > 9
    for branch, time, row in steps:
        assert float((row - logits[starts[branch] + time - len(TRUNK_IDS)]).abs().max()) < 1e-5


def test_a_coordinate_is_no_copy(random_model, tokenizer):
    """Branches that begin alike at ratio 0 are copies, and are not where a coordinate tells them apart."""
    model = random_model("Qwen3")
    task = Task(trunk=TRUNK_IDS, openings=[np.array([7])] * 3)
    assert len(set(said(together(model, tokenizer, [task])))) == 1
    install(model, Branches(rope_2d_ratio=1, branch_stride=20))
    assert len(set(said(together(model, tokenizer, [task])))) == 3


# ------------------------------------------------------------------------------------------------------------ memory, limits


def test_keys_of_what_stopped_leave(model):
    """The trunk is kept once; and nothing that is read changes when keys leave."""
    cache, bare = SharedCache(model), SharedCache(model)
    with torch.inference_mode():
        for each in (cache, bare):
            each.plant(0, TRUNK_IDS)
        assert cache.keys == len(TRUNK_IDS)
        cache.read([Tail(0, 0, np.arange(30), 23), Tail(0, 1, np.arange(3, 6), 23)])
        bare.read([Tail(0, 1, np.arange(3, 6), 23)])
        assert cache.keys == 23 + 30 + 3
        cache.drop(branch=0)
        after = [each.read([Tail(0, 1, np.array([9]), 26)]) for each in (cache, bare)]
        assert cache.keys == bare.keys == 23 + 3 + 1
        assert torch.allclose(*after, atol=1e-5)
        cache.drop(tree=0)
        cache.plant(1, np.arange(4))
        assert cache.keys == 4


def test_a_mask_of_the_wrong_keys_would_be_seen(model):
    """The mask matters: without the trunk's keys the logits are others."""
    cache = SharedCache(model)
    with torch.inference_mode():
        cache.plant(0, TRUNK_IDS)
        right = cache.read([Tail(0, 0, np.array([9]), 23)])
        lost = SharedCache(model)
        lost.plant(1, TRUNK_IDS)
        assert not torch.allclose(right, lost.read([Tail(0, 0, np.array([9]), 23)]), atol=1e-3)


@pytest.mark.parametrize(("task", "branches", "message"), [
    (Task(trunk=TRUNK_IDS, openings=[]), None, "got no branches, expected at least one"),
    (Task(trunk=TRUNK_IDS, openings=[np.arange(3), np.arange(0)]), None, "branch 2: got an opening without tokens"),
    (Task(trunk=TRUNK_IDS, openings=[np.ones(233, int)]), None, "branch 1: got 256 tokens, 23 of them of the trunk, expected less than"),
    (Task(trunk=TRUNK_IDS, openings=openings(3)), Branches(branch_stride=100), "branch 3: got coordinate 300, expected at most 256"),
    (Task(trunk=TRUNK_IDS, openings=[np.ones(100, int)] * 3), Branches(branch_stride=100, positions="add"), "less the coordinate 200"),
])  # fmt: skip
def test_what_cannot_be_decoded(task, branches, message, random_model, tokenizer):
    model = random_model("Qwen3")
    install(model, branches)
    with pytest.raises(UserError) as caught:
        decode_branches(model, tokenizer, [task], GREEDY, branches=branches)
    assert message in str(caught.value)


def test_the_context_ends_a_branch(model, tokenizer):
    task = Task(trunk=TRUNK_IDS, openings=[np.ones(230, int), np.ones(2, int)])
    found = together(model, tokenizer, [task])
    assert len(found[0, 0][0]) == 3 and found[0, 0][2] == "length" and said(found) == alone(model, tokenizer, task)


def test_modules_are_as_they_were_afterwards(model, tokenizer):
    model.train()
    stream_of = decode_branches(model, tokenizer, [Task(trunk=TRUNK_IDS, openings=openings(2))], GREEDY)
    next(stream_of)
    assert not model.training
    stream_of.close()
    assert model.training
    model.eval()


def test_column_mask_of_the_engine_is_that_of_training(model):
    """One forward over a tree's openings is the tree's own mask: the rule of visibility.dense on the same tokens."""
    time = torch.tensor([0, 1, 2, 3, 2, 3, 4])
    branch = torch.tensor([TRUNK, TRUNK, 0, 0, 1, 1, 1])
    end = torch.tensor([[7, 7, 4, 4, 7, 7, 7]])
    own = Places(torch.zeros(7, dtype=torch.int64), branch, time)
    mask = column_mask(own, own, model.config, torch.float32)
    assert torch.equal(mask == 0, dense(end, time[None]))
