"""How likely a text is: a unigram model of Chinese prose with ASCII and Western passages, as a table of nats.

It is the evidence by which encodings are told apart: read in the right one, Chinese is spelled in its few hundred
frequent characters (7 nats each); read in a wrong one, in rare characters, odd scripts and private-use code points.
The classes' shares in prose are about: frequent characters 3/4, other characters of everyday use (the first level of
GB 2312 or of Big5) 1/5, the rest a few per cent.

Knows no bytes and no encodings.
"""

from __future__ import annotations

import numpy as np

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
FREQUENT_COST = 7.0  # nats; no other class costs the same
BYTE_COST = 12.0  # nats for one byte that is no text


def _unigram_costs() -> np.ndarray:
    """`[65536]` nats per code point of the basic plane: -log(share of the class / characters in it), rounded."""
    cost = np.full(0x10000, 16.0)  # scripts and symbols that Chinese and Western text rarely uses
    cost[0x20:0x7F] = cost[[0x09, 0x0A, 0x0D]] = 3.5
    cost[:0x09] = cost[0x0E:0x20] = cost[0x7F] = BYTE_COST
    cost[0xA0:0x100] = 10.0
    cost[0x3000:0x3100] = cost[0x2000:0x2100] = cost[0x2460:0x2580] = cost[0xFF01:0xFF5F] = 10.0
    cost[0x4E00:0xA000] = 13.0
    everyday = [bytes([a, b]) for a in range(0xB0, 0xD8) for b in range(0xA1, 0xFF)]
    cost[[ord(c) for c in b"".join(everyday).decode("gb2312", "ignore")]] = 10.0
    everyday = [bytes([a, b]) for a in range(0xA4, 0xC7) for b in (*range(0x40, 0x7F), *range(0xA1, 0xFF))]
    cost[[ord(c) for c in b"".join(everyday).decode("cp950", "ignore") if c > "\u4e00"]] = 10.0
    cost[[ord(c) for c in SIMPLIFIED + TRADITIONAL + PUNCTUATION + WESTERN]] = FREQUENT_COST
    cost[0xE000:0xF900] = 20.0  # private use
    cost[[0xFEFF, 0xFFFD]] = BYTE_COST  # a byte order mark out of place; what could not be decoded
    return cost


COST = _unigram_costs()


def code_points(text: str) -> np.ndarray:
    """uint32 `[T]`: indices into COST; those beyond the basic plane, which are all rare, as U+FFFF."""
    return np.minimum(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), 0xFFFF)


def frequent_share(text: str) -> float:
    """Frequent characters among all that are not ASCII; 1 where there are none."""
    codes = code_points(text)
    beyond = int((codes > 0x7F).sum())
    return int((COST[codes] == FREQUENT_COST).sum()) / beyond if beyond else 1.0
