"""What the figures of a run come to, in a sentence or two that a person can act on, in both languages. Computes nothing new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .figures import Change, frontier
from .stage import Stage
from .words import Said, part_name
from .written import between, change, nats, of_loss, share, whole


def reading(stages: Sequence[Stage]) -> list[Said]:
    """Sentences about one run: what its last stages reached, what each took over from the one before, and what went wrong."""
    last = ends(stages)
    found = [_named(_reached(stage), stage, several=len(last) > 1) for stage in last]
    found += [said for stage in stages if stage.parent is not None and (said := _handed_on(stages[stage.parent], stage))]
    for stage in stages:
        found += [_named(said, stage, several=len(stages) > 1) for said in _trouble(stage)]
    return found


def ends(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that no other one goes on from."""
    parents = {stage.parent for stage in stages}
    return [stage for number, stage in enumerate(stages) if number not in parents]


def comparison(stages: Sequence[Stage], names: Sequence[str]) -> list[Said]:
    """Sentences about several: which learned most, which forgot least, which no other beats in both."""
    placed = [(name, *both) for name, stage in zip(names, stages, strict=True) if (both := _both(stage))]
    if not placed:
        measured = [(name, done) for name, stage in zip(names, stages, strict=True) for done in _changes(stage)[:1]]
        if not measured:
            return [Said("Nothing was measured on held-out text.", "没有在留出文本上的测量。")]
        name, (part, done) = min(measured, key=lambda one: one[1][1].nats)
        what = part_name(part)
        return [Said(
            f"Best on {what.en}: {name} ({change(done.share)} perplexity).", f"{what.zh}最好的是 {name}（困惑度 {change(done.share)}）。"
        )]  # fmt: skip
    most = min(placed, key=lambda one: one[1].nats)
    least = min(placed, key=lambda one: one[2].nats)
    found = [Said(
        f"Most style: {most[0]} ({change(most[1].share)} perplexity). "
        f"Least forgetting: {least[0]} (general text {change(least[2].share)}).",
        f"风格最强：{most[0]}（困惑度 {change(most[1].share)}）。遗忘最少：{least[0]}（通用文本 {change(least[2].share)}）。",
    )]  # fmt: skip
    ahead = [placed[number][0] for number in frontier([(general.nats, -style.nats) for _, style, general in placed])]
    if len(placed) > 1:
        found.append(Said(
            f"No other has both more style and less forgetting than: {', '.join(ahead)}.",
            f"没有被其他运行同时在两方面超过的：{'、'.join(ahead)}。",
        ))  # fmt: skip
    return found


def _both(stage: Stage) -> tuple[Change, Change] | None:
    style, general = stage.change("style"), stage.change("general")
    return (style, general) if style and general else None


def _changes(stage: Stage) -> list[tuple[str, Change]]:
    return [(part, found) for part in stage.parts if (found := stage.change(part))]


def _named(said: Said, stage: Stage, *, several: bool) -> Said:
    return Said(f"{stage.name}: {said.en[0].lower()}{said.en[1:]}", f"{stage.name}：{said.zh}") if several else said


def _reached(stage: Stage) -> Said:
    """Against the origin, with the adapter that was kept."""
    changes = _changes(stage)
    if not changes:
        return _unmeasured(stage)
    clauses = [_clause(part, found) for part, found in changes]
    en, zh = "; ".join(clause.en for clause in clauses) + ".", "；".join(clause.zh for clause in clauses) + "。"
    if stage.state in ("done", "broken"):
        return Said(en[0].upper() + en[1:], zh)
    done = whole(stage.step) + (f" of {whole(stage.steps)}" if stage.steps else "")
    so_far = whole(stage.step) + (f"/{whole(stage.steps)}" if stage.steps else "")
    return Said(f"So far, at step {done}: {en}", f"目前（第 {so_far} 步）：{zh}")


