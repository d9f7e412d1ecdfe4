"""The sums that ranks and prompts report, as the means that metrics.jsonl shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from hpt_ray.algorithms import effective_sample_size

Sums = dict[str, tuple[float, float]]  # name -> (sum, count)


def means(parts: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, float | None]:
    """Means over everything that the parts (ranks, prompts) counted, under the names of metrics.jsonl."""
    sums: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for part in parts:
        for name, (total, count) in part.items():
            sums[name] = (sums[name][0] + total, sums[name][1] + count)
    derived = _importance(sums) | _explained(sums) | _away(sums)
    return {name: total / count if count else None for name, (total, count) in sums.items()} | derived


def _importance(sums: dict[str, tuple[float, float]]) -> dict[str, float | None]:
    """What the moments of the importance weights, which it takes out of `sums`, come to."""
    moments: Sums = {
        name: sums.pop(name) for name in ("policy/ratio", "policy/ratio_squared") if name in sums
    }
    if not moments:
        return {}
    num_tokens = moments["policy/ratio"][1]
    share = effective_sample_size({**moments}) if num_tokens else None
    return {"policy/effective_sample_size": share}


def _explained(sums: dict[str, tuple[float, float]]) -> dict[str, float | None]:
    """What the moments of returns G and errors G − V, which it takes out of `sums`, say about the critic."""
    names = ("critic/return", "critic/return_squared", "critic/error", "critic/error_squared")
    if names[0] not in sums:
        return {}
    (total, count), *others = (sums.pop(name) for name in names)
    if not count:
        return {"critic/return_mean": None, "critic/value_mean": None, "critic/explained_variance": None}
    returns, (returns_squared, error, error_squared) = total / count, (t / count for t, _ in others)
    variance = returns_squared - returns**2
    explained = 1 - (error_squared - error**2) / variance if variance > 1e-12 else None
    return {
        "critic/return_mean": returns,
        "critic/value_mean": returns - error,
        "critic/explained_variance": explained,
    }


def _away(sums: dict[str, tuple[float, float]]) -> dict[str, float | None]:
    """‖θ − θ₀‖/‖θ₀‖ of the two squares, which it takes out of `sums`."""
    moved, length = sums.pop("optim/base_distance_squared", (0.0, 0.0))
    return {"optim/base_distance": (moved / length) ** 0.5} if length else {}


def peaks(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest of what is reported as a maximum."""
    largest: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            largest[name] = max(value, largest.get(name, value))
    return largest
