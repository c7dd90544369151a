"""What is refused as a paraphrase, each rule at its border."""

from __future__ import annotations

import pytest

from stylora.evaluate.paraphrases import refuse

PASSAGE = "那汉子推门进来，抖落一身风雪，把一口单刀往桌上一拍，叫道：“店家，快打三斤好酒来！”掌柜的见他生得凶恶，哪里敢怠慢。"
PLAIN = "一个男人进了门，身上全是雪。他用力放下刀，大声让老板拿酒。老板看他样子可怕，立刻照做了。"
LONG = "".join(f"第{n}个人说他看见了{chr(0x4E00 + 37 * n)}和{chr(0x5E00 + 41 * n)}。" for n in range(14))


def test_a_paraphrase_is_none_of_these():
    assert refuse(PLAIN, PASSAGE, stopped=True) is None


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        ("", "empty"), (" \n", "empty"), ("。。。！", "empty"),
        (PLAIN + "<|im_end|>", "template text"), ("<think>想" + PLAIN, "template text"), ("assistant\n" + PLAIN, "template text"),
        ("用户：" + PLAIN, "template text"),
        (PLAIN[:20] + "\n" + PLAIN[20:], "several lines"),
        ("。，、；！？" * 3 + "他来", "not text"), ("他来了。" * 10, "loop"),
        ("A man came in from the snow and shouted for wine, so the owner hurried.", "not Chinese"),
        ("男人进门。", "too short"), (LONG, "too long"),
        (PASSAGE, "copy"), (PASSAGE[:-8] + "不敢慢待他", "copy"),
        ("后来他说：" + PASSAGE[5:25] + "然后大家都笑了，因为这件事很有意思", "copy"),
    ],
)  # fmt: skip
def test_reasons(plain, reason):
    assert refuse(plain, PASSAGE, stopped=True) == reason


def test_it_has_to_stop():
    assert refuse(PLAIN, PASSAGE, stopped=False) == "did not stop"


def test_a_passage_in_another_language_may_stay_in_it():
    english = "The rider drew rein before the gate, and with a great oath he bade the warden open it at once."
    assert refuse("A man on a horse stopped outside and told the guard angrily to let him in now.", english, stopped=True) is None


def test_the_border_of_a_copy():
    """19 characters in one piece are none, 20 are one."""
    around = "昨天晚上有个人来过这里，大家听见外面很吵，他好像说了句什么话，然后就走掉了，再也没回来，真是奇怪"
    for length, reason in ((19, None), (20, "copy")):
        assert refuse(around[:24] + PASSAGE[:length] + around[24:], PASSAGE, stopped=True) == reason
