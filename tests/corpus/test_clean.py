"""Cleaning: every step against what it is about and against what it must leave alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.corpus.adverts import suspects, without_adverts
from stylora.corpus.clean import LONG_LINE, Cleaned, Cleaning, SeenParagraphs, clean
from stylora.corpus.duplicates import SHORTEST, signatures_of

CORPUS = Path(__file__).parents[2] / ".." / "shared" / "corpus"
needs_corpus = pytest.mark.skipif(not CORPUS.exists(), reason="the measuring corpus is not here")
STEPS = list(Cleaning.model_fields)

# Made up, in three rounds, each before the rules had seen it.
ADVERTS = """\
手机阅读请访问m.biquge88.com
本书来自www.txt80.net
一秒记住【笔趣阁】，精彩小说无弹窗免费阅读！
天才一秒记住本站地址：biquge.cc。手机版阅读网址：m.biquge.cc
无弹窗广告小说阅读网
更多好看的小说尽在某某书屋
TXT全集下载，请到www.abc.com
求月票，求推荐票！
求收藏！求推荐！各位大大支持一下！
请记住本站域名：www.xiaoshuo.org
QQ群：123456789，欢迎书友加入
书友交流群 567891234 欢迎加入！
关注微信公众号：某某文学，抢先看最新章节
ｗｗｗ．ｂｉｑｕｇｅ．ｃｏｍ
最新章节请到ｗｗｗ．ｑｉｄｉａｎ．ｃｏｍ阅读
w w w . x x b o o k . c o m
（本章未完，请翻页）
（本章完）
本章完
未完待续
------
============
｛起点中文网首发｝
【某某书院首发，更新最快】
正文
作者有话说：明天入V，求首订。
PS：昨天断更了，抱歉，今天补上三更。
ps:感谢“风清扬”同学的打赏，第二更送上！
第三更！求推荐票！
感谢书友“青山”投出的两张月票！
喜欢本书的朋友请加入书架，投推荐票支持作者！
加入书签 | 返回书目 | 上一章 | 下一章
上一页 返回目录 下一页
&nbsp;&nbsp;&nbsp;&nbsp;最快更新，请收藏本站
<a href="/book/123.html">上一章</a>
本书由网友上传至某某小说网，版权归原作者所有
声明：本书仅供试读，请于下载后24小时内删除，支持正版
内容更新后，请重新刷新页面，即可获取最新更新！
章节错误，点此举报
欢迎广大书友光临阅读，最新、最快、最火的连载作品尽在起点原创！
看最新最全的小说就上某某小说网
http://www.aabbcc.com/book/1/2.html
小说网址：www.uukanshu.com
喜欢请大家收藏：(www.77xsw.la)剑侠传77小说网更新速度最快。
本章节未完，点击下一页继续阅读
手机用户请到m.qidian.com阅读。
下载某某小说APP，免费看全本
请各位把本站加入书签，防走失
作者有话说
新书上传，求收藏，求推荐票，求一切支持！
本书首发于www.zongheng.com，请支持正版阅读
最新网址：www.ddxs.com
手机站全新改版升级地址：http://wap.xs.com，数据和书签与电脑站同步
新笔趣阁最快更新，无广告
请大家记住网站新域名：www.xbiquge.la
【最新章节阅读】
更多精彩小说请访问www.xiaoshuo.com
txt电子书下载地址：http://www.txtbook.com/12.html
本书下载于www.jjwxc.cc，仅供个人学习
【本章未完，点击下一页继续阅读】
-=-=-=-=-=-=-
PS：求月票、求推荐票！！！
感谢“云中鹤”打赏100起点币，感谢支持！
今日三更完毕，求收藏！
喜欢本文的亲请收藏哦
加群讨论：87654321
书友群：一二三四五 QQ 群号 345678901
看小说到某某阅读网
ＷＷＷ．ＢＩＱＵＧＥ．ＣＯＭ首发
w w w.b i q u g e.c o m
小说下载尽在http://www.80txt.com---书香门第【小草】整理
附：【本作品来自互联网,本人不做任何负责】内容版权归作者所有。
本文由 小说吧 收集整理
（未完待续。）
(未完待续，请搜索飘天文学，小说更好更新更快!)
起点中文网www.qidian.com欢迎广大书友光临阅读，最新、最快、最火的连载作品尽在起点原创！
手机用户可访问m.sodu.cc观看小说
如果您觉得本书还不错，请收藏本站
请到 www.abc.net 看最新章节
最新全本：、、、、、、、、、、
本书最新免费章节请访问
记住我们的网址：abc.com
百度搜索“某某小说网”看最新章节
关注公众号 xyz123 阅读后续
微信搜索公众号【书荒救星】
求订阅！求月票！！
作者的话：今天晚了点，不好意思
天才壹秒記住『笔趣阁』
@无限好文，尽在晋江文学城
本站所有小说均由网友上传
手机看书，尽在m.kanshu8.com
小说《剑侠传》最新章节全文免费阅读
百度一下“飘天文学网”第一时间看最新章节
喜欢剑侠传请大家收藏：(www.bqg99.com)剑侠传笔趣阁更新速度全网最快
感谢书友"夜雨"的月票支持
今天就一更，抱歉了各位，明天补上
新书求收藏求推荐
公告：本站已更换域名www.abc123.com
请勿开启浏览器阅读模式，否则将导致章节内容缺失
最快更新剑侠传最新章节！
读者QQ群：234567890
加微信 abc12345 领取全本
TXT下载 www.txtnovel.net
（三更求月票）
""".splitlines()
PROSE = """\
他打开网站，看到首页上推荐的小说，便点了收藏。
这款手机首发当天便卖出十万台。
教练公布了首发阵容，他不在其中。
【首发阵容】门将：李雷
更多内容请访问官方网站https://pytorch.org查看文档。
可以访问 www.python.org 下载安装包。
他在起点写小说，求月票求得嗓子都哑了。
“求收藏，求推荐票！”主播在直播间里大喊。
书友群里有人问：今天更新了吗？
他把这幅画收藏了三十年，从不示人。
三更时分，第二更的梆子刚敲过，院里静悄悄的。
第三更天，他悄悄起身。
感谢大家的支持，我们一定继续努力。
2019年3月5日，公司成立于北京。
电话是13800138000，请尽快联系。
He said: “Visit us at the office.” Then he left.
The package can be installed with pip install example.com-tools.
请记住，学习率过大时损失会发散。
请稍后再试，或者点击下一步继续安装。
这个网站的最新章节还没有更新。
他一秒钟都没有犹豫，纵身跳下。
本章介绍如何训练一个循环神经网络。
本书的代码可以在 https://github.com/d2l-ai 上找到。
本章完整地介绍了注意力机制。
书中自有黄金屋，书中自有颜如玉。
老爷请到书院用茶。
她喜欢这本书，推荐给了所有的朋友。
……
***
“……”
——
- 第一项：访问控制
* 更新数据库
请访问者在门口登记。
用户可以免费下载该软件，并通过电子邮件反馈错误。
那本《无错版石头记》是祖上传下来的。
他加入了一个读书会，每周读一本小说。
鲜花和掌声让她红了脸。
他求一张船票，掌柜却摇头。
大家都求他收藏这把剑。
正文部分从第三页开始。
她扫码关注了公众号，里面果然有那篇文章。
这部小说首发于1958年的《收获》杂志，后来出了单行本。
如果喜欢辣味，可以多放一点辣椒。
Node.js 和 React 都可以从 npm 下载。
他的QQ号是多少，没有人知道。
温度升高到 160&deg;C 时加入白糖。
订阅该事件的组件会在每次更新后刷新页面。
（未完成的作业堆成了山。）
(见 https://arxiv.org/abs/1706.03762)
参考文献：https://arxiv.org/abs/1706.03762，2017年。
官方网站：www.gov.cn
手机响了，他看了一眼，没有接。
手机用户的数量在五年里翻了三倍。
他回到目录页，找到下一章，继续读下去。
<div>是一个块级元素，<p>表示段落。
[官方文档](https://react.dev)里有更多例子。
她在晋江文学城连载的小说去年出版了。
公司的网址是www.acme.com，欢迎来访。
他打开手机，访问了那个网站，却什么也没有。
“你记住，本站不停车。”列车员说。
本站到发列车共有三十趟。
列车即将到达本站，请下车的旅客做好准备。
手机用户请注意，信号将在午夜中断。
最新的研究表明，阅读小说能够提高共情能力。
他最快更新了自己的纪录。
请访问我们的文档站，了解更多内容。
图书馆免费阅读区坐满了人。
全文阅读理解题共有五道小题。
他从书库里取出一本旧书。
下一章我们将讨论优化算法。
这一章节未完成。
首发于《小说月报》的这篇作品后来获奖。
微信公众号是企业传播的重要渠道。
下载完成后，请重新刷新页面。
谢谢你的支持，也谢谢你的打赏。
她收到了一束鲜花。
他求收藏家把画还给他。
将军请到书房说话。
本书由三部分组成，第一部分介绍基础。
本书由人民文学出版社出版。
本文由浅入深地介绍注意力机制。
版权归属尚有争议。
域名系统把名字解析为地址。
点击下一页按钮即可翻页。
他已经更新到第三更了，读者还在催更。
书友们都说这书好看。
第三更鼓响过，城门开了。
三更到了，他还没有睡。
一更求见，二更才得入内。
感谢上苍！感谢父老乡亲的支持！
喜欢的话，就拿去吧。
参见 www.w3.org 的规范。
打开 https://zh-hans.react.dev/learn 阅读教程。
可在 kaggle.com 下载数据集。
他说：“加群吧，群号是123456789。”
他的邮箱是 li@example.com。
他收藏的古剑首发亮相于拍卖会。
网站的域名到期了，他忘记续费。
这本书已经更新到第三版。
下载速度很慢，他等了一个小时。
请在浏览器中打开 http://localhost:3000 查看效果。
“最新章节呢？”她催问道。
手机阅读器的屏幕很小。
最快更新频率为每秒六十次。
正文字体大小为十四号。
感谢他当年的推荐，我才有今天。
求票的人排成了长队。
加入书签后，可以随时回到这一页。
我们在公众号上发布了通知。
他订阅了三份报纸。
中文网络小说起源于上世纪九十年代。
她笑着说：“记得收藏本店哦！”
一秒记住一个单词，他做不到。
更多内容参见第三章。
免费阅读的时代已经过去。
全本《红楼梦》共一百二十回。
""".splitlines()
INSERTS = [
    (
        '他推开门，【看书网www.kanshu.com首发】只见屋里空无一人。',
        '他推开门，只见屋里空无一人。',
    ),
    (
        '那剑客冷笑一声（本章未完，请翻页）拔出剑来。',
        '那剑客冷笑一声拔出剑来。',
    ),
    (
        '众人大惊最新章节请到www.xxx.com阅读失色，纷纷后退。',
        '众人大惊失色，纷纷后退。',
    ),
    (
        '夜色深沉，一辆马车缓缓驶来。手机阅读请访问m.xxx.com，更优质的阅读体验。车上坐着一位老者，正闭目养神，似乎对外面的风雨毫不在意。',
        '夜色深沉，一辆马车缓缓驶来。车上坐着一位老者，正闭目养神，似乎对外面的风雨毫不在意。',
    ),
    (
        '剑光一闪，｛首发于ｗｗｗ．ａａ．ｃｏｍ｝血溅三尺。',
        '剑光一闪，血溅三尺。',
    ),
    (
        '她低头不语。&nbsp;&nbsp;<br/>雨停了。',
        '她低头不语。  雨停了。',
    ),
]


def only(*steps: str) -> Cleaning:
    return Cleaning(**{step: step in steps for step in STEPS})


def cleaned(text: str, *steps: str) -> Cleaned:
    return clean(text, only(*steps) if steps else Cleaning(), SeenParagraphs())


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


# --- adverts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ADVERTS)
def test_an_advert_goes(line: str) -> None:
    result = cleaned(f"他推门而入。\n{line}\n屋里没有人。", "adverts")
    assert result.text == "他推门而入。\n屋里没有人。"
    assert {number for _, number, _ in result.removed} == {2}


@pytest.mark.parametrize("line", PROSE)
def test_prose_stays(line: str) -> None:
    text = f"他推门而入。\n{line}\n屋里没有人。"
    result = cleaned(text, "adverts")
    assert result.text == text
    assert result.removed == []


@pytest.mark.parametrize("line, left", INSERTS)
def test_an_insert_goes_and_its_sentence_stays(line: str, left: str) -> None:
    assert cleaned(line, "adverts").text == left


@pytest.mark.parametrize("line", ADVERTS + [line for line, _ in INSERTS])
def test_the_filter_lets_every_advert_through(line: str) -> None:
    assert suspects(["他推门而入。", line]) == [1]


def test_many_lines_are_many_single_lines() -> None:
    lines = (ADVERTS + PROSE + [line for line, _ in INSERTS]) * 2
    random.Random(0).shuffle(lines)
    together = cleaned("\n".join(lines), "adverts").text
    apart = [cleaned(line, "adverts").text for line in lines]
    assert together == "\n".join(line for line in apart if line)


def test_entities_become_characters_but_never_markup() -> None:
    assert without_adverts("他说&ldquo;好&rdquo;&hellip;")[0] == "他说“好”…"
    assert without_adverts("&lt;b&gt; 与 &amp;nbsp; 与 &#60;p&#62;")[1] == []


@needs_corpus
def test_the_seventy_adverts_and_nothing_else() -> None:
    messy = read(CORPUS / "messy" / "04_广告链接_剑侠奇中奇.txt")
    original = read(CORPUS / "style" / "剑侠奇中奇全传.txt")
    text = cleaned(messy, "adverts").text
    kept = [line for line in text.split("\n") if line]
    wanted = [line for line in original.split("\n") if line]
    inserted = len([line for line in messy.split("\n") if line and line not in set(wanted)])
    assert inserted >= 60
    assert len(set(kept) - set(wanted)) <= 0.05 * inserted
    assert sum(len(line) for line in set(wanted) - set(kept)) < 0.001 * len(original)


@needs_corpus
@pytest.mark.parametrize("folder", ["style", "general"])
def test_clean_books_lose_next_to_nothing_to_the_advert_step(folder: str) -> None:
    for path in sorted((CORPUS / folder).glob("*.txt")):
        text = read(path)
        assert len(text) - len(cleaned(text, "adverts").text) < 0.001 * len(text), path.name


# --- newlines, invisible, blanks, long lines -------------------------------------------------------------------------


def test_every_newline_becomes_one() -> None:
    result = cleaned("a\r\nb\rc\u2028d\u2029e\x85f\ng\n\r\nh", "newlines")
    assert result.text == "a\nb\nc\nd\ne\nf\ng\n\nh"
    assert result.counts == {"newlines": 6}


def test_invisible_characters_go_and_newlines_tabs_and_emoji_stay() -> None:
    result = cleaned("\ufeff君\u200b王\u00ad\x00\u2060，\u200e好\x7f\t\r\n👩\u200d💻", "invisible")
    assert result.text == "君王，好\t\r\n👩\u200d💻"
    assert result.counts == {"invisible": 7}


def test_blanks() -> None:
    result = cleaned("\n\u3000\u3000第一回\u3000风起  \n\n \n\n他\t说 hello world。\u00a0\n\n\n", "blanks")
    assert result.text == "第一回 风起\n\n他 说 hello world。\n"
    assert result.counts == {"blanks": 11}


def test_a_long_line_is_broken_at_sentence_ends_and_nothing_is_lost() -> None:
    line = "".join(f"第{i}个人说：“走！”众人便走了，一路无话。" for i in range(3000))
    result = cleaned(f"开头\n{line}\n结尾", "long_lines")
    first, *paragraphs, last = result.text.split("\n")
    assert (first, "".join(paragraphs), last) == ("开头", line, "结尾")
    assert result.counts == {"long_lines": len(paragraphs) - 1}
    assert all(p[-1] in "。”" and len(p) < 500 for p in paragraphs)
    assert cleaned(line[: LONG_LINE - 1], "long_lines").text == line[: LONG_LINE - 1]
    assert cleaned("无" * 50_000, "long_lines").text == "无" * 50_000


# --- hard-wrapped lines ----------------------------------------------------------------------------------------------

_RANDOM = random.Random(7)
_WHO = ["老者", "那剑客", "店小二", "白衣女子", "县令", "两个和尚", "赶车的汉子", "众人"]
_WHAT = ["看了看天色", "冷笑一声", "把酒一饮而尽", "转身便走", "半晌没有作声", "拔出了腰间的长剑", "望着远山出神"]


def _sentence() -> str:
    clauses = [_RANDOM.choice(_WHO) + _RANDOM.choice(_WHAT) for _ in range(_RANDOM.randint(1, 6))]
    return "，".join(clauses) + _RANDOM.choice("。。。！？")


NOVEL = ["".join(_sentence() for _ in range(_RANDOM.randint(1, 4))) for _ in range(120)]


def wrapped(paragraphs: list[str], width: int, indent: str, between: str) -> str:
    lines = []
    for paragraph in paragraphs:
        body = indent + paragraph
        lines.append("\n".join(body[i : i + width] for i in range(0, len(body), width)))
    return between.join(lines)


@pytest.mark.parametrize("indent, between", [("\u3000\u3000", "\n"), ("", "\n\n"), ("    ", "\n\n")])
@pytest.mark.parametrize("width", [24, 38])
def test_wrapped_lines_are_joined_to_their_paragraphs(width: int, indent: str, between: str) -> None:
    result = cleaned(wrapped(NOVEL, width, indent, between), "unwrap", "blanks")
    assert [line for line in result.text.split("\n") if line] == NOVEL


def test_wrapped_without_marks_joins_what_is_in_the_middle_of_a_sentence() -> None:
    result = cleaned(wrapped(NOVEL, 30, "", "\n"), "unwrap")
    assert set(result.text.replace("\n", "")) == set("".join(NOVEL))
    assert all(line[-1] in "。！？" for line in result.text.split("\n"))
    assert len(result.text.split("\n")) >= len(NOVEL)


def test_words_of_letters_get_their_space_back() -> None:
    words = ("the quick brown fox jumps over the lazy dog and runs away from all of them " * 6).split()
    lines, line = [], ""
    for word in words * 4:
        if len(line) + len(word) >= 72:
            lines, line = [*lines, line], word
        else:
            line = f"{line} {word}".strip()
    result = cleaned("\n".join([*lines, line + "."]), "unwrap")
    assert result.text == " ".join(words * 4) + "."


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(NOVEL),
        "\n\n".join(NOVEL),
        "\n".join("绛帻鸡人报晓筹，尚衣方进翠云裘。" for _ in range(40)),
        "\n".join("绛帻鸡人报晓筹" for _ in range(40)),
        "\n".join(f"第{i}回 徐公子轻财好客 黎道人重义传徒" for i in range(100, 160)),
    ],
)
def test_paragraphs_verse_and_headings_are_not_joined(text: str) -> None:
    assert cleaned(text, "unwrap").text == text


@needs_corpus
def test_the_wrapped_book_is_the_book() -> None:
    result = cleaned(read(CORPUS / "messy" / "10_硬换行38列_聊斋志异节选.txt"), "unwrap", "blanks")
    book = [line.strip() for line in read(CORPUS / "style" / "聊斋志异.txt").split("\n") if line.strip()]
    lines = [line for line in result.text.split("\n") if line]
    assert lines == book[: len(lines)]


@needs_corpus
@pytest.mark.parametrize("folder", ["style", "general"])
def test_no_clean_text_is_joined_or_broken(folder: str) -> None:
    for path in sorted((CORPUS / folder).glob("*.txt")):
        text = read(path)
        assert cleaned(text, "unwrap", "long_lines").text == text, path.name


# --- near-duplicates -------------------------------------------------------------------------------------------------


def paragraph(seed: int, length: int = 120) -> str:
    rng = np.random.default_rng(seed)
    return "".join(chr(c) for c in rng.integers(0x4E00, 0x9000, length))


def jaccard(a: str, b: str) -> float:
    one, two = ({s[i : i + 6] for i in range(len(s) - 5)} for s in (a, b))
    return len(one & two) / len(one | two)


def test_repeated_paragraphs_go_and_the_first_stays() -> None:
    a, b = paragraph(1), paragraph(2)
    changed = a[:60] + "！ " + a[60:]  # other marks and blanks: the same words
    result = cleaned("\n".join([a, b, "短句", a, "短句", changed, b]), "near_duplicates")
    assert result.text == "\n".join([a, b, "短句", "短句"])
    assert result.removed == [("near_duplicates", 4, a), ("near_duplicates", 6, changed), ("near_duplicates", 7, b)]
    assert result.counts == {"near_duplicates": 3}


def test_the_state_spans_the_documents_of_a_corpus() -> None:
    seen = SeenParagraphs()
    a, b, c = paragraph(1), paragraph(2), paragraph(3)
    assert clean(f"{a}\n{b}", only("near_duplicates"), seen).text == f"{a}\n{b}"
    assert clean(f"{c}\n{b}\n{a}", only("near_duplicates"), seen).text == c
    assert cleaned(f"{c}\n{b}\n{a}", "near_duplicates").text == f"{c}\n{b}\n{a}"


def test_below_thirty_characters_everything_may_return() -> None:
    short, long = paragraph(1, SHORTEST - 1), paragraph(1, SHORTEST)
    assert cleaned(f"{short}\n{short}", "near_duplicates").text == f"{short}\n{short}"
    assert cleaned(f"{long}\n{long}", "near_duplicates").text == long


def test_similar_goes_and_merely_related_stays() -> None:
    found = {0.95: 0, 0.6: 0}
    for seed in range(200):
        a = paragraph(seed, 400)
        near = a[:200] + "某" + a[201:] + "也"  # 7 of some 400 grams differ
        far = "".join(c if i % 24 else "某" for i, c in enumerate(a))
        assert jaccard(a, near) > 0.95 and jaccard(a, far) < 0.7
        for share, other in ((0.95, near), (0.6, far)):
            found[share] += cleaned(f"{a}\n{other}", "near_duplicates").text == a
    assert found[0.95] >= 190
    assert found[0.6] <= 2


def test_signatures_estimate_jaccard_similarity() -> None:
    pairs = [(p := paragraph(s, 500), p[: 500 - 2 * s] + paragraph(s + 1000, 2 * s)) for s in range(20, 100)]
    one, two = (signatures_of([pair[k] for pair in pairs]) for k in (0, 1))
    error = (one == two).mean(axis=1) - [jaccard(a, b) for a, b in pairs]
    assert abs(error.mean()) < 0.03 and np.sqrt((error**2).mean()) < 0.12


def test_signatures_do_not_depend_on_the_neighbours() -> None:
    paragraphs = [paragraph(s, 30 + 7 * s) for s in range(20)] + ["…" * 40, "…" * 36 + "是的"]
    together = signatures_of(paragraphs)
    np.testing.assert_array_equal(together, np.concatenate([signatures_of([p]) for p in paragraphs]))


def test_the_state_is_small_and_forgets_nothing() -> None:
    rng = np.random.default_rng(0)
    seen, blocks = SeenParagraphs(), [rng.integers(0, 1 << 32, (4000, 32), dtype=np.uint32) for _ in range(25)]
    for block in blocks:
        assert seen.repeated(block).sum() == 0
        seen.add(block)
    assert seen.nbytes <= 52 * 100_000
    for block in blocks:
        assert seen.repeated(block).all()


# --- the whole -------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ADVERTS
    + PROSE
    + [line for line, _ in INSERTS]
    + NOVEL[:20]
    + ["", "\u3000\u3000", "\t", " ", "第一回 风起", "\x00", "\u200b", "\u200d", "&nbsp;", "<br/>", "(待续)"]
    + ["【", "】", "w", "本章", "未完", "www.", "a.com", "首发", "，", "。"]
    + [paragraph(1, 40), paragraph(1, 40) + "，", paragraph(2, 29), wrapped(NOVEL[:30], 24, "\u3000\u3000", "\n")]
)
TEXTS = st.lists(st.tuples(PIECES, st.sampled_from(["\n", "", "\r\n", "\n\n\n", "\u2028", " "])), max_size=40).map(
    lambda pairs: "".join(piece + end for piece, end in pairs)
)
SWITCHES = st.sets(st.sampled_from(STEPS)).map(lambda steps: only(*steps))


@settings(max_examples=150, deadline=None)
@given(TEXTS | st.text(), st.just(Cleaning()) | SWITCHES)
def test_cleaning_twice_is_cleaning_once(text: str, cleaning: Cleaning) -> None:
    once = clean(text, cleaning, SeenParagraphs())
    twice = clean(once.text, cleaning, SeenParagraphs())
    assert twice.text == once.text
    assert twice.removed == []
    assert not any(twice.counts.values())


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_without_steps_nothing_changes(text: str) -> None:
    assert cleaned(text, "none") == Cleaned(text=text, counts={}, removed=[])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(NOVEL + PROSE), max_size=30, unique=True).map("\n".join))
def test_good_prose_is_not_touched(text: str) -> None:
    assert cleaned(text).text == text.strip("\n")


def test_removed_lines_carry_the_number_they_had_in_the_input() -> None:
    lines = ["", "", "序", "", "", *NOVEL[:3], "求月票！求推荐票！", "", "", NOVEL[3], "（本章完）"]
    for newline in ("\n", "\r\n", "\r"):
        result = cleaned(newline.join(lines))
        assert [(step, number) for step, number, _ in result.removed] == [("adverts", 9), ("adverts", 13)]


def test_counts_name_the_steps_that_were_on() -> None:
    assert list(cleaned("一").counts) == STEPS
    assert list(cleaned("一", "blanks", "adverts").counts) == ["blanks", "adverts"]


@needs_corpus
def test_a_megabyte_takes_a_fraction_of_a_second() -> None:
    text = read(CORPUS / "style" / "三侠五义.txt")
    clean(text[:1000], Cleaning(), SeenParagraphs())  # tables are built once
    seconds = []
    for _ in range(3):
        start = time.process_time()
        clean(text, Cleaning(), SeenParagraphs())
        seconds.append(time.process_time() - start)
    assert min(seconds) / len(text.encode("utf-8")) * 1e6 < 0.15  # 0.04 measured; the rest is for busy machines
