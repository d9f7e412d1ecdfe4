"""The loop: one run, step after step.

        1 draw           2 generate            3 reward           4 gate            5 learn
     sampler ──prompts──▶ router ──rollouts──▶ verifier ──groups──▶ gate ──samples──▶ learner ranks
                            ▲ vLLM engines     killable processes                     DeepSpeed │
                            └──────────────────────── 6 sync: new weights ◀─────────────────────┘

One step draws prompts, samples a group of responses to each, rewards them, decides per prompt between its rollouts
and its demonstration, adds the rows it rehearses, steps the optimizer, and sends the new weights to the engines.
Groups flow through one by one: while some are generated, others are rewarded and back-propagated. The weights do not
change before the last group is in, so this is exactly on-policy, and the gradient that of a step that waits for all.

What holds each arrow back:

    1 → 2   one batch of prompts, and `rollout.max_off_policy_steps` more that may be begun ahead
    2       the router gives an engine 1.5 times the sequences it decodes at once; the rest waits in the router
    2 → 3   at most 8 calls to the verifier; what finishes meanwhile goes with the next one
    3 → 4   nothing: a group is decided when its last response is, or as soon as the decision is certain
    4 → 5   a full micro-batch for each rank is sent at once; a Z over all samples waits for the last group
    5 → 6   the optimizer step waits for every group of its update; the sync waits for the step
    6 → 2   without steps ahead, nothing is generated before the weights are committed

A run may have phases, such as SFT and then GRPO: what is trained on changes, not the actors. A rollout worker that
fails is replaced beside the loop. When a learner rank dies, the ranks start again from the newest checkpoint and
the loop goes back to its step: the same prompts, the same seeds.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hpt_ray.algorithms.gates import GATES, samples_of
from hpt_ray.checkpoint.mirror import Mirror
from hpt_ray.checkpoint.state import RunState
from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.cluster.process import memory_mb
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import Config
from hpt_ray.driver.actors import learner_of, start_actors
from hpt_ray.driver.batches import Batch, BatchStream
from hpt_ray.driver.checkpoint_manager import CheckpointManager, Saved
from hpt_ray.driver.evaluator import Evaluator
from hpt_ray.driver.limits import reason_to_stop
from hpt_ray.driver.reporter import Reporter
from hpt_ray.driver.setup import Prepared, PreparedPhase, roles_of
from hpt_ray.driver.step_metrics import Pairs, StepReport, check_gap, failures_of
from hpt_ray.driver.stopping import Stopping
from hpt_ray.errors import LearnerFailed, RewardsFailed, in_one_line
from hpt_ray.learner.schedule import learning_rates
from hpt_ray.observe.metrics import complete_line
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.trace import Timeline
from hpt_ray.types import UpdateResult


class Driver:
    """One run, from prepared data and model to its summary."""

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        folder: RunFolder,
        progress: Progress,
        quiet: bool = False,
        report: Callable[[Path], Path] | None = None,
    ):
        self.config, self.prepared, self.folder, self.progress = config, prepared, folder, progress
        self.quiet = quiet
        self.evaluator = Evaluator(config, prepared)
        mirror = config.checkpoint.mirror and Mirror(config.checkpoint.mirror, folder.root)
        store = CheckpointStore(folder.checkpoints, keep=config.checkpoint.keep, mirror=mirror or None)
        self.checkpoints = CheckpointManager(
            store, config.learner.timeout_s, prepared.stop_token_ids, progress.warn
        )
        self.reporter = Reporter(config, folder, progress, report)
        self.timeline = Timeline(folder.trace, on_phase=progress.phase)
        self.faults: Counter[str] = Counter()  # what failed around the training; never taken back
        self.restarts, self.restarted_at = 0, 0  # of the ranks; how often from which step
        self.stopping = Stopping(store, config.run.steps, say=str if quiet else progress.show)
        self.is_updating = False  # the weights of this step have begun to change, and it is not done
        self.began_s = time.perf_counter()
        self.state = RunState(step=0, version=0, sampler={})  # what the steps done came to

    def _set_phase(self, phase: PreparedPhase) -> None:
        """What the phase trains on, from its beginning; only the actors stay."""
        self.phase, self.gate = phase, GATES[phase.gate]
        self.batches = BatchStream(phase, self.prepared.stop_token_ids)
        self.batches.connect(self.actors.router, self.actors.verifier)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    def _state(self) -> RunState:
        """The run as a checkpoint keeps it."""
        return replace(
            self.state,
            best=self.checkpoints.best,
            sampler=self.batches.position,
            history=self.batches.lengths,
            attempts=self.batches.attempts,
            failures=dict(self.state.failures),
            wall_s=self.earlier_s + time.perf_counter() - self.began_s,
        )

    # -- the run -----------------------------------------------------------------------------------

    async def run(self, cluster: Cluster) -> dict[str, Any]:
        """Train to the last step; returns the summary, which is also in the folder.

        Once the actors are there, SIGINT and SIGTERM save what is done and raise `Stopped`.
        """
        self.progress.phase("starting")
        saved = await self.checkpoints.newest(self.config.run.steps)
        if saved is None:
            self.folder.check_unused()
        self.earlier_s = saved.state.wall_s if saved else 0.0  # also after going back to a later checkpoint
        self.actors = await start_actors(
            cluster,
            self.config,
            model_path=self.prepared.model_path,
            roles=roles_of(self.config),
            logs=self.folder.logs,
            say=self.progress.phase,
        )
        if self.actors.engines is not None:
            self.actors.engines.say = self.progress.warn
        self._set_phase(self.prepared.phase_of(1))
        with ExitStack() as answering:
            try:
                await self._go_to(saved, cut_after=-1)
                answering.enter_context(self.stopping.by_signal(lambda: self.step))
                return await self._train(cluster)
            finally:
                self.reporter.close()
                await self.batches.close()
                self.checkpoints.replicas.close()
                self.actors.stop()
                cluster.release()

    async def _train(self, cluster: Cluster) -> dict[str, Any]:
        """Every step that is left; what the run came to."""
        started = time.perf_counter()
        if self.step == 0 and self.evaluator.before_training:
            await self._report(0, complete_line({"weights/version": 0}), [], evaluate=True)
        while self.step < self.config.run.steps and not self.stopping.is_asked:
            try:
                await self._one_step()
            except Exception as error:
                await self._recover(cluster, error)
        if self.step < self.config.run.steps or self.state.owes_evaluation:
            await self._end_here()
        await self.checkpoints.saved()
        times = {"startup_s": started - self.began_s, "training_s": time.perf_counter() - started}
        facts = {**times, "dropped_rows": self.prepared.dropped, "faults": dict(self._faults())}
        newest = self.checkpoints.store.latest().path
        return self.reporter.finish(self._state(), facts, newest, quiet=self.quiet)

    async def _one_step(self) -> None:
        """Train one step and report it; or, where the run is to stop, leave it before the weights change."""
        if self.step == self.phase.last:
            await self._enter_phase()
        batch = self.batches.begin(self.step + 1)
        step = await self.stopping.until(self.train_step(batch))
        if not step.done() and not self.is_updating:
            step.cancel()
            await asyncio.wait({step})
            self.batches.put_back(batch)
            return
        metrics, pairs = await step
        await self._report(self.step, metrics, pairs)
        check_gap(self.phase.config, self.step, metrics)
        await self._check_progress(pairs)

    async def train_step(self, batch: Batch) -> tuple[dict[str, Any], Pairs]:
        """One batch of prompts, `updates_per_step` optimizer steps, one weight sync: metrics and decisions."""
        config, prefixes = self.phase.config, self.phase.estimator.trains_prefixes
        report = StepReport(self.state.version, self.actors.aborted_tokens)
        per_update, num_prompts = config.prompts_per_step // config.updates_per_step, 0
        pairs: Pairs = []
        updates: list[UpdateResult] = []
        self.learner.begin_step(self.step - self.phase.before)
        with self.timeline.phase("rollout", batch.step):
            async with self.actors.all_ranks.watched(self.learner.raise_failures):
                # 1 to 3: drawn, generated and rewarded, group by group, while the others still are.
                async for group in self.actors.turns.groups(batch.groups()):
                    # 4: the gate decides what this prompt trains on.
                    history = self.batches.attempts.get(group.prompt.id, [])
                    decision = self.gate.decide(group, config.selection.gamma, history)
                    pairs.append((group, decision))
                    report.rollouts_done()
                    if group.replaced:
                        continue
                    # 5: forward and backward at once; the optimizer steps when an update has all its prompts.
                    samples = samples_of(group, decision, index=len(pairs), prefixes=prefixes)
                    self.learner.add(samples, update=num_prompts // per_update)
                    num_prompts += 1
                    # With log π_old of the learner, all samples are scored before the weights change.
                    if num_prompts % per_update == 0 and not config.learner.recompute_old_logprobs:
                        updates.append(await self._update(len(updates)))
                while len(updates) < config.updates_per_step:
                    updates.append(await self._update(len(updates)))
        # 6: the engines get the new weights.
        with self.timeline.phase("sync"):
            sync_s = await self._sync()
        # 7: what the step came to.
        self.state.step = batch.step
        self.batches.done(batch, [group for group, _ in pairs])
        for update in updates:
            self.state.skipped_in_a_row = self.state.skipped_in_a_row + 1 if update.skipped else 0
        metrics = await self._account(report, pairs, updates)
        self.is_updating = False  # not before: a step whose weights have changed must be reported
        return metrics | {"time/sync_s": sync_s}, pairs

    async def _update(self, number: int) -> UpdateResult:
        """One optimizer step, the `number`-th of this step, with the rows that it rehearses."""
        self.is_updating = True
        if self.actors.engines is not None:
            await self.actors.engines.weights_move()
        with self.timeline.phase("learn"):
            self.learner.rehearse(self.phase.rehearsed(self.step + 1, number))
            return await self.learner.finish(*learning_rates(self.phase, self.step + 1, number))

    async def _sync(self) -> float:
        """The learner's weights, under a new version, to every rollout worker; seconds it took."""
        self.state.version += 1
        if self.actors.engines is None:
            return 0.0
        if self.config.run.deterministic:
            await self.batches.drain()  # no rollout of two versions
        return await self.actors.turns.push(self.state.version)

    async def _account(self, report: StepReport, pairs: Pairs, updates: list[UpdateResult]) -> dict[str, Any]:
        """The step's line: groups, decisions, updates, and what every actor did when."""
        metrics = report.metrics(pairs, updates, self.actors.aborted_tokens)
        last = self.phase.config.updates_per_step - 1
        metrics |= {"weights/version": self.state.version, "phase": self.phase.number}
        metrics |= {"optim/lr": learning_rates(self.phase, self.step, last)[0]}
        spans = [update.spans for update in updates]
        if self.actors.engines is not None:
            spans.append(await self.actors.engines.spans())
            metrics["memory/rollout_mb"] = self.actors.engines.memory_mb
        metrics |= self.timeline.add_step(spans, report.begin_s, time.time())
        return metrics | {"memory/driver_mb": memory_mb()}

    # -- start, resume, recover --------------------------------------------------------------------

    async def _go_to(self, saved: Saved | None, *, cut_after: int) -> None:
        """Be where a checkpoint was made; without one, at the beginning, with metrics up to `cut_after`."""
        if saved is not None:
            self.state = replace(saved.state)
            await self.checkpoints.load(self.actors, saved)
            self.progress.show(f"Continuing from step {self.step} ({saved.name}).")
            cut_after = self.step
        else:
            self.state, self.checkpoints.best = RunState(step=0, version=0, sampler={}), None
        await self._enter_phase(saved)
        self.reporter.go_to(cut_after)
        if self.actors.engines is not None:
            await self.actors.turns.push(self.state.version)
        if self.state.owes_evaluation and (scores := await self._evaluate()):
            self.state.owes_evaluation = False
            self.reporter.amend(self.step, scores)
            self.checkpoints.best = await self._new_best(self.step, scores) or self.checkpoints.best

    async def _enter_phase(self, saved: Saved | None = None) -> None:
        """Be in the phase of the next step: at its beginning, or in the middle where a checkpoint was made."""
        phase = self.prepared.phase_of(self.step + 1)
        begins = self.step == phase.before
        await self.batches.close()
        self._set_phase(phase)
        if saved is not None and not begins:
            self.batches.restart(saved.state, saved.ahead)
        self.learner = await learner_of(phase, self.actors, begins=begins)

    async def _recover(self, cluster: Cluster, error: Exception) -> None:
        """Start learner and critic again, at the newest checkpoint, where one of their ranks was lost.

        Once more where another one is lost meanwhile. Raises the error where it is a different one, or there
        were too many since that checkpoint.
        """
        while True:
            lost = await self.actors.all_ranks.lost(error)
            again_at = self.checkpoints.newest_step
            self.restarts = self.restarts + 1 if again_at == self.restarted_at else 1
            self.restarted_at = again_at
            is_loss = bool(lost) or isinstance(error, LearnerFailed)
            if is_loss and self.stopping.is_asked:
                raise self.stopping.stopped(self.step, in_one_line(error)) from error
            if not is_loss or self.restarts > self.config.learner.max_restarts:
                raise error
            self.faults["learner_restarted"] += 1
            who = ", ".join(lost) or "The learner"
            self.progress.warn(f"{who} failed at step {self.step + 1}; starting again.")
            try:
                with self.timeline.phase("recover"):
                    await self.batches.close()
                    await self.actors.restart_ranks(cluster, self.config)
                    self.learner.reset()
                    self.is_updating = False
                    await self._go_to(await self.checkpoints.newest(self.config.run.steps), cut_after=0)
                return
            except Exception as again:
                error = again

    async def save(self) -> None:
        """Have the steps done as a whole checkpoint on disk, whatever `checkpoint.every` says."""
        await self.checkpoints.settle()
        if self.step and self.checkpoints.saved_at != self.step:
            await self._write_checkpoint()
            self._commit_checkpoint()
        await self.checkpoints.saved()

    async def _end_here(self) -> NoReturn:
        why_not = ""
        try:
            await self.save()
        except Exception as error:
            why_not = in_one_line(error)
        raise self.stopping.stopped(self.step, why_not)

    # -- report, save ------------------------------------------------------------------------------

    async def _report(self, step: int, metrics: dict[str, Any], pairs: Pairs, evaluate: bool = False) -> None:
        """Evaluate and save where it is due, then write the step's line and show it."""
        config = self.config
        is_last = step == self.phase.last
        if evaluate or self.evaluator.is_due(step, is_last=is_last):
            metrics |= await self._evaluate()
            self.state.owes_evaluation = step > 0 and "time/evaluation_s" not in metrics
        is_due = config.checkpoint.every and step % config.checkpoint.every == 0
        best = await self._new_best(step, metrics)
        saves = step and (best or is_last or is_due)
        self.state.failures = Counter(self.state.failures) + failures_of(pairs)
        if saves:
            metrics["time/checkpoint_s"] = await self._write_checkpoint()
        self.reporter.write(step, metrics, pairs, self._faults(), self.phase.estimator)
        if saves:  # last, so that a checkpoint never knows of a step that the metrics do not
            self._commit_checkpoint(best)
        copies = step and config.checkpoint.in_memory_every
        if copies and step % copies == 0 and step < config.run.steps:
            await self.checkpoints.copy(self.actors, self._state(), self._batches_to_keep)

    async def _evaluate(self) -> dict[str, float]:
        """The eval sets' scores; nothing, at once, where the run is to stop: it may have little time."""
        with self.timeline.phase("evaluate"):
            evaluation = await self.stopping.until(self.evaluator.scores(self.actors, self.phase))
        if evaluation.done():
            scores, groups = await evaluation
            self.reporter.keep_evaluation(self.step, groups)
            return scores
        evaluation.cancel()
        await asyncio.wait({evaluation})
        return {}

    async def _new_best(self, step: int, metrics: dict[str, Any]) -> tuple[float, int] | None:
        """Where the declared validation set came out better than in any checkpoint that is whole; else None."""
        score = metrics.get(f"eval/{self.config.checkpoint.best_of}/mean")
        if not step or score is None:
            return None
        await self.checkpoints.settle()  # the one under way may be the best
        best = self.checkpoints.best
        return (score, step) if best is None or score > best[0] else None

    async def _write_checkpoint(self) -> float:
        """The files of a checkpoint: learner state, Hugging Face export, batches ahead. Seconds it took."""
        begin = time.perf_counter()
        with self.timeline.phase("save"):
            await self.checkpoints.write(self.actors, self.step, self._batches_to_keep)
        return time.perf_counter() - begin

    @property
    def _batches_to_keep(self) -> BatchStream | None:
        """What was generated ahead, where it must be the same after a restart."""
        return self.batches if self.config.run.deterministic else None

    def _commit_checkpoint(self, best: tuple[float, int] | None = None) -> None:
        self.checkpoints.commit(replace(self._state(), best=best or self.checkpoints.best))

    async def _check_progress(self, pairs: Pairs) -> None:
        """Stop a run that trains on nothing."""
        error = reason_to_stop(self.config, self.state, pairs, self.folder.rollouts)
        if isinstance(error, RewardsFailed):
            await self.save()
        if error is not None:
            raise error

    def _faults(self) -> Counter[str]:
        """What failed around the training, and was mended, since this process began."""
        return self.faults + self.reporter.full + self.checkpoints.faults + self.actors.faults
