"""Takes out what download sites put into a novel: site lines, begging for votes, page-turning notes, HTML remnants.

A line is judged in three steps, each cheaper to be wrong about than the next: only lines with a trigger word are looked
at; brackets whose whole content is an advert go; then clauses (between commas and full stops) that are adverts go, and
with them the small talk beside them ("无广告！"). A line of which little else is left goes as a whole. An address alone
condemns nothing in prose: it takes the vocabulary of a download site beside it, and a clause with a person in it (他,
她, a speaker) is only cut where an address stands.

Knows nothing of paragraphs, chapters or the file: one line in, what is left of it out. The patterns read `flat` text:
the same line with full-width letters and marks mapped to ASCII, one to one, so that offsets agree with the original.
"""

from __future__ import annotations

import functools
import re

import numpy as np
from numpy.typing import NDArray

_FLAT = {ord(c): ord(c.lower()) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_FLAT |= {code: ord(chr(code - 0xFEE0).lower()) for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0xA0: 0x20}

_DOT = r"\s?[.。·]\s?"
_SPACED = r"(?:[a-z0-9-]\s?)"
URL = (
    rf"(?:https?\s?:\s?/\s?/[\w./?=&%#~:-]+"
    rf"|(?:w\s?){{3}}{_DOT}{_SPACED}{{2,30}}{_DOT}(?:c\s?o\s?m|n\s?e\s?t|o\s?r\s?g|c\s?n|c\s?c|[a-z]{{2,4}})(?![a-z])"
    rf"(?:{_DOT}cn)?[\w./?=&%#~:-]*(?<![.。·])"
    rf"|(?:(?:m|wap|3g|book|read)\.)?[a-z0-9-]{{2,30}}{_DOT}(?:com|net|org|cn|cc|info|la|xyz|vip|top|tw)(?:\.cn)?(?![a-z])(?:/[\w./?=&%#~:-]*)?)"
).replace(r"\w", "a-z0-9_")

_SITE = r"(?:小说|中文|文学|看书|读书|阅读|书|全本)[网吧站]|(?:小说|书)[库屋院城阁]|笔趣阁|电子书|文学城"
_NET = r"(?:小说|中文|文学|看书|读书|阅读|书|全本)[网吧站]|笔趣阁|书库|电子书|文学城"  # without what may be a house
_TICKET = r"(?:月票|推荐票|红票|鲜花|打赏|订阅|首订|全订|收藏|书评|催更|保底票|评价票|推荐|票票|点击|支持)"

# Unmistakable wherever a clause has it.
_STRONG = re.compile(
    rf"""天才[一壹]秒 | [一壹]秒[钟鐘]?.{{0,2}}[记記]住(?:[^\w\s]|.{{0,12}}(?:{_SITE}|[网站]|{URL}))
    | 浏览器阅读模式|章节内容缺失 | 加(?:微信|v信|vx|扣扣)[:\s]*[a-z0-9_-]{{5,}}
    | (?:记住|牢记|收藏|访问)(?:本站|我们的?网|本网) | 本站(?:地址|域名|网址
        |最新|永久|提供|所有小说|首发|推荐)
    | 无弹窗 | 无错(?:章节|小说|版阅读) | 最新、?最快
    | 手机(?:用户|阅读|看书|看小说|版|访问|同步阅读|站).{{0,8}}(?:请[到上访浏登移点收]|{URL}|阅读网址|更新最快)
    | 本章(?:节)?(?:还)?未完 | 点击下一[页章](?:\W|$|继续|阅读)|下一页继续|请(?:点击)?翻页|翻下一页
    | 正在手打中|请稍等片刻|(?:重新|请)刷新(?:页面)?.{{0,6}}(?:最新|更新|获取)|内容更新后
    | (?:txt|电子书|全集|全本|全文|小说|章节).{{0,6}}(?:免费)?下载.{{0,10}}(?:{URL}|尽在|就[到上在]|请[到上]|本站
        |{_SITE}|$)
    | 下载.{{0,6}}(?:txt|电子书)(?:小说|全集)?.{{0,6}}(?:请|就|到|上|尽|{URL})
    | 最新全本\W | (?:最新|最快|全部|后续)(?:免费)?(?:章节|更新).{{0,14}}(?:{URL}|请[到上]|尽在|就[到上在去]|请
        (?:访问|关注|登[陆录]|搜索)|{_NET})
    | (?:最新|本站|备用|永久|移动|手机|新)(?:网址|域名|地址).{{0,4}}{URL} | 看小说(?:就|请)?[到上去].{{0,10}}(?:{_SITE})
    | (?:百度|谷歌)(?:搜索|一下).{{0,14}}(?:{_SITE}|最新章节|看小说) | 尽在.{{0,8}}(?:文学城|[文说]网|笔趣阁)
    | 更新最快|最快更新.{{0,12}}(?:章节|小说|网站)
    | (?:更多|精彩|好看|免费|海量|热门|看)(?:的|好看|精彩|免费|最新|最全|热门|全本|txt)*(?:小说|书籍?|章节|全本|全集
        |电子书)(?:下载|阅读|内容)?.{{0,10}}(?:(?:尽在|就上|就去).{{0,14}}(?:{URL}|{_SITE}|本站)
        |(?:请[到上]|请访问|请登[陆录]|请光临|欢迎).{{0,14}}(?:{URL}|{_NET}|本站))
    | (?:本书|本文|本小说|本作品|本电子书|文字版)(?:内容|文本)?(?:由|来自|来源|源自|转[自载]|下载[自于]|首发|出自
        |最新|更多|全集|最快).{{0,24}}(?:{URL}|{_NET}|整理|上传|制作|扫校|首发)
    | (?:{_SITE}).{{0,12}}(?:首发|免费提供|为您提供|更新最快|最快更新|{URL})
    | (?:首发于?|转载自|更多精彩|欢迎访问|请访问|请登[陆录]|下载于|最快更新).{{0,10}}(?:{_SITE})
    | {URL}.{{0,4}}(?:首发|最新章节|最快更新|免费阅读|全文阅读|手打|无弹窗|txt|小说) | 首发(?:于|网站|网址|站
        |[:]).{{0,14}}{URL}
    | (?:小说|阅读|章节|电子书|书友|看书|正版|全文|追书|域名).{{0,10}}(?:网址|地址|请[到上]|访问|登[陆录]|就[到上去]
        |尽在|[:]).{{0,6}}{URL}
    | 欢迎(?:广大|各位|您|新老)?(?:书友|读者|网友).{{0,8}}(?:光临|阅读|访问|加入)
    | 点此(?:举报|报错) | (?:章节|内容|字词|错误|本书|如有).{{0,8}}(?:错误|报错|举报|有误).{{0,8}}(?:点此|点击|举报
        |反馈)
    | (?:请|记得)?(?:把|将)?(?:本书|本站|本文|本网站|网址)?(?:加入|添加到?|放[入进])(?:您的|你的)?(?:书签|收藏夹)(?!后)
    | (?:q\s?q|扣扣|企鹅|书友|读者|粉丝|交流|读书|官方|vip|加)\s?(?:交流|书友|读者|粉丝)*群.{{0,6}}[:\s]?\d{{5,}}
    | (?:微信|q\s?q|扣扣).{{0,3}}公众(?:账)?号.{{0,4}}[:搜“「]|(?:关注|搜索|添加|加).{{0,6}}(?:微信)?(?:公众
        (?:账)?号|订阅号|微信号)(?!的|了|里|上).{{0,14}}$
    | 仅供(?:试读|试阅|预览|学习交流|交流学习|个人学习).{{0,12}} | 下载后.{{0,4}}(?:24
        |二十四).{{0,3}}小时内.{{0,3}}删除 | (?:版权|著作权)归(?:原)?作者(?:所有|及)
    | (?:小说|全文|免费|在线|章节|最新)(?:全文|免费|在线|章节|最新)+阅读.{{0,6}}(?:{URL}|$)|免费(?:小说
        |全文)?阅读.{{0,6}}{URL}
    | (?:本站|网站)(?:已)?(?:启用|更换)?新域名|新域名.{{0,6}}{URL}|防(?:走|丢)(?:失|丢).{{0,8}}(?:收藏|记住|关注|加入)
    | (?:起点|晋江|纵横|17k|创世|逐浪|番茄|七猫|红袖|潇湘|飞卢|书旗|qq阅读|掌阅|塔读).{{0,8}}(?:首发|独家|正版订阅
        |唯一正版)
    | (?:下载|打开|安装|用|使用).{{0,10}}(?:阅读|小说|追书|看书|免费)(?:app|客户端|神器|软件).{{0,14}}$""",
    re.VERBOSE,
)
# An address and a word of the trade in one short clause.
_TRADE = re.compile(
    r"小说|章节|txt|电子书|首发|最快|更新|本站|书[库屋院城吧]|文学|弹窗|正版|全本|试读|看书|手打|追更|记住|手机"
)
_URL = re.compile(URL)
_CALL = re.compile(r"尽在|请[大到上访登收记]|收藏|就[上到去]|速度|抢先")
# The author to his readers: only where nearly the whole line is that.
_AUTHOR = re.compile(
    rf"""^\W*(?:p\.?\s?s\.?|作者|作者注)\s?[:.,\s].*(?:[一二三四五两加]更|更新|求|感谢|{_TICKET}|书友|抱歉|请假|入v
        |上架)
    | ^\W*(?:今天|本周|这周|新的?一[周天月]|月初|月底|最后|继续|跪|厚颜|顺便|弱弱|再|例行|各种|日常|周一|大家|兄弟们
        |新书|新人新书|拜|一起)*(?:地|的)?(?:跪|拜|泣)?求(?:个|一下|点|张|各种|波|一波|大家|一切|保底|大家的|投|一张
        |首?订)*{_TICKET}
    | {_TICKET}(?:拿来|走起|砸[来过]|来一波|投给我|多多|支持一下|在哪|快到碗里|什么的)|(?:有|投)(?:月票
        |推荐票).{{0,6}}(?:投|支持|的)
    | (?:感谢|多谢|谢谢)[^你]{{0,34}}(?:打赏|月票|推荐票|盟主|催更|飘红|书币|起点币|订阅|投票|营养液|地雷|霸王票)
    | ^\W*今[天日].{{0,4}}[一二三四五两\d]更(?:\W|$)
    | ^\W*(?:今[天日]|本日|这是)?.{{0,3}}第[一二三四五六七八九十\d]+更(?:\W|$|[求到送奉完])|^\W*
        (?:今[天日])?[一二三四五两\d]+更(?:完毕|送[上到]|奉[上到]|[,!]?求[月推收票订])
    | ^\W*(?:如果)?(?:您|你|大家)?(?:觉得)?(?:喜欢|爱看|觉得)(?:本书|这本书|本文|请|本站|的话|小说
        |.{{0,8}}好看).{{0,22}}(?:收藏|推荐|投票|书架|书签|支持)
    | ^\W*作者(?:君|菌)?(?:有话(?:要)?说|的话|ps) | (?:^|[^他她])(?:加入|放[入进])书架(?:吧|哦|[!。]|$) | ^\W*
        (?:上架|完本|完结)感言
    | 新书(?:期|上传|发布|幼苗|已发|冲榜).{{0,12}}(?:求|请|支持|{_TICKET}|[!]|$)""",
    re.VERBOSE,
)
# Small talk: goes only beside something that went.
_FILLER = re.compile(
    r"好[文书]|无广告|弹窗|免费|最快|更新|用户体验|支持正版|请支持|仅供|谢谢|多多|支持|欢迎|体验|阅读|收藏|推荐|订阅|精彩|小说|网址|域名"
    r"|本站|书友|读者|下载|微信|加群|群号|刷新|页面|手机|章节|记住|(?<![a-z])app|打赏|请[到上]|[求加][更票]|么么哒|拜谢|https?"
)
_SURE = (
    r"(?:(?:返回|回到)(?:目录|书页|书目|首页|列表|顶部|封面)|(?:添加|加入|加|保存)书签|投推荐票|投票推荐|推荐本书|我的书架"
    r"|(?:放|加)入书架|章节报错|章节(?:目录|列表)|收藏本[书站页]|背景颜色|字体大小|手机阅读|txt下载)"
)
_NAVIGATION = rf"(?:{_SURE}|[上下]一[章页节]|目录|书页|首页|举报|设置)"
# The whole line, once marks around it are off.
_EDGE = r"[|\s\[\]【】<>/→←·-]"
_WHOLE = re.compile(
    rf"""(?:本章|本节|此章)(?:节)?(?:已)?(?:完|结束)|未完待续|待续|未完[,、]待续.{{0,4}}|正文|正文卷|作品相关|全文阅读
    | {_EDGE}*(?:{_NAVIGATION}{_EDGE}+)*(?:{_SURE}|{_NAVIGATION}{_EDGE}+{_NAVIGATION})
        (?:{_EDGE}*{_NAVIGATION})*{_EDGE}*""",
    re.VERBOSE,
)
_RULE = "-=_~─━—"  # five or more of these, alone or with other marks, are a line drawn by a site
_BRACKET = re.compile(
    r"【[^【】]{1,70}】|\{[^{}]{1,70}\}|\[[^\[\]]{1,70}\]|\([^()]{1,70}\)"
    r"|〖[^〖〗]{1,70}〗|『[^『』]{1,70}』|<[^<>]{1,70}>"
)
_FIRST = re.compile(
    rf"(?:网|站|书|文学|小说|阅|起点|晋江|纵横|独家|全网|最新|最快|{URL}).{{0,12}}首发$"
    r"|^首发(?:于|[:]).|^(?:未完待续|本章完|待续)"
)
# An insert without marks around it, in the middle of a clause: the call with its address, no more.
_INLINE = re.compile(
    r"(?<=[\u4e00-\u9fff“”,。!?])(?:(?:最新|最快|更多|全部|后续|精彩)(?:章节|更新|小说|内容)|手机(?:阅读|用户|看书)"
    r"|本书(?:首发|最新)?|天才一秒|一秒钟?记住|无弹窗(?:小说)?|首发)"
    rf"[^,。!?;“”他她]{{0,14}}?{URL}\s?(?:阅读|观看|首发|查看|最快更新|免费阅读|更新最快)?"
)
_SHORT_LINE = 200
_CLAUSE = re.compile(r"(?:[^,。!;…?]|\?(?=[a-z0-9]))*(?:[,。!;…”」』)]|\?(?![a-z0-9]))*")
_PERSON = re.compile(r"[他她]|[道说喊叫问笑写念][:,]?[“「『]|^[“「『]|道:|(?<!有话)(?<!话要)说:")
_HAN = re.compile(r"[\u3400-\u9fffa-z0-9]")

_TAG = re.compile(
    r"(?:^\s*|(?<=>))</?p>|(?:</?p>|</div>|</span>)(?=\s*$|<)|<(?:/?(?:br|center|font|nobr|o:p)\s?/?|/(?:a|font|center|script|o:p)"
    r"|/?(?:a|p|br|div|span|font|img|table|tr|td|script|center|strong|b|i|h[1-6]|li|ul|hr)\s(?:[^<>]{0,300}=[^<>]{0,300}))\s?/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(nbsp|emsp|ensp|ldquo|rdquo|lsquo|rsquo|hellip|mdash|ndash|middot|quot|#\d{2,6});?")
_ENTITIES = {"nbsp": " ", "emsp": " ", "ensp": " ", "ldquo": "“", "rdquo": "”", "lsquo": "‘", "rsquo": "’"}
_ENTITIES |= {"hellip": "…", "mdash": "—", "ndash": "–", "middot": "·", "quot": '"'}

# Every pattern above needs one of these words (in `flat` text); those of the second list matter in short lines only.
_WORDS = (
    "www w_w 壹秒 百度 谷歌 http .com .cn .net .org .cc .info .la .xyz .vip .top .tw ._com ._net ·com ·net ·org "
    "·cn 。com 。net 。cn 。org "
    "一秒 记住 牢记 本站 弹窗 无错 最新 最快 手机 本章未 本章还 本章节 本章完 一页 一章 翻下 翻页 手打中 稍等 刷新 "
    "内容更新 下载 章节 更新 "
    "尽在 本书 小说 文字版 书友 读者 网友 的网 们网 本网 本文 本小说 本作品 本电子 笔趣 电子书 文学城 学站 首发 "
    "欢迎 举报 报错 点此 点击 反馈 书签 收藏夹 友群 者群 丝群 流群 书群 方群 p群 加群 q群 q_q qq _群 扣扣 企鹅 "
    "公众 订阅号 微信 仅供 小时内 版权归 "
    "作权归 域名 阅读 防走 防丢 独家 正版 app 客户端 神器 未完待 & <"
)
_WORDS_SHORT = (
    "ps p.s p_s 作者 觉得 月票 推荐票 红票 鲜花 打赏 订阅 首订 全订 收藏 书评 催更 保底票 评价票 票票 求推荐 求点 "
    "求支 求票 求一 求各 求个 "
    "求大 求投 求保 求首 求全 求订 求打 求红 求鲜 求月 求收 求书 求催 求评 求票 营养液 地雷 霸王票 盟主 飘红 书币 "
    "感谢 多谢 谢谢 喜欢 爱看 书架 感言 新书 章完 章结 节完 待续 正文 品相关 内容简 全文 返回 回到 "
    "上一 下一 目录 首页 书页 书目 我的书 背景颜 字体大 txt 第一更 第二更 第三更 第四更 第五更 第六更 第七更 "
    "第八更 第九更 第十更 1更 2更 3更 4更 5更 6更 7更 8更 9更 0更 今天 今日 更完 更送 更奉 更到 更求 更来 "
    "-=- =-= ----- ===== _____ ~~~~~ ───── ━━━━━ ————— ----"
)


@functools.cache
def _words() -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(_filter()[3])))


