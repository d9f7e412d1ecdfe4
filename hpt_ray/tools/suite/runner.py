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
from hpt_ray.data.mini.base import parse_name
from hpt_ray.tools.suite import matrix
from hpt_ray.tools.suite.jobs import Job, Launcher
from hpt_ray.tools.suite.matrix import Choice, Pair, RunSpec
from hpt_ray.tools.suite.passes import Evaluation, evaluations_of
from hpt_ray.tools.suite.queue import Journal, Queue
from hpt_ray.tools.suite.state import Action, State, fingerprint, state_of
from hpt_ray.tools.suite.suite import Suite


@dataclass(frozen=True)
class Done:
    """What there is of a suite: everything that a report about it is made of.

    `planned`: the reported runs that are asked for; those without a choice yet have the values of `untuned`.
    `states`: of tries and planned runs, by id. `changed`: the runs made anew in this call, and what differed.
    """

    suite: Suite
    tries: Sequence[RunSpec]
    choices: Mapping[Pair, Choice]
    planned: Sequence[RunSpec]
    states: Mapping[str, State]
    changed: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def folders(self) -> dict[str, Path]:
        """Of the tries and runs that are done, by id."""
        return folders_of(self.states)

    @property
    def runs(self) -> list[RunSpec]:
        """The planned ones whose values are known; a method that could not be tuned is left out."""
        pairs = [(run, matrix.tuned_pair(self.suite, run.pair)) for run in self.planned]
        return [run for run, pair in pairs if pair in self.choices or not self.suite.tries(pair[1])]

    @property
    def evaluations(self) -> list[Evaluation]:
        return evaluations_of(self.suite, self.runs, self.folders)

    @property
    def evaluations_to_be(self) -> list[Evaluation]:
        """Those that there will be if every run ends well."""
        return evaluations_of(
            self.suite, self.planned, {run.id: Path(run.id) for run in self.planned} | self.folders
        )

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
    states = {run.id: state_of(run) for run in tries}
    choices = matrix.choose(suite, tries, folders_of(states))
    chosen = {pair: choice.settings for pair, choice in choices.items()}
    ids = {run.id for run in wanted}
    planned = (
        [run for run in matrix.reported_runs(suite, fallback | chosen) if run.id in ids] if chosen else wanted
    )
    states |= {run.id: state_of(run) for run in planned}
    return Done(suite, tries, choices, planned, states)


def folders_of(states: Mapping[str, State]) -> dict[str, Path]:
    """Those of the runs that are done."""
    return {name: state.root for name, state in states.items() if state.is_done and state.root is not None}


async def carry_out(suite: Suite, launcher: Launcher, console: Console, only: Sequence[str] = ()) -> Done:
    """Everything that is missing, then what there is. Raises nothing for jobs that fail."""
    done = look(suite, only)
    absent = [run for run in (*done.tries, *done.planned) if not done.states[run.id].is_done]
    bases = _missing_bases(suite, absent)
    total = len(bases) + len(absent) + sum(not evaluation.is_done for evaluation in done.evaluations_to_be)
    queue = Queue(launcher, done.journal, console, suite.keys.parallel, suite.keys.timeout_s, total)
    for base in bases:  # one at a time and before the runs, several of which would each build it
        await queue.run([base])
    changed: dict[str, Sequence[str]] = {}
    for kind in ("tries", "runs"):
        missing = [run for run in getattr(done, kind) if not done.states[run.id].is_done]
        for run in missing:
            if done.states[run.id].action is Action.CHANGED:
                changed[run.id] = why = done.states[run.id].differences
                said = f"{run.id} runs again, its configuration changed: {'; '.join(why)}"
                console.print(Text(said), soft_wrap=True)
        await queue.run([_job(suite, run, done.states[run.id]) for run in missing])
        done = look(suite, only)
    for evaluation in done.evaluations:
        evaluation.write_configuration()
    queue.total = len(bases) + len(absent) + len(done.missing_evaluations)
    await queue.run([evaluation.job(suite.out / "logs") for evaluation in done.missing_evaluations])
    return replace(done, changed=changed)


def _missing_bases(suite: Suite, runs: Sequence[RunSpec]) -> list[Job]:
    """The small task's bases that the runs begin from and that are not built yet."""
    paths = dict.fromkeys(run.config.model.path for run in runs)
    logs = {path: suite.out / "logs" / f"base-{path.replace(':', '-')}.log" for path in paths}
    missing = [path for path in paths if is_mini(path) and not parse_name(path).is_built]
    return [Job(f"base {path}", ("hpt_ray.cli.mini_base", path), logs[path]) for path in missing]


def _job(suite: Suite, run: RunSpec, state: State) -> Job:
    """Its configuration is written down first: what runs is a file that can be run by hand."""
    path = suite.out.absolute() / "configs" / f"{run.id}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    dump_config(run.config, path)
    resume = [f"resume={state.root}"] if state.action is Action.CONTINUE else []
    words = ("hpt_ray.main", "--config", str(path), *resume)
    return Job(run.id, words, suite.out / "logs" / f"{run.id}.log", fingerprint(run.config))
