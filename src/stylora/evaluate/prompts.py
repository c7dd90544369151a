"""The prompts that `stylora evaluate` continues where nobody gives others. Knows nothing but these texts.

Each is the opening of a narrative and leaves the voice open: an old novel and a modern one may both go on from it. So there is no word
of a period (剑光, 手机), no name, no form of address, none of the particles that only old prose has (之, 曰, 却说), and nothing of a manual
or a report. They end where a sentence is under way or has just ended, for a model shows its style in what it does with either.

Intervals are taken over prompts, so there are enough of them, and no two open alike.
"""

PROMPTS = (
    "他推开门，", "那天晚上，", "她没有说话，", "天快亮的时候，",
    "雨下了一整夜。", "两个人沿着河边走，", "门外忽然有人说：“", "从那以后，",
    "老人抬起头，", "屋子里很静，", "他想了很久，", "过了一会儿，",
    "山路越走越窄，", "孩子们都跑了出来，", "母亲叫住他，", "谁也没有想到，",
    "他们坐下来，", "风从北边吹来，", "“你是什么人？”", "她把信收好，",
    "村里的人都知道，", "第二天一早，", "听到这句话，", "脚步声渐渐近了，",
    "他接过杯子，", "月亮升起来了。", "这件事说来话长。", "灯忽然灭了，",
    "他认得那个声音，", "走到桥头，", "饭还没有吃完，", "很多年以前，",
)  # fmt: skip