def _unmeasured(stage: Stage) -> Said:
    losses = stage.losses
    if stage.parts:
        told = [(part_name(part), of_loss(float(stage.part(part).values[0]))) for part in stage.parts]
        en = "; ".join(f"{part.en} perplexity {value}" for part, value in told)
        zh = "；".join(f"{part.zh}困惑度 {value}" for part, value in told)
        return Said(f"Measured before the first step only: {en}.", f"仅在训练前测量过：{zh}。")
    if not len(losses):
        return Said("No figures yet.", "还没有数据。")
    size = max(1, len(losses) // 10)
    first, last = nats(losses.values[:size].mean()), nats(losses.values[-size:].mean())
    return Said(
        f"Nothing was held out, so only the training loss is known: {first} → {last} nats per token.",
        f"没有留出文本，只知道训练损失：{first} → {last} nat/token。",
    )


def _clause(part: str, found: Change) -> Said:
    """One part: what became of it, by how much."""
    what, by = part_name(part), change(found.share, sign=False)
    values = f"{of_loss(found.before)} → {of_loss(found.after)}"
    if found.direction == 0:
        within = f", 95 % interval {between(found.interval)}" if found.interval else ""
        inside = f"，95 % 区间 {between(found.interval)}" if found.interval else ""
        return Said(
            f"{what.en} did not change measurably ({change(found.share)} perplexity{within})",
            f"{what.zh}没有可测的变化（困惑度 {change(found.share)}{inside}）",
        )
    if part == "general":
        how, wie = ("better", "变好") if found.direction < 0 else ("worse", "变差")
        return Said(f"{what.en} got {how} by {by} ({values})", f"{what.zh}{wie} {by}（{values}）")
    how, wie = ("fell", "下降") if found.direction < 0 else ("rose", "上升")
    return Said(f"{what.en} perplexity {how} by {by} ({values})", f"{what.zh}困惑度{wie} {by}（{values}）")


def _handed_on(before: Stage, after: Stage) -> Said | None:
    """What a later stage kept of the style and took back of the forgetting of the one it goes on from. Shares are of nats."""
    first, last = _both(before), _both(after)
    if not first or not last or first[0].nats >= 0 or any(a.before != b.before for a, b in zip(first, last, strict=True)):
        return None  # without a gain there is nothing to keep, and figures of different texts do not compare
    kept = last[0].nats / first[0].nats
    en = f"{after.name} keeps {share(kept)} of the style gain of {before.name}"
    zh = f"{after.name} 保留了 {before.name} 风格增益的 {share(kept)}"
    if first[1].direction <= 0:
        return Said(f"{en}, which had forgotten nothing.", f"{zh}；后者本来没有遗忘。")
    back = 1 - last[1].nats / first[1].nats
    if back < 0:
        return Said(f"{en} and forgets {share(-back)} more than it.", f"{zh}，遗忘比它多 {share(-back)}。")
    return Said(f"{en} and takes back {share(back)} of its forgetting.", f"{zh}，追回了其遗忘的 {share(back)}。")


def _trouble(stage: Stage) -> Iterator[Said]:
    """Overfitting, spikes, a loss that is no number."""
    if stage.overfitting is not None:
        step = whole(stage.overfitting)
        yield Said(
            f"Overfitting begins at step {step}: from there the held-out loss rises while the training loss falls.",
            f"从第 {step} 步开始过拟合：此后留出损失上升而训练损失下降。",
        )
    if stage.spikes:
        count = whole(len(stage.spikes))
        times = "once" if len(stage.spikes) == 1 else f"{count} times"
        yield Said(f"The training loss jumped {times}, first at step {whole(stage.spikes[0])}.",
                   f"训练损失突跳 {count} 次，首次在第 {whole(stage.spikes[0])} 步。")  # fmt: skip
    if stage.broken:
        step = whole(stage.broken[0])
        yield Said(f"The training loss was no number at step {step}.", f"第 {step} 步的训练损失不是数值。")
