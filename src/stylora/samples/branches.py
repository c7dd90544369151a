"""One row -> one sample: a trunk and its branches in tokens, an edge onto every token of an answer and onto the stop token behind it.

    main "a b", branches [fork c d], [fork e]        ids     a b f c d f e
                                                     time    0 1 2 3 4 2 3        every branch goes on where the trunk ends
                                                     branch  0 0 1 1 1 2 2        times the stride; see branch_settings.py
                                                     end     7 7 5 5 5 7 7
                                                     edges   f->c c->d d-><e>     f->e e-><e>

A branch with a prompt is read as trunk + prompt, one without as trunk + fork token: what it begins with is predicted from the fork. The
stop token is predicted and never read. Trunk, prompt and answer are tokenised each by itself, so training and decoding cut them alike,
whatever stands behind. Special tokens in texts stay text.

Messages are written by the base's chat template. What is common to every continuation of `main` is the trunk: the beginning of `main` with
a question behind it, as far as the question's first character cannot change its tokens, so it does not depend on the row's branches.

Two branches that begin alike stay two branches; a trie merges them where they stand at equal coordinates. Relative: Multiverse (arXiv
2506.09991). Knows no files, no epochs and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from stylora.errors import UserError
from stylora.forest import Edges, Forest, Sample

from .branch_rows import BadRow, BranchRow, BranchText, Turns
from .branch_settings import Branches
from .chat import ANSWER, ChatFormat, cut, squeezed
from .conversations import BadConversation, Conversation, Message

PROBES = ("\n", "a", "我")  # beginnings of questions that join the token before them, where anything does


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The fork, and the beginning of a branch that was trained without a prompt."""

    text: str