@functools.cache
def _filter() -> tuple[NDArray[np.uint16], NDArray[np.uint64], NDArray[np.uint64], tuple[str, ...], tuple[str, ...]]:
    """Tables over the 65 536 code points: flat form; bits of the words a character begins; bits of those it "
    "continues."""
    flat = np.arange(1 << 16, dtype=np.uint16)
    flat[list(_FLAT)] = list(_FLAT.values())
    flat[0xD800:0xE000] = 0xFFFF  # lone surrogates must not pair up
    first, second = np.zeros((2, 1 << 16), np.uint64)
    sites = {a + b for a in "说文学书读本" for b in "网吧站"} | {a + b for a in "说书" for b in "库屋院城阁"}
    anywhere, short = ({w.replace("_", " ") for w in words.split()} for words in (_WORDS, _WORDS_SHORT))
    anywhere |= sites
    for k, word in enumerate(sorted(anywhere | short)):
        bit = np.uint64(1 << k % 64)
        first[ord(word[0])] |= bit
        second[ord(word[1]) if len(word) > 1 else slice(None)] |= bit
    return flat, first, second, tuple(anywhere), tuple(short)


def suspects(lines: list[str]) -> list[int]:
    """Indices of the lines that contain a word without which no pattern can match: a few in a thousand.

    Pairs of characters are looked up in two bit tables for the whole text at once; only the pairs that may begin a
    word are compared with the words.
    """
    flat, first, second, anywhere, short = _filter()
    text = "\n".join(lines) + "\n"
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    flat_codes = flat[np.minimum(codes, 0xFFFF)]
    hits = np.flatnonzero(first[flat_codes[:-1]] & second[flat_codes[1:]])
    ends = np.flatnonzero(flat_codes == 10)
    owners = np.searchsorted(ends, hits)
    flat_text = flat_codes.tobytes().decode("utf-16-le", "surrogatepass")
    found: dict[int, None] = {}
    for hit, owner in zip(hits.tolist(), owners.tolist(), strict=True):
        if owner not in found and (
            flat_text.startswith(anywhere, hit)
            or (len(lines[owner]) <= _SHORT_LINE and flat_text.startswith(short, hit))
        ):
            found[owner] = None
    return list(found)


