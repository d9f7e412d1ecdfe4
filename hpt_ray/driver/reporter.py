"""What is written and shown of each step: metrics, trackers, the attempts of prompts, rollouts, samples, progress."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hpt_ray.algorithms import Estimator
from hpt_ray.checkpoint.state import RunState
from hpt_ray.config.references import public
from hpt_ray.config.schema import Config
from hpt_ray.driver.step_metrics import Pairs, advantages_of, responses_of
from hpt_ray.errors import in_one_line, is_full
from hpt_ray.observe.metrics import summarize_evaluations
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.prompt_history import PromptHistory
from hpt_ray.observe.rollout_dump import write_evaluation, write_rollouts
from hpt_ray.observe.run_folder import RunFolder, write_json
from hpt_ray.observe.step_line import evaluation_means, evaluation_parts
from hpt_ray.observe.tables import Shown, end_summary, row_of_sample, table_of_samples
from hpt_ray.observe.trackers import TrackerGroup, start_trackers
from hpt_ray.types import Decision, Group, has_reward

NUM_SHOWN = 3  # prompts whose responses are shown: the first on the terminal, all in trackers
NUM_EVALUATED = 20  # prompts of each eval set whose responses trackers get


class Reporter:
    """One run's lines. Each step is in every file once, also when the run goes back to an earlier one.

    `report` writes the page of a run and returns it; trackers get it at the end.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        progress: Progress,
        report: Callable[[Path], Path] | None = None,
    ):
        self._config, self._folder, self._progress, self._report = config, folder, progress, report
        self._history = PromptHistory(folder.root / "prompt_history.jsonl")
        self._trackers: TrackerGroup | None = None
        self._goes_on = False  # the next line is the first after a resume or a restart
        self._evaluated: dict[str, float] = {}  # the newest mean of each set
        recurring = {
            "time/evaluation_s": config.evaluation.every,
            "time/checkpoint_s": config.checkpoint.every,
        }
        progress.expect(recurring)
        self._faults: dict[int, Counter[str]] = {}  # that are in the lines written so far, by step
        self.full: Counter[str] = Counter()  # steps of which not all could be written
        self._full_since: int | None = None

    def go_to(self, step: int) -> None:
        """What follows is the line after `step`; what was written of later steps is taken back."""
        self._folder.cut_after(step)
        self._history.cut_after(step)
        self._faults = {at: found for at, found in self._faults.items() if at <= step}
        self._goes_on = step >= 0
        evaluations = summarize_evaluations(self._folder.read_metrics())
        self._evaluated = {name: points["last"]["mean"] for name, points in evaluations.items()}
        self.close()
        names = self._config.observe.trackers
        self._trackers = start_trackers(names, self._folder, public(self._config), first_step=step + 1)

    def write(
        self,
        step: int,
        metrics: dict[str, Any],
        pairs: Pairs,
        faults: Counter[str],
        estimator: Estimator,
    ) -> None:
        """The line of `step`. `faults` are all that happened since the run began."""
        assert self._trackers is not None, "go somewhere first"
        observe = self._config.observe
        if new := faults - sum(self._faults.values(), Counter()):
            self._faults[step] = new
        metrics |= {f"faults/{kind}": count for kind, count in new.items()}
        if self._goes_on:
            metrics["run/resumed"], self._goes_on = 1, False
        metrics |= {"step": step, "observe/trackers_disabled": len(self._trackers.failures)}
        written = self._folder.append_metrics(metrics)
        self._trackers.log(step, written)
        advantages = [advantages_of(*pair, estimator) for pair in pairs]
        self._trackers.log_values(step, _distributions(pairs, advantages))
        is_whole = self._history.append(step, pairs) and not self._folder.lines.waiting
        if pairs and observe.rollouts_every and step % observe.rollouts_every == 0:
            dump = partial(write_rollouts, self._folder.rollouts, step, pairs, advantages)
            is_whole = _has_room_for(dump) and is_whole
        self._say_whether(step, is_whole)
        self._progress.finish_step(step, written, keep=bool(evaluation_means(written)))
        self._show_evaluation(step, written)
        if pairs and observe.samples_every and step % observe.samples_every == 0:
            shown = [[*responses_of(*pair, estimator)] for pair in pairs[:NUM_SHOWN]]
            self._progress.show(
                table_of_samples([of_prompt[0] for of_prompt in shown if of_prompt], step=step)
            )
            rows = [row_of_sample(one) for of_prompt in shown for one in of_prompt]
            self._trackers.log_table(step, "samples", rows)

    def keep_evaluation(self, step: int, groups: Mapping[str, Sequence[Group]]) -> None:
        """The responses of the evaluation after `step`, by set."""
        assert self._trackers is not None, "go somewhere first"
        if self._config.observe.rollouts_every:
            every = [*itertools.chain(*groups.values())]
            if not _has_room_for(partial(write_evaluation, self._folder.rollouts, step, every)):
                self._say_whether(step, is_whole=False)
        for name, found in groups.items():
            rows = []
            for group in found[:NUM_EVALUATED]:
                correct = sum(result.correct for result in group.results)
                decision = Decision(0.0, 0.0, correct, len(group.results), "evaluation")
                rows += [row_of_sample(Shown(group, decision, *pair)) for pair in group.pairs]
            self._trackers.log_table(step, f"eval/{name}", rows)

    def _say_whether(self, step: int, is_whole: bool) -> None:
        """Whether all of a step is written, where that changes."""
        if not is_whole:
            self.full["disk_full"] += 1
        if is_whole == (self._full_since is None):
            return
        self._full_since = None if is_whole else step
        root = self._folder.root
        self._progress.warn(
            f"There is room on the disk again: the lines that waited are in {root}."
            if is_whole
            else f"The run goes on, but the disk of {root} is full: make room there. From step {step} on lines of "
            "metrics wait in memory until there is some; rollouts are not written, and checkpoints will fail."
        )

    def _show_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        if parts := evaluation_parts(step, metrics, self._evaluated):
            self._progress.show_lines(parts)
            self._evaluated |= evaluation_means(metrics)

    def amend(self, step: int, metrics: dict[str, Any]) -> None:
        """Put more into the line of `step`, which is the last one."""
        assert self._trackers is not None, "go somewhere first"
        self._trackers.log(step, self._folder.amend_metrics(metrics))
        self._show_evaluation(step, metrics)

    def finish(
        self, state: RunState, facts: dict[str, Any], checkpoint: Path | None, *, quiet: bool
    ) -> dict[str, Any]:
        """summary.json of a run that is done, written, shown and handed back."""
        self._settle()
        trackers = {} if self._trackers is None else self._trackers.failures
        best = state.best
        summary = {
            "name": self._config.run.name,
            "steps": state.step,
            "evaluations": summarize_evaluations(self._folder.read_metrics()),
            "wall_s": state.wall_s,
            **facts,
            "failures": state.failures | {f"tracker/{name}": why for name, why in trackers.items()},
            "best": best and {"mean": best[0], "checkpoint": f"checkpoints/step-{best[1]:06d}"},
            "checkpoint": str(checkpoint.relative_to(self._folder.root)) if checkpoint else None,
        }
        write_json(self._folder.summary, summary)
        if self._report and self._trackers and self._config.observe.trackers:
            try:
                self._trackers.log_file(self._report(self._folder.root))
            except Exception as error:  # what is drawn afterwards ends no run
                self._progress.warn(f"The report could not be made for the trackers: {in_one_line(error)}")
        if not quiet:
            self._progress.show(end_summary(summary, self._folder.root))
        return summary

    def _settle(self) -> None:
        """Write the lines that wait for room. Raises `OSError`."""
        self._folder.lines.settle()
        self._history.settle()

    def close(self) -> None:
        """Let trackers finish, and write what waits, if there is room now."""
        try:
            self._settle()
        except OSError as error:
            self._progress.warn(f"Lines of the steps since {self._full_since} are lost: {in_one_line(error)}")
        if self._trackers is not None:
            self._trackers.close()


def _has_room_for(write: Callable[[], object]) -> bool:
    """Write it; False: the disk is full, and it is not written."""
    try:
        write()
    except OSError as error:
        if not is_full(error):
            raise
        return False
    return True


def _distributions(pairs: Pairs, advantages: Sequence[Sequence[float | None]]) -> dict[str, list[float]]:
    """What trackers draw as histograms: one value for each response of a step."""
    responses = [pair for group, _ in pairs for pair in group.pairs if has_reward(*pair)]
    return {
        "reward/advantage": [one for of_group in advantages for one in of_group if one is not None],
        "rollout/length": [float(len(rollout.token_ids)) for rollout, _ in responses],
        "reward/score": [result.score for _, result in responses],
    }