Opening = str | Begun | list[Message]
"""What a branch begins with in use: a prompt, "" for the fork alone; what stands behind the fork; a question as messages"""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One branch in tokens.

    ids: int32 [T], its opening and its answer; characters: of what is taught, the stop token left out
    source, target: int32 [E], predict token `target` from the token at `source` in `ids`, -1 for the trunk's last; weight: float32 [E]
    """

    ids: np.ndarray
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    characters: int


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One row in tokens. trunk: int32 [M]; branches: in the row's order; trunk_characters: of the trunk; stop: id of the stop token;
    quoted: does a text hold special tokens, which are read as plain text?"""

    trunk: np.ndarray
    branches: tuple[Branch, ...]
    trunk_characters: int
    stop: int
    quoted: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest branch, 0 without branches."""
        return max((len(branch.ids) for branch in self.branches), default=0)


class BranchFormat:
    """How a base writes trunks and branches.

    eos_token: the base's stop token; chat: how it writes conversations, None for a base without a chat template
    fork: id of the token that opens branches without a prompt
    Raises UserError for a fork that is not one token, and where there is no stop token.
    """

    def __init__(self, tokenizer: Tokenizer, branches: Branches, *, eos_token: str | None, chat: ChatFormat | None) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # its settings are changed below
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._before = _before(self._tokenizer)
        self._special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        self.chat = chat
        stop = None if eos_token is None else tokenizer.token_to_id(eos_token)
        if stop is None:
            got = "no eos_token" if eos_token is None else f"the eos_token {eos_token!r}, which is no token"
            raise UserError("base", got=got, expected="a base with an eos_token, which ends every branch")
        self.stop = stop
        self.fork = _fork(self._tokenizer, branches.fork)

    def tree(self, row: BranchRow) -> Tree:
        """The row in tokens. Raises BadRow for messages without a chat template, or which it refuses, and for texts that give no token."""
        trunk, characters = self._trunk(row.main)
        branches = [self._branch(number, row, branch, trunk) for number, branch in enumerate(row.branches, 1)]
        quoted = any(token in text for text in _texts(row) for token in self._special)
        return Tree(trunk=trunk, branches=tuple(branches), trunk_characters=characters, stop=self.stop, quoted=quoted)

    def opened(self, main: str | Sequence[Message], branches: Sequence[Opening]) -> tuple[np.ndarray, list[np.ndarray]]:
        """What is read before anything is said: the trunk, and each branch up to its first new token; int32 [M], and [T] each.

        The ids are those of training. Raises BadRow as `tree` does, and for an opening of another kind than the trunk.
        """
        trunk, _ = self._trunk(main)
        return trunk, [self._opening(number, main, branch, trunk) for number, branch in enumerate(branches, 1)]

    def prove(self, row: BranchRow) -> int:
        """Decode what is learned and compare it with the row itself: how many texts. Raises UserError where one is not text + stop."""
        proved = 0
        tree = self.tree(row)
        for branch, written in zip(tree.branches, row.branches, strict=True):
            if isinstance(written, Turns):
                assert self.chat is not None, "the tree was made by it"
                proved += self.chat.prove(_conversation(row, written), "all")
                continue
            self._prove_text(row.origin, branch.target, written.answer)
            proved += 1
        if isinstance(row.main, str) and not row.branches:
            self._prove_text(row.origin, np.append(tree.trunk[len(self._before) :], tree.stop), row.main)
            proved += 1
        return proved

    def _prove_text(self, origin: str, learned: np.ndarray, text: str) -> None:
        said = self._tokenizer.decode(learned[:-1].tolist(), skip_special_tokens=False)
        if squeezed(said) != squeezed(text) or learned[-1] != self.stop:
            raise UserError(
                origin, got=f"{said!r} as what is learned of {text!r}", expected="the text and the stop token",
                do="check the tokenizer of the base",
            )  # fmt: skip

    # --------------------------------------------------------------------------------------------------- texts

    def _encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def _some(self, text: str, what: str) -> np.ndarray:
        """Its tokens. Raises BadRow where a normaliser leaves none."""
        ids = self._encode(text)
        if not len(ids):
            raise BadRow(f"{what} has no token")
        return ids

    def _branch(self, number: int, row: BranchRow, branch: BranchText | Turns, trunk: np.ndarray) -> Branch:
        if isinstance(branch, Turns):
            return self._chat_branch(number, row, branch, trunk)
        opening, answer = self._prompt(number, branch.prompt), self._some(branch.answer, f"the answer of branch {number}")
        count = len(answer) + 1
        return Branch(
            ids=np.concatenate([opening, answer]), source=np.arange(count, dtype=np.int32) + np.int32(len(opening) - 1),
            target=np.append(answer, np.int32(self.stop)), weight=np.ones(count, np.float32), characters=len(branch.answer),
        )  # fmt: skip

    def _prompt(self, number: int, prompt: str) -> np.ndarray:
        return self._some(prompt, f"the prompt of branch {number}") if prompt else np.array([self.fork], np.int32)

    # ------------------------------------------------------------------------------------------------ messages

    def _trunk(self, main: str | Sequence[Message]) -> tuple[np.ndarray, int]:
        """The trunk's ids, int32 [M], and its characters."""
        if isinstance(main, str):
            return np.concatenate([self._before, self._some(main, "main")]), len(main)
        if self.chat is None:
            raise BadRow("messages, while the base has no chat template; expected texts")
        try:
            whole = self.chat.template.render([*main, {"role": "user", "content": ANSWER}])
        except BadConversation as error:
            raise BadRow(str(error)) from None
        if ANSWER not in whole.text:
            raise BadRow("the chat template does not write a question as it is")
        before = cut(whole, whole.text.rindex(ANSWER))
        shared, _ = self.chat.encode(before)
        for probe in PROBES:
            probed, _ = self.chat.encode(replace(before, text=before.text + probe))
            shared = shared[: common(shared, probed)]
        if not len(shared):
            raise BadRow("the chat template writes nothing before the question")
        return shared, len(before.text)

    def _chat_branch(self, number: int, row: BranchRow, branch: Turns, trunk: np.ndarray) -> Branch:
        assert self.chat is not None, "`_trunk` asks for a template"
        try:
            paths = self.chat.paths(_conversation(row, branch))
        except BadConversation as error:
            raise BadRow(f"main with branch {number}: {error}") from None
        if len(paths) > 1:
            expected = "expected one question and its answer"
            raise BadRow(f"branch {number} has answers to a history that the chat template writes anew, {expected}")
        edges = self.chat.sample(paths).edges
        ids = self._behind(number, paths[0].ids[: int(edges.source.max()) + 1], trunk)  # the stop token is predicted and not read
        return Branch(
            ids=ids, source=edges.source - np.int32(len(trunk)), target=edges.target, weight=edges.weight,
            characters=sum(answer.characters for answer in paths[0].answers),
        )  # fmt: skip

    def _behind(self, number: int, ids: np.ndarray, trunk: np.ndarray) -> np.ndarray:
        """The ids without the trunk they begin with."""
        if common(ids, trunk) < len(trunk):
            raise BadRow(f"the chat template writes main anew for branch {number}, or the tokenizer joins the two")
        return ids[len(trunk) :]

    def _opening(self, number: int, main: str | Sequence[Message], opening: Opening, trunk: np.ndarray) -> np.ndarray:
        if isinstance(main, str) == isinstance(opening, list):
            raise BadRow(f"branch {number} is a {'list of messages' if isinstance(opening, list) else 'text'}, unlike main")
        if isinstance(opening, str):
            return self._prompt(number, opening)
        if isinstance(opening, Begun):
            return np.append(np.int32(self.fork), self._encode(opening.text))
        assert self.chat is not None and not isinstance(main, str), "`_trunk` asks for a template"
        try:
            asked = self.chat.asked([*main, *opening], None, reasoning=False)
        except BadConversation as error:
            raise BadRow(f"main with branch {number}: {error}") from None
        return self._behind(number, self.chat.encode(asked)[0], trunk)