def without_adverts(line: str) -> tuple[str, list[str]]:
    """What is left of one line, and the pieces taken out of it; the line itself and [] where there is nothing to take.

    "" with pieces means the whole line was an advert. Entities (`&nbsp;`) become the characters they stand for.
    """
    before, taken = line, []
    if "&" in line:
        line = _ENTITY.sub(_character, line)
    if "<" in line:
        line = _TAG.sub("", line)
        line = "" if line != before and re.fullmatch(_NAVIGATION, line.strip()) else line
    if line != before:
        taken.append(before)
    if not line.strip():
        return ("" if taken else line), taken
    for find in (_brackets, _inserts, _clauses):
        spans = find(line.translate(_FLAT))
        taken += [line[start:end] for start, end in spans]
        line = _cut(line, spans)
    return line, taken


def _character(entity: re.Match[str]) -> str:
    """The character of an entity; `&`, `<` and `>` stay spelled out, so that no new markup appears."""
    name = entity[1]
    character = chr(int(name[1:])) if name[0] == "#" and int(name[1:]) < 0xD800 else _ENTITIES.get(name, entity[0])
    return character if character.isprintable() and character not in "&<>" else entity[0]


def _cut(line: str, spans: list[tuple[int, int]]) -> str:
    kept, last = [], 0
    for start, end in spans:
        kept.append(line[last:start])
        last = end
    return "".join(kept) + line[last:]


