"""Every encoding gives its text back, every byte is accounted for, and the real awkward files are read right."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stylora.corpus.decode import BROKEN, Decoded, binary_reason, decode, line_end
from stylora.corpus.frequent import SIMPLIFIED, TRADITIONAL
from stylora.corpus.linewise import LINEWISE

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
MESSY = CORPUS / "messy"

NOVEL = (
    "话说那日天色将晚，店中走进一个青衣少年，腰间悬着一口长剑。掌柜的抬头一看，忙陪笑道：“客官可是要住店？”\n"
    "少年点了点头，把一锭银子放在桌上，只说了四个字：“清静一些。”\n"
)
TRADITIONAL_NOVEL = (
    "話說那日天色將晚，店中走進一個青衣少年，腰間懸著一口長劍。掌櫃的抬頭一看，忙陪笑道：「客官可是要住店？」\n"
    "少年點了點頭，把一錠銀子放在桌上，只說了四個字：「清靜一些。」\n"
)
FRENCH = "Il était une fois un roi qui n’aimait pas l’été ; sa fille, élevée à la cour, préférait les forêts.\n"


def prose(characters: str, min_size: int = 12) -> st.SearchStrategy[str]:
    """Sentences of frequent characters with the punctuation, digits, letters and line ends of real text."""
    word = st.text(alphabet=characters[:400], min_size=2, max_size=12)
    end = st.sampled_from(["，", "。", "。\n", "！”\r\n", "3.5 km", " (ok) ", "：“", "\n\n　　"])
    sentences = st.lists(st.tuples(word, end), min_size=min_size // 2, max_size=30)
    return sentences.map(lambda parts: "".join(a + b for a, b in parts))


def assert_covered(data: bytes, decoded: Decoded) -> None:
    """Walk the bytes of a text in one encoding: every one belongs to a decoded piece or to a recorded run."""
    codec = {name: codec for codec, name in LINEWISE.items()}.get(decoded.encoding, decoded.encoding)
    at = 0
    for i, piece in enumerate(decoded.text.split("\ufffd")):
        if i:
            start, run = decoded.undecoded[i - 1]
            assert start == at and data[at : at + len(run)] == run
            at += len(run)
        n_bytes = len(piece.encode(codec))  # Big5 has two codes for a few characters, so only the length is asked for
        assert data[at : at + n_bytes].decode(codec) == piece
        at += n_bytes
    assert at == len(data)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16-le", "utf-16-be"])
@given(text=prose(SIMPLIFIED))
@settings(max_examples=30, deadline=None)
def test_simplified_round_trip(encoding: str, text: str) -> None:
    decoded = decode(text.encode(encoding))
    assert (decoded.text, decoded.encoding, decoded.undecoded) == (text, encoding, [])


@pytest.mark.parametrize(("codec", "name"), [("cp950", "big5"), ("gb18030", "gb18030"), ("utf-16-le", "utf-16-le")])
@given(text=prose(TRADITIONAL))
@settings(max_examples=30, deadline=None)
def test_traditional_round_trip(codec: str, name: str, text: str) -> None:
    data = text.replace("“", "「").replace("”", "」").encode(codec, "strict")
    decoded = decode(data)
    assert decoded.text.encode(codec) == data and decoded.encoding == name and decoded.undecoded == []


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (NOVEL, "utf-8", "utf-8"), (NOVEL, "utf-8-sig", "utf-8"), (NOVEL, "gbk", "gb18030"),
        (NOVEL, "gb2312", "gb18030"),
        (NOVEL, "utf-16", "utf-16-le"), (NOVEL, "utf-16-le", "utf-16-le"), (NOVEL, "utf-16-be", "utf-16-be"),
        (TRADITIONAL_NOVEL, "big5", "big5"), (TRADITIONAL_NOVEL + "佢嘅嘢喺邊度？\n" * 3, "big5hkscs", "big5-hkscs"),
        (TRADITIONAL_NOVEL, "utf-16-le", "utf-16-le"),
        (FRENCH, "cp1252", "cp1252"), (FRENCH, "utf-8", "utf-8"), (FRENCH, "utf-16-le", "utf-16-le"),
        ("Once upon a time there was a king.\n", "ascii", "utf-8"),
        ("Once upon a time there was a king.\n", "utf-16-be", "utf-16-be"),
        (NOVEL.replace("长剑", "长剑\U00020000"), "gb18030", "gb18030"),
    ],
)  # fmt: skip
def test_known_texts(text: str, codec: str, name: str) -> None:
    decoded = decode(text.encode(codec))
    assert (decoded.text, decoded.encoding, decoded.undecoded) == (text, name, [])
    assert decoded.confidence > 0.8 and decoded.why


def test_big_endian_byte_order_mark() -> None:
    decoded = decode(b"\xfe\xff" + NOVEL.encode("utf-16-be"))
    assert (decoded.text, decoded.encoding, decoded.why) == (NOVEL, "utf-16-be", "byte order mark")


def test_a_byte_order_mark_that_the_text_contradicts_is_two_bad_bytes() -> None:
    decoded = decode(b"\xff\xfe" + NOVEL.encode())
    assert (decoded.text, decoded.encoding) == ("\ufffd" + NOVEL, "utf-8")
    assert decoded.undecoded == [(0, b"\xff\xfe")]


@pytest.mark.parametrize("codecs", [("utf-8", "gb18030"), ("gb18030", "utf-8"), ("utf-8", "big5"), ("gb18030", "big5")])
@pytest.mark.parametrize("inside_a_line", [False, True])
def test_a_change_half_way(codecs: tuple[str, str], inside_a_line: bool) -> None:
    first, second = (TRADITIONAL_NOVEL if c == "big5" else NOVEL for c in codecs)
    if inside_a_line:
        first = first * 3 + first[:40]
    data = first.encode(codecs[0]) + second.encode(codecs[1])
    decoded = decode(data)
    assert decoded.text == first + second
    assert decoded.encoding == "+".join(codecs) and decoded.undecoded == []
    assert f"from byte {len(first.encode(codecs[0]))} on" in decoded.why


def test_three_encodings_in_one_file() -> None:
    data = NOVEL.encode() + NOVEL.encode("gb18030") + NOVEL.encode()
    decoded = decode(data)
    assert decoded.text == 3 * NOVEL and decoded.encoding == "utf-8+gb18030"


@pytest.mark.parametrize("junk", [b"\xff", b"\xfe\xff", b"\x80", b"\0\0\0", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_a_bad_run_in_utf8_is_one_mark_with_its_offset_and_bytes(junk: bytes) -> None:
    before, after = (NOVEL * 2).encode(), NOVEL.encode()
    decoded = decode(before + junk + after)
    assert decoded.text == NOVEL * 2 + "\ufffd" + NOVEL
    assert decoded.undecoded == [(len(before), junk)] and decoded.encoding == "utf-8"


@pytest.mark.parametrize("encoding", ["gb18030", "cp950"])
def test_bad_bytes_in_a_legacy_encoding(encoding: str) -> None:
    text = NOVEL if encoding == "gb18030" else TRADITIONAL_NOVEL
    before = text.encode(encoding)
    decoded = decode(before + b"\xff\xff" + before + b"\xc4")  # a lead byte alone at the end
    assert decoded.text == text + "\ufffd" + text + "\ufffd"
    assert decoded.undecoded == [(len(before), b"\xff\xff"), (2 * len(before) + 2, b"\xc4")]


def test_broken_utf16() -> None:
    head = NOVEL.encode("utf-16-le")
    decoded = decode(b"\xff\xfe" + head + b"\x00\xd8" + head + b"\x4e")  # half a pair; half a character
    assert decoded.text == NOVEL + "\ufffd" + NOVEL + "\ufffd"
    assert decoded.undecoded == [(2 + len(head), b"\x00\xd8"), (2 * len(head) + 4, b"\x4e")]


@given(data=st.binary(max_size=300))
@example(b"\0")
@example(b"\xff\xfe\xff")
@example(b"\x81\x30\x81")
@example(b"\r")
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_are_all_accounted_for(data: bytes) -> None:
    decoded = decode(data)
    assert BROKEN.search(decoded.text) is None
    assert 0 <= decoded.confidence <= 1
    last = -1
    for at, run in decoded.undecoded:
        assert run and data[at : at + len(run)] == run and at > last
        last = at + len(run) - 1
    literal = decoded.text.count("\ufffd")
    assert literal >= len(decoded.undecoded)
    binary_reason(data)
    if "+" not in decoded.encoding and literal == len(decoded.undecoded) and b"\xff\xfe" != data[:2] != b"\xfe\xff":
        assume(not data.startswith((b"\xef\xbb\xbf", b"\x84\x31\x95\x33")))
        assert_covered(data, decoded)


@given(
    text=prose(SIMPLIFIED, min_size=40),
    cuts=st.lists(st.integers(0, 10_000), max_size=5),
    junk=st.sampled_from([b"\xff", b"\xfe\xff", b"\0", b"\x80"]),
)
@settings(max_examples=50, deadline=None)
def test_dirty_utf8_is_covered_and_stays_utf8(text: str, cuts: list[int], junk: bytes) -> None:
    data = text.encode()
    for cut in cuts:
        data = data[: cut % len(data)] + junk + data[cut % len(data) :]
    decoded = decode(data)
    assert decoded.encoding == "utf-8"
    assert_covered(data, decoded)


def test_binary_reason() -> None:
    noise = random.Random(0).randbytes(5000)
    assert binary_reason(noise) is not None and binary_reason(b"\0" * 100) == "only NUL bytes"
    assert binary_reason(b"%PDF-1.7 ...") == "a PDF" and binary_reason(b"PK\x03\x04....") == "a ZIP archive"
    for encoding in ("utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-16-be"):
        assert binary_reason(NOVEL.encode(encoding)) is None
    assert binary_reason("plain English".encode("utf-16-le")) is None
    assert binary_reason(NOVEL.encode() + b"\0" * 4096) is None  # a broken download
    assert binary_reason(b"") is None


@given(text=prose(SIMPLIFIED, min_size=8), share=st.floats(0.2, 1.0))
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16-le", "utf-16-be"])
@settings(max_examples=30, deadline=None)
def test_line_end_cuts_so_that_both_sides_decode(encoding: str, text: str, share: float) -> None:
    data = text.encode(encoding)
    block = data[: max(40, int(share * len(data)))]
    cut = line_end(block)
    assert 0 <= cut <= len(block)
    assert (data[:cut].decode(encoding) + data[cut:].decode(encoding)) == text


def test_valid_utf8_takes_milliseconds() -> None:
    data = (NOVEL * 4000).encode()[:1_000_000]
    data = data.decode(errors="ignore").encode()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        decode(data)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01, "10 ms per MB"


# ---------------------------------------------------------------------------------------------------- the real files

EXPECTED = {
    "01": "gb18030", "02": "utf-16-le", "03": "utf-8", "04": "utf-8", "05": "utf-8", "06": "utf-8", "07": "utf-8",
    "08": "utf-8", "09": "utf-8", "10": "utf-8", "11": "utf-8", "12": "big5", "13": "utf-8", "14": "utf-8",
    "15": "utf-16-le", "16": "utf-8+gb18030", "17": "utf-8",
}  # fmt: skip


def messy(number: str) -> bytes:
    if not MESSY.is_dir():
        pytest.skip("the corpus of awkward files is not here")
    path = next(MESSY.glob(f"{number}[ _]*"))
    return next(p for p in [path, *sorted(path.rglob("*"))] if p.is_file()).read_bytes()


@pytest.mark.parametrize("number", EXPECTED)
def test_messy_files(number: str) -> None:
    data = messy(number)
    decoded = decode(data)
    assert decoded.encoding == EXPECTED[number] and binary_reason(data) is None
    assert decoded.confidence > 0.99
    assert bool(decoded.undecoded) == (number == "06")


def test_messy_text_is_the_text_of_its_source() -> None:
    data = messy("01")
    assert decode(data).text == data.decode("gb18030")
    assert decode(messy("12")).text == messy("12").decode("cp950")
    assert decode(messy("02")).text == messy("02").decode("utf-16")
    clean = (CORPUS / "style" / "五鼠闹东京.txt").read_text(encoding="utf-8")
    assert clean.startswith(decode(messy("16")).text.rstrip("\n"))


def test_messy_06_names_its_fourteen_runs() -> None:
    data = messy("06")
    decoded = decode(data)
    starts = [1385, 13050, 16871, 24351, 28366, 32346, 45829, 50552, 52149, 52578, 56533, 64336, 68745, 72325]
    assert [at for at, _ in decoded.undecoded] == starts
    runs = "e6ac e5a6feffbb e900bca0 efbc008c 00 9f feff 80 efeda080bc8c e4feffbab2 e4baeda080a4 e5a4f888808080a7"
    assert [run.hex() for _, run in decoded.undecoded] == [*runs.split(), "e5b7eda080ae", "bd"]
    assert decoded.text.count("\ufffd") == 14
    assert_covered(data, decoded)


@pytest.mark.parametrize("folder", ["style", "general"])
def test_a_hundred_characters_of_any_book_are_enough(folder: str) -> None:
    files = sorted((CORPUS / folder).glob("*.txt"))
    if not files:
        pytest.skip("the corpus is not here")
    rng = random.Random(7)
    for file in files:
        text = file.read_text(encoding="utf-8")
        for codec in ("gb18030", "utf-16-le", "utf-16-be"):
            at = rng.randrange(len(text) - 100)
            passage = text[at : at + 100]
            assert decode(passage.encode(codec)).text == passage, (file.name, at, codec)
