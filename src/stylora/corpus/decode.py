"""Bytes -> text: which encoding they are in, how sure that is, and which bytes could not be read.

The one question asked of every encoding is *what does it cost to write these bytes as text in it*: the negative log
probability, in nats, under a unigram model of Chinese with ASCII and Western passages. The right encoding spells
Chinese in its few hundred frequent characters (7 nats each); a wrong one in rare characters, odd scripts and
private-use code points. The encodings of a file that changes half-way are the cheapest path through its lines, paying
a toll for every change (Viterbi, 1967). Valid UTF-8 is taken at its word without any of this.

Nothing is dropped: a run of bytes that cannot be decoded stands as one U+FFFD and is recorded with its offset.
Knows no files and no HTML, and leaves line ends as they are.

Related: charset-normalizer (https://github.com/jawah/charset_normalizer), which guesses one encoding per file;
PEP 383 (`surrogateescape`), which keeps the undecodable bytes in place until they are counted.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

LINEWISE = {"utf-8": "utf-8", "gb18030": "gb18030", "cp950": "big5", "big5hkscs": "big5-hkscs", "cp1252": "cp1252"}
"""Codec -> its name in reports, in the order that decides ties. None of them uses \\n or \\r inside a character."""
WIDE = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}

SWITCH_COST = 20.0  # nats for a change of encoding between two lines: three frequent characters misread
BOM_GAIN = 50.0  # nats by which a UTF-16 byte order mark speaks for UTF-16: half a line of other evidence outweighs it
SAMPLE = 1 << 16  # bytes; enough to tell UTF-16 and binaries, which do not change half-way
BROKEN = re.compile("[\0\ud800-\udfff]+")  # what the error handlers leave of bytes that are no text; NUL is none either
CONTROL = bytes(sorted(set(range(32)) - set(b"\t\n\v\f\r\x1b")))  # without ESC: logs carry terminal colours
MAGIC = {
    b"PK\x03\x04": "a ZIP archive",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x1f\x8b": "gzip data",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\xd0\xcf\x11\xe0": "an old Microsoft Office document",
    b"{\\rtf": "an RTF document",
    b"SQLite format 3\0": "an SQLite database",
    b"\x7fELF": "a program",
}

SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所"
    "然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与"
    "长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己"
    "制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系"
    "气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社"
    "便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉"
    "格望觉术领共确传师观清今切院让识候带导争运笔曰乃皆亦吾汝吃喝哥弟姐妹父母爷爹娘妈夫妻官府店楼房屋墙刀剑枪拳脚"
    "酒茶饭银钱拿叫请坐站笑哭怒喊答骂杀救追跑跳飞转忽连忙急快慢轻低早晚夜晨午刻刚岂敢肯愿欲须令罢呢吗吧啊呀哪谁怎"
    "彼某每另曾未旁左右往离近远深浅黑红青黄花草树木石火土风云雨雪江河湖船车城村庄街桥寺庙僧贼盗英雄侠客武功招兵帅"
    "臣君皇帝爱恨怕喜悲苦乐病伤血泪梦醒睡星亲友朋弃留送迎买卖借找寻遇讲诉句字写读念语音响静双单半千百六七八九零亿"
    "初末号层串阵片块支座匹群丝毫微细粗厚薄满虚假伪纯善恶奇怪妖魔鬼仙佛"
)
TRADITIONAL = (
    "這個們來為國說時會對過後裡裏從還進開現當沒動學經麼種發樣長機實軍無與間點業兩關將問題應戰頭體見產話給兒東聲員"
    "論處義幾認條係氣爾變總電數報結場計資統區隊決馬書聽達強難權設記張該規萬覺術領確傳師觀讓識帶導爭運筆爺媽樓銀錢"
    "請殺飛轉卻連罵豈須嗎誰遠淺紅黃樹風雲車莊橋廟賊俠帥愛樂傷夢親買賣尋講訴寫讀語響靜雙單億號層陣塊滿虛偽純惡歲於"
    "著並臺灣劉陳楊趙孫吳鄭華黨縣鄉鎮類龍鳥魚門"
)
PUNCTUATION = "\u3000、。〈〉《》「」『』【】〔〕！（），：；？—…·“”‘’～"
WESTERN = "éèêëàâäáãçñöóôòøåüúùûíîïßœæ–«»°£©®"
FREQUENT = frozenset(SIMPLIFIED + TRADITIONAL + PUNCTUATION + WESTERN)
BYTE_COST = 12.0  # nats for one byte that is no text


def _unigram_costs() -> np.ndarray:
    """`[65536]` nats per code point of the basic plane: -log(share of the class / characters in it), rounded.

    The classes' shares in Chinese prose: frequent characters 3/4, other characters of everyday use (the first level of
    GB 2312 or of Big5) 1/5, the rest a few per cent.
    """
    cost = np.full(0x10000, 16.0)  # scripts and symbols that Chinese and Western text rarely uses
    cost[0x20:0x7F] = cost[[0x09, 0x0A, 0x0D]] = 3.5
    cost[:0x09] = cost[0x0E:0x20] = cost[0x7F] = cost[0] = BYTE_COST
    cost[0xA0:0x100] = 10.0
    cost[0x3000:0x3100] = cost[0x2000:0x2100] = cost[0x2460:0x2580] = cost[0xFF01:0xFF5F] = 10.0
    cost[0x4E00:0xA000] = 13.0
    everyday = [bytes([a, b]) for a in range(0xB0, 0xD8) for b in range(0xA1, 0xFF)]
    cost[[ord(c) for c in b"".join(everyday).decode("gb2312", "ignore")]] = 10.0
    everyday = [bytes([a, b]) for a in range(0xA4, 0xC7) for b in (*range(0x40, 0x7F), *range(0xA1, 0xFF))]
    cost[[ord(c) for c in b"".join(everyday).decode("cp950", "ignore") if c > "\u4e00"]] = 10.0
    cost[[ord(c) for c in FREQUENT]] = 7.0
    cost[0xE000:0xF900] = 20.0  # private use
    cost[[0xFEFF, 0xFFFD]] = BYTE_COST  # a byte order mark out of place; what could not be decoded
    return cost


COST = _unigram_costs()
IS_FREQUENT = np.zeros(0x10000, bool)
IS_FREQUENT[[ord(c) for c in FREQUENT]] = True


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The text of some bytes, and how it was come by.

    text: byte order mark removed; every undecodable run of bytes is one U+FFFD
    encoding: `utf-8`, `gb18030`, `big5`, `big5-hkscs`, `cp1252`, `utf-16-le`, `utf-16-be`, or several joined by `+`
    confidence: 0..1
    why: the evidence in one clause
    undecoded: `(offset, bytes)` of every undecodable run, in order; NUL counts as undecodable
    """

    text: str
    encoding: str
    confidence: float
    why: str
    undecoded: list[tuple[int, bytes]] = field(default_factory=list)


