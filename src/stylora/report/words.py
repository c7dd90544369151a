"""Every fixed word of a report, in English and in Chinese. Knows nothing of figures."""

from __future__ import annotations

from typing import NamedTuple


class Said(NamedTuple):
    """One text in both languages. The names of the fields are the languages' codes."""

    en: str
    zh: str

    def of(self, language: str) -> str:
        """In `en` or `zh`."""
        return str(getattr(self, language))


LANGUAGES = Said._fields

Text = Said | str
"""A text in both languages, or one that is the same in both, such as a name."""


def both(text: Text) -> Said:
    """A text that is the same in both languages, as one in both."""
    return text if isinstance(text, Said) else Said(text, text)


PARTS = {
    "style": Said("style", "风格"),
    "general": Said("general text", "通用文本"),
    "answers": Said("answers", "回答"),
    "branches": Said("branches", "分支"),
}
"""parts of the held-out text; others go by their own name"""


def part_name(part: str) -> Said:
    """What a part of the held-out text is called."""
    return PARTS.get(part) or both(part)


SCORES = {
    "exact": Said("exact", "完全一致"),
    "accuracy": Said("accuracy", "准确率"),
    "macro_f1": Said("macro-F1", "宏 F1"),
    "json_valid": Said("valid JSON", "有效 JSON"),
    "pair_precision": Said("pair precision", "键值对精确率"),
    "pair_recall": Said("pair recall", "键值对召回率"),
    "pair_f1": Said("pair F1", "键值对 F1"),
}
"""metrics of a task; others go by their own name"""


def score_name(name: str) -> Said:
    """What a metric of a task is called."""
    return SCORES.get(name) or both(name)