def _brackets(flat: str) -> list[tuple[int, int]]:
    spans = []
    for match in _BRACKET.finditer(flat):
        inside = match[0][1:-1].strip()
        round_or_title = match[0][0] in "(<["  # these hold real text and references: an address alone is none of ours
        bare = not round_or_title and _URL.search(inside) and _weight(_URL.sub("", inside)) <= 4
        if bare or _FIRST.search(inside) or _strong(inside) or _marker(inside):
            spans.append(match.span())
    return spans


def _marker(inside: str) -> bool:
    return len(inside) > 2 and inside[0] in "本未" and bool(_WHOLE.fullmatch(inside))


def _inserts(flat: str) -> list[tuple[int, int]]:
    """Calls glued into a clause of prose: with words of the clause on both sides, only the call goes."""
    return [m.span() for m in _INLINE.finditer(flat) if _HAN.match(flat, m.end()) and _HAN.match(flat, m.start() - 1)]


def _weight(flat: str) -> int:
    """Letters, digits and characters: what a line says, without its marks and blanks."""
    return len(_HAN.findall(flat))


def _strong(clause: str) -> bool:
    """Whether a clause is an advert by itself, and not something a person of the story says or does."""
    if not _words().search(clause):
        return False
    url = _URL.search(clause)
    return not _PERSON.search(clause) and bool(
        (url and _TRADE.search(clause) and _weight(_URL.sub("", clause)) <= 16)
        or ((url or _weight(clause) <= 40) and _STRONG.search(clause))
    )


