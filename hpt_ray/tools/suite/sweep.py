"""The choice of each method's values: the try with the best mean on the validation sets.

In: the run folders of the tries. Out: per (model, method) a `Choice` with every try's score, so that the
report can show what was tried and how close it was. Of equals, the try that the suite lists first. A try of
which a run failed has no score; where no try has one, there is no choice, and the method does not run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.suite.matrix import Pair, RunSpec
from hpt_ray.tools.suite.suite import Settings, Suite


@dataclass(frozen=True, slots=True)
class Try:
    """One setting and its mean over validation sets and seeds; None where a run of it is missing."""

    settings: Settings
    score: float | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The tries of a method on a model, in the order of the suite, and the one that was chosen."""

    tries: Sequence[Try]
    chosen: int

    @property
    def settings(self) -> Settings:
        return self.tries[self.chosen].settings

    @property
    def at_edge(self) -> list[str]:
        """Keys of which the lowest or highest of three values or more was best: a better one may lie beyond."""
        names = [name for name, value in self.settings.items() if isinstance(value, (int, float))]
        tried = {name: {t.settings[name] for t in self.tries if name in t.settings} for name in names}
        return [n for n in names if len(tried[n]) > 2 and self.settings[n] in (min(tried[n]), max(tried[n]))]


def choose(suite: Suite, runs: Sequence[RunSpec], folders: Mapping[str, Path]) -> dict[Pair, Choice]:
    """The choices that the finished runs allow; `folders`: of the finished ones, by id."""
    names = suite.keys.sweep.select_on or list(suite.keys.sweep.sets)
    scores: dict[Pair, dict[int, list[float | None]]] = {}
    settings: dict[tuple[Pair, int], Settings] = {}
    for run in runs:
        assert run.number is not None, f"{run.id} is no try"
        pair = run.model, run.method
        score = mean_of(folders[run.id], names) if run.id in folders else None
        scores.setdefault(pair, {}).setdefault(run.number, []).append(score)
        settings[pair, run.number] = run.settings
    choices = {
        pair: best_of(
            [Try(settings[pair, number], _mean(of_try)) for number, of_try in sorted(by_number.items())]
        )
        for pair, by_number in scores.items()
    }
    return {pair: choice for pair, choice in choices.items() if choice is not None}


def best_of(tries: Sequence[Try]) -> Choice | None:
    """The choice among tries; None where none has a score."""
    scored = [(-t.score, i) for i, t in enumerate(tries) if t.score is not None]
    return Choice(tries, min(scored)[1]) if scored else None


def mean_of(root: Path, names: Sequence[str]) -> float:
    """The mean over these sets of a finished run's last evaluation."""
    evaluations = json.loads(RunFolder(root).summary.read_text(encoding="utf-8"))["evaluations"]
    return fmean(evaluations[name]["last"]["mean"] for name in names)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return fmean(known) if len(known) == len(scores) else None
