"""Carry a suite out: bases, tries, choice, reported runs, pass@k. What is done is skipped, whenever it was done.

In: a `Suite` and a launcher. Out: a `Done`, from which the report is drawn. A try or a run that fails leaves a
hole that the report shows; the next call tries it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hpt_ray.config.load import dump_config
from hpt_ray.data.mini import is_mini
from hpt_ray.data.mini.base import is_built
from hpt_ray.tools.suite.jobs import Job, Launcher
from hpt_ray.tools.suite.matrix import Pair, RunSpec, matching, reported_runs, sweep_runs, untuned
from hpt_ray.tools.suite.passes import Evaluation, evaluations_of, write_configurations
from hpt_ray.tools.suite.queue import Journal, Queue
from hpt_ray.tools.suite.state import Action, State, fingerprint, state_of
from hpt_ray.tools.suite.suite import Suite
from hpt_ray.tools.suite.sweep import Choice, choose


@dataclass
class Done:
    """Everything that a report about a suite is made of. Folders by the id of a run or an evaluation."""

    suite: Suite
    tries: list[RunSpec]
    choices: dict[Pair, Choice]
    runs: list[RunSpec]  # reported ones, with the values that were chosen
    wanted: Sequence[str] = ()  # ids of all reported runs that were asked for
    folders: dict[str, Path] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    changed: dict[str, Sequence[str]] = field(default_factory=dict)  # made anew in this call, and why

    @property
    def journal(self) -> Journal:
        return Journal(self.suite.out / "journal.jsonl")

    @property
    def missing(self) -> dict[str, str]:
        """Runs and evaluations that should be there and are not, with the reason."""
        untuned = dict.fromkeys(set(self.wanted) - {run.id for run in self.runs}, "no try of it was there")
        reasons = {**untuned, **self.journal.last_errors()}
        names = dict.fromkeys([*(run.id for run in (*self.tries, *self.runs)), *self.wanted])
        absent = [name for name in names if name not in self.folders]
        absent += [evaluation.id for evaluation in self.evaluations if not evaluation.is_done]
        return {name: reasons.get(name, "not run") for name in absent}


@dataclass
class Runner:
    """One call. `only`: patterns of run ids; the tries that those runs need are run too."""

    suite: Suite
    launcher: Launcher
    console: Console
    only: Sequence[str] = ()

    def wanted(self) -> list[RunSpec]:
        """The reported runs that are asked for, as if nothing had to be tuned."""
        return matching(reported_runs(self.suite, untuned(self.suite)), self.only)

    def plan(self) -> tuple[list[RunSpec], list[RunSpec]]:
        """The tries and the reported runs as far as they are known: with the choices that are possible now."""
        wanted = self.wanted()
        tries = sweep_runs(self.suite, _pairs(wanted))
        return tries, self._reported(choose(self.suite, tries, done_folders(tries)), wanted, strict=False)

    def gather(self) -> Done:
        """What is there, with nothing started."""
        wanted = self.wanted()
        tries = sweep_runs(self.suite, _pairs(wanted))
        done = Done(self.suite, tries, {}, [], folders=done_folders(tries))
        self._take_choices(done, wanted)
        done.folders |= done_folders(done.runs)
        done.evaluations = evaluations_of(self.suite, done.runs, done.folders)
        return done

    async def run(self) -> Done:
        """Everything that is missing, then what there is. Raises nothing for jobs that fail."""
        suite, wanted = self.suite, self.wanted()
        tries, planned = self.plan()
        done = Done(suite, tries, {}, [])
        bases = self._missing_bases([*tries, *planned])
        num_runs = len(bases) + _count(tries) + _count(planned)
        with Queue(
            self.launcher,
            parallel=suite.keys.parallel,
            timeout_s=suite.keys.timeout_s,
            journal=done.journal,
            console=self.console,
            total=num_runs + self._num_evaluations(planned),
        ) as queue:
            for base in bases:  # one at a time and before the runs, several of which would each build it
                await queue.run([base])
            await self._run_all(queue, done.tries, done)
            self._take_choices(done, wanted)
            await self._run_all(queue, done.runs, done)
            done.evaluations = evaluations_of(suite, done.runs, done.folders)
            write_configurations(suite, done.runs)
            missing = [e for e in done.evaluations if not e.is_done]
            queue.expect(num_runs + len(missing))
            await queue.run([e.job(suite.out / "logs") for e in missing])
        return done

    def _num_evaluations(self, wanted: Sequence[RunSpec]) -> int:
        """How many there will be if no run fails."""
        folders = {run.id: state_of(run).root or Path(run.id) for run in wanted}
        return sum(not e.is_done for e in evaluations_of(self.suite, wanted, folders))

    def _take_choices(self, done: Done, wanted: Sequence[RunSpec]) -> None:
        done.choices = choose(self.suite, done.tries, done.folders)
        done.runs = self._reported(done.choices, wanted, strict=True)
        done.wanted = [run.id for run in wanted]

    def _reported(
        self, choices: Mapping[Pair, Choice], wanted: Sequence[RunSpec], *, strict: bool
    ) -> list[RunSpec]:
        """The wanted runs with their chosen values. Where a method could not be tuned it keeps the values of
        `untuned` in a plan, and is left out (`strict`) when it comes to running."""
        suite = self.suite
        chosen = {pair: choice.settings for pair, choice in choices.items()}
        fallback = {
            pair: settings
            for pair, settings in untuned(suite).items()
            if not strict or not suite.tries(pair[1])
        }
        ids = {run.id for run in wanted}
        return [run for run in reported_runs(suite, {**fallback, **chosen}) if run.id in ids]

    def _missing_bases(self, runs: Sequence[RunSpec]) -> list[Job]:
        """The small task's bases that the runs begin from and that are not built yet."""
        wanted = [run for run in runs if state_of(run).action is not Action.DONE]
        names = dict.fromkeys(run.config.model.path for run in wanted if is_mini(run.config.model.path))
        logs = self.suite.out / "logs"
        return [
            Job(f"base {name}", ("hpt_ray.cli.mini_base", name), logs / f"base-{name.replace(':', '-')}.log")
            for name in names
            if not is_built(name)
        ]

    async def _run_all(self, queue: Queue, runs: Sequence[RunSpec], done: Done) -> None:
        states = {run.id: state_of(run) for run in runs}
        for run_id, state in states.items():
            if state.action is Action.CHANGED:
                done.changed[run_id] = state.differences
                self.console.print(
                    Text(f"{run_id} runs again, its configuration changed: {'; '.join(state.differences)}"),
                    soft_wrap=True,
                )
        jobs = [self._job(run, states[run.id]) for run in runs if states[run.id].action is not Action.DONE]
        await queue.run(jobs)
        done.folders |= done_folders(runs)

    def _job(self, run: RunSpec, state: State) -> Job:
        """Its configuration is written down first: what runs is a file that can be run by hand."""
        path = self.suite.out.absolute() / "configs" / f"{run.id}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        dump_config(run.config, path)
        words = ["hpt_ray.main", "--config", str(path)]
        if state.action is Action.CONTINUE:
            words.append(f"resume={state.root}")
        return Job(run.id, tuple(words), self.suite.out / "logs" / f"{run.id}.log", fingerprint(run.config))


def done_folders(runs: Sequence[RunSpec]) -> dict[str, Path]:
    """The folders of the runs that are done."""
    states = {run.id: state_of(run) for run in runs}
    return {
        name: state.root
        for name, state in states.items()
        if state.action is Action.DONE and state.root is not None
    }


def _count(runs: Sequence[RunSpec]) -> int:
    return sum(state_of(run).action is not Action.DONE for run in runs)


def _pairs(runs: Sequence[RunSpec]) -> list[Pair]:
    return list(dict.fromkeys((run.model, run.method) for run in runs))