WORDS = {
    # headline
    "report": Said("training report", "训练报告"),
    "comparison": Said("comparison", "对比"),
    "perplexity": Said("perplexity", "困惑度"),
    "perplexity_is": Said("perplexity per token, lower is better", "每 token 的困惑度，越低越好"),
    "stage": Said("stage", "阶段"),
    "run": Said("run", "运行"),
    "steps": Said("steps", "步数"),
    "base": Said("base", "基座"),
    "device": Said("device", "设备"),
    "state": Said("state", "状态"),
    "finished": Said("last change", "最后更新"),
    "duration": Said("training time", "训练用时"),
    "best_at": Said("best at step", "最佳步"),
    "interval": Said("95 % interval", "95 % 区间"),
    "troubles": Said("Files that could not be read", "无法读取的文件"),
    # sections
    "plane": Said("Style against forgetting", "风格与遗忘"),
    "plane_how": Said(
        "Each point is an evaluation. Up is more of the style learned, to the right is more of general text forgotten, both in nats per "
        "token against the base. The best place is the upper left; left of the zero line nothing was forgotten.",
        "每个点是一次评测。向上表示学到更多风格，向右表示遗忘更多通用能力，单位都是相对基座的 nat/token。"
        "左上角最好；零线左侧表示没有遗忘。",
    ),
    "plane_start": Said(
        "A base was not measured for every stage: there the origin is the adapter that the stage began with.",
        "有的阶段没有基座的测量值：其原点是该阶段开始时的适配器。",
    ),
    "weights": Said("weights and checkpoints", "各权重与检查点"),
    "measured": Said("Measured by evaluate", "evaluate 的测量"),
    "frontier": Said("no other beats these in both", "无人同时在两方面超过"),
    "last_point": Said("ringed: the adapter that was kept", "圆环：保留下来的适配器"),
    "curves": Said("Curves", "曲线"),
    "samples": Said("Samples", "样本"),
    "data": Said("Data", "数据"),
    "settings": Said("Settings", "设置"),
    "environment": Said("Environment", "环境"),
    "all_evaluations": Said("All evaluations", "全部评测"),
    # curves
    "loss": Said("Training loss", "训练损失"),
    "ce": Said("Cross-entropy", "交叉熵"),
    "kl": Said("KL to the reference", "与参考模型的 KL"),
    "learning_rate": Said("Learning rate", "学习率"),
    "grad_norm": Said("Gradient norm", "梯度范数"),
    "nats": Said("nats per token", "nat/token"),
    "before_clipping": Said("before clipping", "裁剪前"),
    "step": Said("optimizer step", "优化步"),
    "each_step": Said("as logged", "原始记录"),
    "smoothed": Said("smoothed", "平滑"),
    "best": Said("best", "最佳"),
    "kept": Said("kept", "保留"),
    "overfitting": Said("overfitting begins", "开始过拟合"),
    "spike": Said("loss spike", "损失突跳"),
    "broken": Said("no number", "非数值"),
    "forgetting_axis": Said("general text forgotten, nats per token", "通用文本的遗忘，nat/token"),
    "gain_axis": Said("style gained, nats per token", "风格增益，nat/token"),
    # samples
    "before": Said("before training", "训练前"),
    "step_number": Said("step {}", "第 {} 步"),
    "choose": Said("Choose an evaluation", "选择评测"),
    "prompt": Said("prompt", "提示"),
    "no_samples": Said("No prompts were continued in this run.", "本次运行没有续写提示。"),
    "style_score": Said("style score", "风格分"),
    "base_perplexity": Said("base perplexity", "基座困惑度"),
    "longest_copy": Said("longest copy", "最长抄录"),
    "stopped": Said("stopped by itself", "自行停止"),
    "cut": Said("cut off", "被截断"),
    # evaluation.json
    "model": Said("model", "模型"),
    "kl_style": Said("KL to base, style", "与基座的 KL（风格）"),
    "kl_general": Said("KL to base, general", "与基座的 KL（通用）"),
    "function_words": Said("function-word distance", "虚词距离"),
    "distinct_2": Said("distinct-2", "distinct-2"),
    "distinct_4": Said("distinct-4", "distinct-4"),
    "repeated": Said("repeated", "重复"),
    "degenerate": Said("degenerate", "退化"),
    "length": Said("length", "长度"),
    "copied": Said("copied", "抄录占比"),
    "voice": Said("The style classifier is right on {} of {} held-out passages.", "风格分类器在 {1} 段留出文本上的正确率为 {0}。"),
    "generated": Said("On text that the models wrote", "模型生成的文本"),
    "its_samples": Said("Texts and their figures", "各文本及其指标"),
    # three_way.json
    "three_way": Said("The stack and its parts", "叠加与各部分的对比"),
    "variant": Said("variant", "变体"),
    "variant_base": Said("base", "基座"),
    "variant_style": Said("style only", "仅风格"),
    "variant_stack": Said("style and instructions", "风格＋指令"),
    "variant_instruct": Said("instructions only", "仅指令"),
    "follows": Said("follows", "遵循格式"),
    "stops": Said("stops", "自行停止"),
    "in_style": Said("in style", "风格分"),
    "style_kept": Said("of style's gain", "保留的风格增益"),
    "answer_perplexity": Said("answers, perplexity", "回答困惑度"),
    "three_way_asked": Said(
        "{} questions ({}), the same for every variant, from the same draws.", "{} 个问题（{}），各变体相同，抽样相同。"
    ),
    "three_way_shape": Said(
        "An answer follows where it has the form of the training answers: lines at most {}, characters {} to {}, nothing of the template, "
        "and it stopped by itself.",
        "符合训练回答的形式即为遵循：不超过 {} 行，{} 到 {} 个字符，不含模板文字，且自行停止。",
    ),
    "three_way_endings": Said("It ends with one of {}", "结尾为以下字符之一：{}"),
    "three_way_style": Said(
        "Style is scored on answers cut to {} characters: otherwise length alone would decide.",
        "风格分在截取至 {} 个字符的回答上计算，否则长度本身就会左右结果。",
    ),
    "expected": Said("the answer in the data", "数据中的回答"),
    "answers_shown": Said("Answers side by side", "回答对照"),
    "breach_ran_on": Said("ran on", "未停止"),
    "breach_template": Said("text of the template", "含模板文字"),
    "breach_lines": Said("too many lines", "行数过多"),
    "breach_length": Said("of another length", "长度不符"),
    "breach_ending": Said("ends otherwise", "结尾不符"),
    # data and settings
    "held_out": Said("held out", "留出"),
    "held_out_is": Said(
        "{samples} windows, {tokens} tokens, {characters} characters", "{samples} 个窗口，{tokens} 个 token，{characters} 个字符"
    ),
    "held_out_rows": Said(
        "{samples} rows, {tokens} tokens, {characters} characters", "{samples} 行，{tokens} 个 token，{characters} 个字符"
    ),
    "rejects": Said("rows that could not be used", "无法使用的行"),
    "set": Said("Set otherwise than by default", "与默认不同的设置"),
    "as_default": Said("Everything is as by default.", "全部为默认值。"),
    "differing": Said("Settings that differ", "不同的设置"),
    "no_difference": Said("The recipes are the same.", "各配方相同。"),
    "whole_recipe": Said("The whole recipe", "完整配方"),
    "packages": Said("packages", "软件包"),
    "proofs": Said("proved at start", "启动时已验证"),
    "unlike": Said(
        "These were held out of different texts, so their perplexities do not compare; changes against the base do so only roughly.",
        "各运行的留出文本不同，困惑度不可直接比较；相对基座的变化也只能粗略比较。",
    ),
    "thinned": Said(
        "Long curves are drawn thinned: the lowest and the highest of each of {} equal stretches. Figures are computed from all points.",
        "长曲线为抽稀绘制：{} 个等长区段各取最低与最高点。所有数字由全部数据点计算。",
    ),
    "some_samples": Said("{} of {} evaluations are shown.", "显示 {1} 次评测中的 {0} 次。"),
    "made_by": Said("made by stylora {}", "由 stylora {} 生成"),
}

STATES = {
    "done": Said("done", "已完成"),
    "unfinished": Said("unfinished", "未完成"),
    "training": Said("training", "训练中"),
    "empty": Said("not begun", "未开始"),
    "broken": Said("damaged", "已损坏"),
}
"""states of a run, as `stylora runs` has them"""


def word(key: str, *values: object, **named: object) -> Said:
    """A text of WORDS with its places filled in."""
    found = WORDS[key]
    return Said(*(text.format(*values, **named) for text in found)) if values or named else found