def tree_sample(tree: Tree, branches: Branches, *, numbers: Sequence[int] | None = None, train_on_main: bool = False) -> Sample:
    """The tree as a sample, its branches one after the other behind the trunk, each at the coordinate of its place among them.

    numbers: the branches that are read, in this order; None for all. train_on_main: also learn the trunk, without a stop token; a tree
    without branches is its trunk, which is learned with one.
    """
    chosen = [tree.branches[number] for number in (range(len(tree.branches)) if numbers is None else numbers)]
    trunk, sizes = len(tree.trunk), [len(branch.ids) for branch in chosen]
    starts = np.cumsum([trunk, *sizes])
    total = int(starts[-1])

    def column(of_trunk: np.ndarray, of_branches: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([of_trunk, *of_branches]).astype(np.int32)

    forest = Forest(
        ids=column(tree.trunk, [branch.ids for branch in chosen]),
        time=column(np.arange(trunk), [np.arange(trunk, trunk + size) for size in sizes]),
        branch=column(np.zeros(trunk, int), [np.full(size, branches.coordinate(number)) for number, size in enumerate(sizes)]),
        root=np.zeros(total, np.int32),
        end=column(np.full(trunk, total), [np.full(size, end) for size, end in zip(sizes, starts[1:], strict=True)]),
    )
    own = _trunk_edges(tree, stops=not tree.branches) if train_on_main or not tree.branches else _NO_EDGES
    placed = [
        np.where(branch.source < 0, trunk - 1, branch.source + start) for branch, start in zip(chosen, starts[:-1], strict=True)
    ]
    edges = Edges(
        source=column(own.source, placed), target=column(own.target, [branch.target for branch in chosen]),
        weight=np.concatenate([own.weight, *(branch.weight for branch in chosen)]).astype(np.float32),
    )  # fmt: skip
    return Sample(forest=forest, edges=edges)


def common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences begin with in common."""
    size = min(len(a), len(b))
    differs = np.flatnonzero(a[:size] != b[:size])
    return int(differs[0]) if len(differs) else size


_NO_EDGES = Edges(source=np.empty(0, np.int32), target=np.empty(0, np.int32), weight=np.empty(0, np.float32))


def _trunk_edges(tree: Tree, *, stops: bool) -> Edges:
    """Onto every token of the trunk from the one before it, and onto the stop token."""
    target = np.append(tree.trunk[1:], np.int32(tree.stop)) if stops else tree.trunk[1:]
    return Edges(source=np.arange(len(target), dtype=np.int32), target=target, weight=np.ones(len(target), np.float32))


def _conversation(row: BranchRow, branch: Turns) -> Conversation:
    """Main and a branch as one conversation, of which the branch's answers are learned."""
    assert not isinstance(row.main, str)
    return Conversation(
        messages=(*row.main, *branch.messages), weights=(*(0.0 for _ in row.main), *branch.weights), tools=None, origin=row.origin,
        source="", fingerprint=row.fingerprint,
    )  # fmt: skip


def _texts(row: BranchRow) -> list[str]:
    """All that the row says."""
    texts, messages = ([row.main], []) if isinstance(row.main, str) else ([], list(row.main))
    for branch in row.branches:
        if isinstance(branch, BranchText):
            texts += [branch.prompt, branch.answer]
        else:
            messages += branch.messages
    return [*texts, *(message.get("content", "") for message in messages)]


def _before(tokenizer: Tokenizer) -> np.ndarray:
    """int32: what the tokenizer puts before a text, such as a BOS token; mostly nothing."""
    encoded = tokenizer.encode("a")
    first = encoded.special_tokens_mask.index(0)
    return np.array(encoded.ids[:first], np.int32)


def _fork(tokenizer: Tokenizer, fork: str) -> int:
    """Its one token: an added token of that name, else what the text is encoded as."""
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    ids = [added[fork]] if fork in added else tokenizer.encode(fork, add_special_tokens=False).ids
    if len(ids) != 1:
        expected = "a text that is one token of the base, or the name of one of its special tokens"
        raise UserError("branches.fork", got=f"{fork!r}, which is {len(ids)} tokens", expected=expected, do="leave it at a line break")
    return ids[0]