def decode(data: bytes) -> Decoded:
    """Decode bytes of unknown encoding. Never raises: what cannot be read is recorded in `undecoded`."""
    marked = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = str(memoryview(data)[marked:], "utf-8")
    except UnicodeDecodeError:
        order = _wide_order(data)
        return _decode_linewise(data) if order is None else _decode_wide(data, order)
    why = "byte order mark" if marked else "valid UTF-8"
    if "\0" not in text:
        return Decoded(text=text, encoding="utf-8", confidence=1.0, why=why)
    if (order := _wide_order(data)) is not None:  # English in UTF-16 is valid UTF-8 with a NUL after every letter
        return _decode_wide(data, order)
    text, undecoded = _record(text, data, marked, "utf-8")
    return Decoded(text=text, encoding="utf-8", confidence=1.0, why=f"{why} but for NUL", undecoded=undecoded)


def binary_reason(data: bytes) -> str | None:
    """Why these bytes are no text at all ("a PDF", "31 % control bytes"), or None where they may be text."""
    for magic, name in MAGIC.items():
        if data.startswith(magic):
            return name
    sample = data[:SAMPLE]
    if sample and not sample.strip(b"\0"):
        return "only NUL bytes"
    sample = re.sub(rb"\0+", b"\0", sample)  # a text padded with zeros, as broken downloads are, is still a text
    share = (len(sample) - len(sample.translate(None, CONTROL))) / max(1, len(sample))
    if share <= 0.05 or _wide_order(data) is not None:
        return None
    return f"{100 * share:.0f} % control bytes"


def frequent_share(text: str) -> float:
    """Frequent characters among all that are not ASCII; 1 where there are none."""
    codes = _codes(text)
    beyond = int((codes > 0x7F).sum())
    return int(IS_FREQUENT[codes].sum()) / beyond if beyond else 1.0


