"""A step and an evaluation as one line each, made from the step's line of metrics.jsonl.

A line is a list of parts in the order in which they are read. Where it is too long, the least important parts are
left out; what went wrong never is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from hpt_ray.text import printable

GAP = "  "
ALWAYS = 0  # the rank of a part that stays
BAD, ODD = "bold red", "yellow"
Metrics = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Some words of a line. Of two parts, the one of the higher rank is left out first."""

    text: str
    rank: int = ALWAYS
    style: str = ""


def step_parts(step: int, total: int, metrics: Metrics, seconds_left: float | None) -> list[Part]:
    """What one wants to know of a step; parts whose number is not there are not there either."""
    numbers: list[tuple[str, float | None, int]] = [
        ("reward {:.3f}", metrics.get("reward/mean"), ALWAYS),
        ("prefix reward {:.3f}", metrics.get("reward/prefix_mean"), 1),
        ("demos {:4.0%}", metrics.get("selection/demo_share"), 3),
        ("length {:.0f}", metrics.get("rollout/length_mean"), 5),
        ("entropy {:.2f}", metrics.get("policy/entropy"), 7),
        ("loss {:.3g}", metrics.get("loss/total"), 6),
    ]
    parts = [step_part(step, total)]
    parts += [Part(text.format(number), rank) for text, number, rank in numbers if number is not None]
    tokens_per_s = metrics.get("rollout/tokens_per_s") or metrics.get("learner/tokens_per_s")
    if tokens_per_s:
        parts.append(Part(f"{short_count(tokens_per_s)} tok/s", 8))
    if metrics.get("time/step_s") is not None:
        parts.append(Part(f"{short_seconds(metrics['time/step_s'])}/step", 4))
    if seconds_left is not None:
        parts.append(Part(f"{short_time(seconds_left)} left", 2))
    return [*parts, *failures(metrics)]


def step_part(step: int, total: int) -> Part:
    return Part(f"step {step:>{len(str(total))}}/{total}", style="bold")


def failures(metrics: Metrics) -> list[Part]:
    """What did not go as it should in this step, the worst first; red where a person should look at once."""
    outcomes = {name: n for name, n in metrics.items() if name.startswith("reward/outcome/")}
    truncated = metrics.get("rollout/truncated_ratio") or 0.0
    failed = outcomes.get("reward/outcome/error", 0) + outcomes.get("reward/outcome/timeout", 0)
    found = [
        (f"rewards failed {failed}/{sum(outcomes.values())}", failed, BAD),
        ("rollouts lost {}", metrics.get("rollout/finish/lost"), BAD),
        ("updates skipped {}", metrics.get("learner/skipped_updates"), BAD),
        ("critic updates skipped {}", metrics.get("critic/skipped_updates"), BAD),
        *(
            (f"{name.removeprefix('faults/').replace('_', ' ')} {{}}", number, BAD)
            for name, number in metrics.items()
            if name.startswith("faults/")
        ),
        (f"truncated {_percent(truncated)}", truncated, ODD),
        ("unparsable {}", outcomes.get("reward/outcome/unparsable"), ODD),
        ("not finite {}", metrics.get("observe/non_finite"), ODD),
        ("trackers off {}", metrics.get("observe/trackers_disabled"), ODD),
    ]
    return [Part(text.format(number), style=style) for text, number, style in found if number]


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def evaluation_parts(step: int, metrics: Metrics, before: Mapping[str, float]) -> list[Part]:
    """Every set's mean and how it changed against `before`; of several sets their mean first. Empty: no evaluation."""
    means = evaluation_means(metrics)
    if not means:
        return []
    parts = [Part(f"evaluation of step {step}", style="bold")]
    if len(means) > 1:
        both = [name for name in means if name in before]
        old = sum(before[name] for name in both) / len(both) if len(both) == len(means) else None
        parts.append(_score("mean", sum(means.values()) / len(means), old))
    parts += [_score(name, mean, before.get(name)) for name, mean in means.items()]
    parts += [
        Part(f"{name} rewards failed {_percent(share)}", style=BAD)
        for name in means
        if (share := metrics.get(f"eval/{name}/failure_share"))
    ]
    if metrics.get("time/evaluation_s") is not None:
        parts.append(Part(short_seconds(metrics["time/evaluation_s"])))
    return parts


def evaluation_means(metrics: Metrics) -> dict[str, float]:
    found = {re.fullmatch("eval/(.+)/mean", name): value for name, value in metrics.items()}
    return {name[1]: value for name, value in found.items() if name and value is not None}


def _score(name: str, mean: float, before: float | None) -> Part:
    if before is None:
        return Part(f"{name} {mean:.3f}")
    change = round(mean - before, 3)
    style = "green" if change > 0 else "red" if change < 0 else ""
    return Part(f"{name} {mean:.3f} ({change:+.3f})" if change else f"{name} {mean:.3f} (=)", style=style)


def in_one_line(parts: Sequence[Part], width: int | None) -> Text:
    """The parts in one line of at most `width` columns; in several where those that stay are too long."""
    kept = list(parts)
    while width is not None and len(joined(kept)) > width:
        last = max(kept, key=lambda part: part.rank)
        if last.rank == ALWAYS:
            break
        kept.remove(last)
    return in_lines(kept, width)


def in_lines(parts: Sequence[Part], width: int | None) -> Text:
    """All parts, in as many lines as it takes; a line breaks between two parts only."""
    lines: list[list[Part]] = [[]]
    for part in parts:
        indent = 0 if len(lines) == 1 else len(GAP)
        if lines[-1] and width is not None and indent + len(joined([*lines[-1], part])) > width:
            lines.append([])
        lines[-1].append(part)
    return Text("\n" + GAP).join(joined(line) for line in lines)


def joined(parts: Sequence[Part]) -> Text:
    return Text(GAP).join(Text(printable(part.text), part.style) for part in parts)


def short_count(number: float) -> str:
    """Four or five characters: 950, 1.2k, 34k, 5.6M."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale * 0.9995:
            value = number / scale
            return f"{value:.1f}{letter}" if value < 9.95 else f"{value:.0f}{letter}"
    return f"{number:.0f}"


def short_time(seconds: float) -> str:
    """42s, 3m05s, 2h07m, 3d04h."""
    whole = max(0, round(seconds))
    for unit, small, letters in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= unit:
            return f"{whole // unit}{letters[0]}{whole % unit // small:02d}{letters[1]}"
    return f"{whole}s"


def short_seconds(seconds: float) -> str:
    """As `short_time`, but of less than ten seconds with their tenths: 0.4s, 9.2s."""
    return f"{seconds:.1f}s" if seconds < 9.95 else short_time(seconds)