def _calls(flat: str) -> bool:
    """Whether a short line calls its readers to an address."""
    url = _URL.search(flat)
    return bool(url and _TRADE.search(flat) and _CALL.search(flat) and _weight(_URL.sub("", flat)) <= 30)


def _clauses(flat: str) -> list[tuple[int, int]]:
    """Advert clauses of a line, with the small talk beside them; the whole line when hardly anything else is left."""
    bare = flat.strip(" \t()[]{}【】〖〗『』「」<>。,!.…*~")
    whole = [(0, len(flat))]
    if not flat.strip(_RULE + "*#+·. ") and sum(c in _RULE for c in flat) >= 5:
        return whole
    person = bool(_PERSON.search(flat))
    if len(flat) <= _SHORT_LINE and (
        any(pattern.fullmatch(text) for pattern in (_WHOLE, _URL) for text in (flat.strip(), bare))
        or (not person and (_AUTHOR.search(flat) or _calls(flat)))
    ):
        return whole
    pieces = [m.span() for m in _CLAUSE.finditer(flat) if m.end() > m.start()]
    hit = [_strong(flat[start:end]) for start, end in pieces]
    if not any(hit):
        return []
    for order in (range(1, len(pieces)), range(len(pieces) - 2, -1, -1)):
        for i in order:
            beside = hit[i - 1] if order.step > 0 else hit[i + 1]
            text = flat[slice(*pieces[i])]
            hit[i] = hit[i] or (beside and _weight(_URL.sub("", text)) <= 14 and bool(_FILLER.search(text)))
    left = sum(_weight(flat[start:end]) for (start, end), gone in zip(pieces, hit, strict=True) if not gone)
    if left <= min(12, _weight(flat) // 2) and not person:
        return whole
    return [span for span, gone in zip(pieces, hit, strict=True) if gone]