def line_end(block: bytes) -> int:
    """Where to cut a block of a larger file so that both sides can be decoded by themselves; 0 where that is nowhere.

    After the last line end, or, in a block of UTF-8 without any, before its last character.
    """
    if (order := _wide_order(block)) is not None:
        units = np.frombuffer(block, "<u2" if order == "utf-16-le" else ">u2", count=len(block) // 2)
        ends = np.flatnonzero(units == 0x0A) + 1
        split_pair = units[-1] >> 10 == 0xD800 >> 10  # a high surrogate, whose low one comes with the next block
        return 2 * int(ends[-1] if ends.size else len(units) - split_pair)
    # a \r at the very end is left alone: its \n may come with the next block
    if end := max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1:
        return end
    try:
        codecs.utf_8_decode(block[:SAMPLE], "strict", False)
    except UnicodeDecodeError:
        return 0
    return max((at for at in range(max(0, len(block) - 4), len(block)) if block[at] & 0xC0 != 0x80), default=0)


# ------------------------------------------------------------------------------------------------ UTF-16, whole files


def _wide_order(data: bytes) -> str | None:
    """The UTF-16 that a sample is cheaper to write in than in any encoding of single bytes; None where neither is."""
    sample = data[: min(SAMPLE, len(data) // 2 * 2)]
    if not sample:
        return None
    costs = {}
    for order, mark in WIDE.items():
        codes = _codes(sample.decode(order, "surrogatepass"))
        broken = (codes == 0) | ((codes >= 0xD800) & (codes < 0xE000))
        costs[order] = float(COST[codes].sum() + BYTE_COST * broken.sum())  # a broken unit is two broken bytes
        costs[order] -= BOM_GAIN if sample.startswith(mark) else 0
    best = min(costs, key=costs.__getitem__)
    linewise = float(np.min([_line_costs(sample, codec) for codec in LINEWISE], axis=0).sum())
    return best if costs[best] < linewise else None


def _decode_wide(data: bytes, order: str) -> Decoded:
    marked = 2 if data.startswith(WIDE[order]) else 0
    even = len(data) // 2 * 2
    text = data[marked:even].decode(order, "surrogatepass")
    if even < len(data):
        text += "\ud800"  # half a character at the end is a broken one
    text, undecoded = _record(text, data, marked, order)
    if marked:
        return Decoded(text=text, encoding=order, confidence=1.0, why="byte order mark", undecoded=undecoded)
    share = frequent_share(text)
    why = f"share of frequent characters {share:.2f} as UTF-16"
    return Decoded(text=text, encoding=order, confidence=round(min(1.0, 2 * share), 3), why=why, undecoded=undecoded)


# ------------------------------------------------------------------------------ encodings of single bytes, line by line


def _decode_linewise(data: bytes) -> Decoded:
    costs = np.stack([_line_costs(data, codec) for codec in LINEWISE])
    path = _cheapest_path(costs)
    texts, undecoded, segments = [], [], _segments(data, path)
    for codec, start, end in segments:
        part = data[start:end]
        text, runs = _record(part.decode(codec, "surrogateescape"), part, 0, codec)
        texts.append(text)
        undecoded += [(start + at, run) for at, run in runs]
    text = "".join(texts).removeprefix("\ufeff")
    names = list(dict.fromkeys(LINEWISE[codec] for codec, _, _ in segments))
    confidence, why = _judge(text, data, undecoded, segments, costs, path)
    return Decoded(text=text, encoding="+".join(names), confidence=confidence, why=why, undecoded=undecoded)


def _line_costs(data: bytes, codec: str) -> np.ndarray:
    """`[L]` nats it takes to write each line in `codec`; a line ends after every `\\n` and every `\\r`."""
    codes = _codes(data.decode(codec, "replace"))  # what cannot be decoded costs as U+FFFD
    return np.add.reduceat(COST[codes], _line_starts(codes))


def _line_starts(units: np.ndarray) -> np.ndarray:
    """`[L]` where lines begin among bytes or code points."""
    starts = np.flatnonzero((units == 0x0A) | (units == 0x0D)) + 1
    return np.concatenate([np.zeros(min(1, len(units)), np.int64), starts[starts < len(units)]])


def _codes(text: str) -> np.ndarray:
    """Code points; those beyond the basic plane, which are all rare, as U+FFFF."""
    return np.minimum(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), 0xFFFF)


def _cheapest_path(costs: np.ndarray) -> np.ndarray:
    """`costs [C, L]` -> `[L]`, the codec of every line, cheapest in sum with SWITCH_COST for every change (Viterbi)."""
    telling = np.flatnonzero(costs.max(axis=0) > costs.min(axis=0))  # pure ASCII is the same in all of them
    total, best = np.zeros(len(costs)), int(costs.sum(axis=1).argmin())
    if not (costs[:, telling].argmin(axis=0) != best).any():
        return np.full(costs.shape[1], best)
    back = np.empty((len(telling), len(costs)), np.int8)
    stay = np.arange(len(costs))
    for i, line in enumerate(telling):
        cheapest = int(total.argmin())
        switch = total > total[cheapest] + SWITCH_COST
        back[i] = np.where(switch, cheapest, stay)
        total = np.minimum(total, total[cheapest] + SWITCH_COST) + costs[:, line]
    path, codec, upper = np.empty(costs.shape[1], np.int8), int(total.argmin()), costs.shape[1]
    for i in range(len(telling) - 1, -1, -1):
        path[telling[i] : upper] = codec
        codec, upper = int(back[i, codec]), int(telling[i])
    path[:upper] = path[upper]
    return path


def _segments(data: bytes, path: np.ndarray) -> list[tuple[str, int, int]]:
    """`(codec, start, end)` in bytes, one per run of lines in one encoding; the change may fall inside a line."""
    lines = [*_line_starts(np.frombuffer(data, np.uint8)).tolist(), len(data)]
    assert len(lines) == len(path) + 1, "a codec swallowed a line end"
    codecs_of = [list(LINEWISE)[k] for k in path.tolist()]
    bounds = [0]
    for line in (np.flatnonzero(np.diff(path)) + 1).tolist():
        low = max(bounds[-1], lines[line - 1])
        bounds.append(_change(data, low, lines[line + 1], codecs_of[line - 1], codecs_of[line]))
    if len(bounds) == 1:
        return [(codecs_of[0], 0, len(data))]

    def codec_of(part: bytes) -> str:  # asked again: a line shared with the neighbour spoke for the wrong Big5
        return min(LINEWISE, key=lambda codec: float(_line_costs(part, codec).sum()))

    return [(codec_of(data[a:b]), a, b) for a, b in pairwise([*bounds, len(data)]) if a < b]


def _change(data: bytes, low: int, high: int, before: str, after: str) -> int:
    """The byte at which `data[low:high]`, two lines, goes over from one encoding to the other: a narrowing grid."""
    window, offset = data[low:high], low

    def cost(at: int) -> tuple[float, int]:  # of equal ones, the last: ASCII stays with what it follows
        first, second = window[: at - offset], window[at - offset :]
        return float(_line_costs(first, before).sum() + _line_costs(second, after).sum()), -at

    while high - low > 64:
        step = (high - low) // 16
        at = min(range(low, high + 1, step), key=cost)
        low, high = max(low, at - step), min(high, at + step)
    return min(range(low, high + 1), key=cost)


def _record(text: str, data: bytes, at: int, codec: str) -> tuple[str, list[tuple[int, bytes]]]:
    """Replace every run of broken characters by one U+FFFD and find the bytes it stands for.

    text: `data[at:]`, decoded with the error handler that keeps what is broken
    """
    errors, last, runs = "surrogatepass" if codec in WIDE else "surrogateescape", 0, []
    for match in BROKEN.finditer(text):
        at += len(text[last : match.start()].encode(codec, errors))
        n = len(match[0].encode(codec, errors))
        runs.append((at, data[at : at + n]))
        at, last = at + n, match.end()
    return BROKEN.sub("\ufffd", text), runs


def _judge(
    text: str, data: bytes, undecoded: list[tuple[int, bytes]], segments: list[tuple[str, int, int]],
    costs: np.ndarray, path: np.ndarray,
) -> tuple[float, str]:  # fmt: skip
    """Confidence, and the evidence in one clause, for a line-wise reading."""
    used = list(dict.fromkeys(codec for codec, _, _ in segments))
    # the two Big5s differ in rare characters only, so one does not speak against the other
    big5 = {"cp950", "big5hkscs"}
    others = [c for c in LINEWISE if c not in used and not (c in big5 and big5 & set(used))]
    sums = dict(zip(LINEWISE, costs.sum(axis=1).tolist(), strict=True))
    rival = min(others, key=sums.__getitem__)
    # bytes are not independent witnesses, as a unigram model takes them to be: hence a tenth of the nats
    margin = (sums[rival] - float(costs[path, np.arange(len(path))].sum())) / 10
    certain = 1 / (1 + math.exp(-max(-50.0, min(50.0, margin))))
    n_bad = sum(len(run) for _, run in undecoded)
    share = frequent_share(text)
    if len(used) > 1:
        codec, start, _ = next(segment for segment in segments if segment[0] != used[0])
        return round(certain * min(1.0, 2 * share), 3), f"{LINEWISE[codec]} from byte {start} on"
    if used == ["utf-8"]:
        return round(certain * (1 - n_bad / len(data)), 3), f"valid UTF-8 but for {n_bad} of {len(data)} bytes"
    against = frequent_share(BROKEN.sub("\ufffd", data[:SAMPLE].decode(rival, "surrogateescape")))
    why = f"share of frequent characters {share:.2f} against {against:.2f} as {LINEWISE[rival]}"
    return round(certain * min(1.0, 2 * share), 3), why  # below a half it is no good text, whatever its rivals are
