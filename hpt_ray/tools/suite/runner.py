"""Carry a suite out: bases, tries, choice, reported runs, evaluations. What is done is skipped, whenever it was.

`look` says what there is, from the folders alone. `carry_out` does what is missing, kind by kind, and looks again
after each, since the next kind follows from it. A try or a run that fails leaves a hole that the report shows; the
next call tries it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hpt_ray.config.load import dump_config
from hpt_ray.data.mini import is_mini
from hpt_ray.data.mini.base import is_built
from hpt_ray.tools.suite import matrix
from hpt_ray.tools.suite.jobs import Job, Launcher
from hpt_ray.tools.suite.matrix import Choice, Pair, RunSpec
from hpt_ray.tools.suite.passes import Evaluation, evaluations_of
from hpt_ray.tools.suite.queue import Journal, Queue
from hpt_ray.tools.suite.state import Action, done_folders, fingerprint, state_of
from hpt_ray.tools.suite.suite import Suite


@dataclass(frozen=True)
class Done:
    """What there is of a suite: everything that a report about it is made of."""

    suite: Suite
    tries: Sequence[RunSpec]
    choices: Mapping[Pair, Choice]
    planned: Sequence[
        RunSpec
    ]  # the reported runs that are asked for; before the choice, with `untuned` values
    folders: Mapping[str, Path]  # of the tries and runs that are done, by id
    changed: Mapping[str, Sequence[str]] = field(default_factory=dict)  # made anew in this call, and why

    @property
    def runs(self) -> list[RunSpec]:
        """The planned ones whose values are known; a method that could not be tuned is left out."""
        tuned = {run.id: matrix.tuned_pair(self.suite, run.pair) for run in self.planned}
        return [
            r for r in self.planned if tuned[r.id] in self.choices or not self.suite.tries(tuned[r.id][1])
        ]

    @property
    def evaluations(self) -> list[Evaluation]:
        return evaluations_of(self.suite, self.runs, self.folders)

    @property
    def missing_evaluations(self) -> list[Evaluation]:
        return [evaluation for evaluation in self.evaluations if not evaluation.is_done]

    @property
    def journal(self) -> Journal:
        return Journal(self.suite.out / "journal.jsonl")

    @property
    def missing(self) -> dict[str, str]:
        """Runs and evaluations that should be there and are not, with the reason."""
        undecided = {run.id for run in self.planned} - {run.id for run in self.runs}
        reasons = {**dict.fromkeys(undecided, "no try of it was there"), **self.journal.last_errors()}
        absent = [run.id for run in (*self.tries, *self.planned) if run.id not in self.folders]
        absent += [evaluation.id for evaluation in self.missing_evaluations]
        return {name: reasons.get(name, "not run") for name in absent}


def look(suite: Suite, only: Sequence[str] = ()) -> Done:
    """What is there. `only`: patterns of ids of reported runs; the tries that these need are looked at too."""
    fallback = matrix.untuned(suite)
    wanted = matrix.matching(matrix.reported_runs(suite, fallback), only)
    tries = matrix.sweep_runs(suite, list(dict.fromkeys(run.pair for run in wanted)))
    folders = done_folders(tries)
    choices = matrix.choose(suite, tries, folders)
    chosen = {pair: choice.settings for pair, choice in choices.items()}
    ids = {run.id for run in wanted}
    planned = [run for run in matrix.reported_runs(suite, {**fallback, **chosen}) if run.id in ids]
    return Done(suite, tries, choices, planned, folders | done_folders(planned))


async def carry_out(suite: Suite, launcher: Launcher, console: Console, only: Sequence[str] = ()) -> Done:
    """Everything that is missing, then what there is. Raises nothing for jobs that fail."""
    done = look(suite, only)
    absent = [run for run in (*done.tries, *done.planned) if run.id not in done.folders]
    bases = _missing_bases(suite, absent)
    as_if_done = {run.id: Path(run.id) for run in done.planned} | dict(done.folders)
    all_evaluations = evaluations_of(suite, done.planned, as_if_done)
    num_runs = len(bases) + len(absent)
    changed: dict[str, Sequence[str]] = {}
    queue = Queue(
        launcher,
        parallel=suite.keys.parallel,
        timeout_s=suite.keys.timeout_s,
        journal=done.journal,
        console=console,
        total=num_runs + sum(not evaluation.is_done for evaluation in all_evaluations),
    )
    for base in bases:  # one at a time and before the runs, several of which would each build it
        await queue.run([base])
    for kind in ("tries", "runs"):
        missing = [run for run in getattr(done, kind) if run.id not in done.folders]
        changed |= _said_changes(missing, console)
        await queue.run([_job(suite, run) for run in missing])
        done = look(suite, only)
    for evaluation in done.evaluations:
        evaluation.write_configuration()
    queue.total = num_runs + len(done.missing_evaluations)
    await queue.run([evaluation.job(suite.out / "logs") for evaluation in done.missing_evaluations])
    return replace(done, changed=changed)


def _missing_bases(suite: Suite, runs: Sequence[RunSpec]) -> list[Job]:
    """The small task's bases that the runs begin from and that are not built yet."""
    paths = dict.fromkeys(run.config.model.path for run in runs if is_mini(run.config.model.path))
    logs = {path: suite.out / "logs" / f"base-{path.replace(':', '-')}.log" for path in paths}
    return [
        Job(f"base {path}", ("hpt_ray.cli.mini_base", path), log)
        for path, log in logs.items()
        if not is_built(path)
    ]


def _said_changes(runs: Sequence[RunSpec], console: Console) -> dict[str, Sequence[str]]:
    """Those of which a run with another configuration is there, with what differs; printed too."""
    states = {run.id: state_of(run) for run in runs}
    changed = {name: s.differences for name, s in states.items() if s.action is Action.CHANGED}
    for name, why in changed.items():
        console.print(Text(f"{name} runs again, its configuration changed: {'; '.join(why)}"), soft_wrap=True)
    return changed


def _job(suite: Suite, run: RunSpec) -> Job:
    """Its configuration is written down first: what runs is a file that can be run by hand."""
    path = suite.out.absolute() / "configs" / f"{run.id}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    dump_config(run.config, path)
    state = state_of(run)
    resume = [f"resume={state.root}"] if state.action is Action.CONTINUE else []
    words = ("hpt_ray.main", "--config", str(path), *resume)
    return Job(run.id, words, suite.out / "logs" / f"{run.id}.log", fingerprint(run.config))
