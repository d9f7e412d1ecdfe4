"""The loop.

     data ──prompts──▶ rollout ──groups──▶ reward ──verdicts──▶ selection ──rows──▶ learner ──▶ new weights
      ▲                vLLM actors         verifier             the gate            DeepSpeed        │
      │                    ▲                                                                         │
      └─ sampler           └────────────────────────── weight_sync ◀─────────────────────────────────┘

One step: draw questions, roll out, grade, decide per question between rollouts and demonstration, pack,
back-propagate, step, sync the new weights, report. Groups flow through one by one: while some are being
generated, others are graded and back-propagated. The weights do not change until the last group is in, so
this is exactly on-policy, and the gradient is that of a step that waits for everything.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpt_ray.checkpoint.store import CheckpointStore, load_state
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.cluster.topology import Actors, start_actors
from hpt_ray.config.schema import Config, LearnerConfig
from hpt_ray.data.sampler import Sampler
from hpt_ray.errors import UserError
from hpt_ray.estimators import BatchShape
from hpt_ray.evaluation.held_out import HeldOut
from hpt_ray.learner.critic import optimizer_of as critic_optimizer
from hpt_ray.learner.group import LearnerGroup, UpdateResult
from hpt_ray.learner.schedule import learning_rate
from hpt_ray.observe.metrics import complete_line, summarize_evaluations
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.rollout_dump import write_rollouts
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.observe.step import Pairs, failures_of, learner_metrics, rollout_metrics, selection_metrics
from hpt_ray.observe.tables import end_summary, table_of_samples
from hpt_ray.observe.trackers import start_trackers
from hpt_ray.records import Group, Question
from hpt_ray.reward.groups import graded_groups
from hpt_ray.rollout.pool import RolloutPool
from hpt_ray.rollout.requests import Sampling, request_for, unique_ids
from hpt_ray.selection.feedback import FeedbackLog
from hpt_ray.selection.gate import GATES, is_certain
from hpt_ray.selection.rows import rows_of
from hpt_ray.setup import Prepared


class Driver:
    """One run, from prepared data and model to its summary."""

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        folder: RunFolder,
        progress: Progress,
        *,
        quiet: bool = False,
    ):
        self.config, self.folder, self.progress, self.quiet = config, folder, progress, quiet
        self.questions, self.estimator = prepared.questions, prepared.estimator
        self.model_path = prepared.model_path
        # Where demonstrations train whatever the rollouts say, none are sampled.
        wanted = 0 if prepared.gate == "demonstrations" else config.rollouts_per_question
        self.num_rollouts = self.estimator.num_rollouts(wanted)
        self.gate = GATES[prepared.gate]
        self.sampler = Sampler(len(self.questions), seed=config.run.seed, shuffle=config.data.shuffle)
        self.sampling = Sampling(
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            top_k=config.rollout.top_k,
            max_tokens=config.data.max_response_tokens,
            stop_token_ids=prepared.stop_token_ids,
        )
        evaluation = config.evaluation
        self.held_out = HeldOut(
            sets=prepared.held_out,
            samples=evaluation.samples,
            sampling=Sampling(
                temperature=evaluation.temperature,
                top_p=evaluation.top_p,
                top_k=-1,
                max_tokens=evaluation.max_response_tokens or config.data.max_response_tokens,
                stop_token_ids=prepared.stop_token_ids,
            ),
            seed=config.run.seed,
            timeout_s=config.rollout.timeout_s,
        )
        self.store = CheckpointStore(folder.checkpoints, keep=config.checkpoint.keep)
        self.feedback = FeedbackLog(folder.root / "feedback.jsonl")
        self.dropped = prepared.dropped
        self.failures: Counter[str] = Counter()
        self.step = 0  # steps done
        self.version = 0  # of the weights the learner holds
        self.best: tuple[float, int] | None = None  # score on checkpoint.best_of, and its step

    # -- the run -----------------------------------------------------------------------------------

    async def run(self, cluster: Cluster) -> dict[str, Any]:
        """Train to the last step; returns the summary, which is also in the folder."""
        begin = time.perf_counter()
        config = self.config
        self.progress.phase("starting")
        self._restore_position()
        self.actors = await self._start(cluster)
        self.trackers = start_trackers(
            config.observe.trackers, self.folder, asdict(config), first_step=self.step
        )
        try:
            await self._load_weights()
            started = time.perf_counter()
            if self.step == 0 and self.held_out.sets and config.evaluation.before_training:
                await self._report(
                    0, complete_line({"weights/version": self.version}), [], force_evaluation=True
                )
            while self.step < config.run.steps:
                metrics, pairs = await self.train_step()
                await self._report(self.step, metrics, pairs)
            times = {"startup_s": started - begin, "training_s": time.perf_counter() - started}
            return self._finish(times, wall_s=time.perf_counter() - begin)
        finally:
            self.trackers.close()
            self.actors.stop()
            cluster.release()

    async def train_step(self) -> tuple[dict[str, Any], Pairs]:
        """One batch of questions, `updates_per_step` optimizer steps, one weight sync."""
        config = self.config
        begin = time.perf_counter()
        number = self.step + 1
        questions = [self.questions[i] for i in self.sampler.next_batch(config.questions_per_step)]
        per_update = config.questions_per_step // config.updates_per_step
        updates: list[UpdateResult] = []
        pairs: Pairs = []
        self.progress.phase("rollout")
        async for group in self.groups(questions, number):
            decision = self.gate(group, config.selection.gamma)
            pairs.append((group, decision))
            self.learner.add(rows_of(group, decision, index=len(pairs)))
            rollout_s = time.perf_counter() - begin
            if len(pairs) % per_update == 0:
                self.progress.phase("learn")
                updates.append(
                    await self.learner.finish(
                        self._learning_rate(len(updates)),
                        self._learning_rate(len(updates), critic_optimizer(config)),
                    )
                )
        self.progress.phase("sync")
        sync_s = await self._sync()
        self.step = number
        metrics = {
            "step": number,
            "weights/version": self.version,
            **rollout_metrics(pairs, rollout_s),
            **selection_metrics(pairs, updates),
            **learner_metrics(updates),
            "optim/lr": self._learning_rate(-1),
            "time/step_s": time.perf_counter() - begin,
            "time/rollout_s": rollout_s,
            "time/sync_s": sync_s,
        }
        return metrics, pairs

    async def groups(self, questions: list[Question], step: int) -> AsyncIterator[Group]:
        """The step's questions with their graded rollouts, each as its last verdict comes in."""
        if self.pool is None or self.num_rollouts == 0:
            for question in questions:
                yield Group(question, [], [])
            return
        ids = unique_ids([question.id for question in questions])
        requests = [
            request_for(
                key, q.prompt_ids, num_samples=self.num_rollouts, run_seed=self.config.run.seed, step=step
            )
            for key, q in zip(ids, questions, strict=True)
        ]
        assert self.actors.verifier is not None
        async for group in graded_groups(
            self.pool.generate(requests, self.sampling),
            dict(zip(ids, questions, strict=True)),
            num_samples=self.num_rollouts,
            verifier=self.actors.verifier,
            timeout_s=self.config.rollout.timeout_s,
            is_certain=self._is_certain,
            abort=self.pool.abort,
        ):
            yield group

    def _is_certain(self, question: Question, num_solved: int, num_graded: int) -> bool:
        """Whether the switch asks for this question's demonstration whatever its other rollouts say."""
        selection = self.config.selection
        return (
            selection.early_decision
            and self.gate is GATES["switch"]
            and question.demonstration is not None
            and is_certain(
                selection.gamma,
                num_solved=num_solved,
                num_graded=num_graded,
                num_rollouts=self.num_rollouts,
            )
        )

    def _learning_rate(self, updates_done: int, optimizer: LearnerConfig | None = None) -> float:
        """The rate of the next update of this step; −1: of the last one that was done."""
        per_step = self.config.updates_per_step
        update = self.step * per_step + updates_done
        return learning_rate(optimizer or self.config.learner, update, self.config.run.steps * per_step)

    async def _sync(self) -> float:
        """The learner's weights, under a new version, to every rollout worker; seconds it took."""
        self.version += 1
        if self.actors.sync is None:
            return 0.0
        return (await self.actors.sync.push(self.version)).seconds

    # -- start, resume -----------------------------------------------------------------------------

    async def _start(self, cluster: Cluster) -> Actors:
        config = self.config
        actors = await start_actors(
            cluster,
            config,
            model_path=self.model_path,
            estimator=self.estimator,
            with_rollouts=self.num_rollouts > 0 or bool(config.evaluation.sets),
            logs=self.folder.logs,
        )
        self.learner = LearnerGroup(
            actors.learners,
            self.estimator,
            batch=BatchShape(
                num_questions=config.questions_per_step // config.updates_per_step,
                num_rollouts=self.num_rollouts,
                max_response_tokens=config.data.max_response_tokens,
            ),
            tokens_per_microbatch=config.tokens_per_microbatch,
            timeout_s=config.learner.timeout_s,
            reference=actors.reference,
            critic=actors.critic,
        )
        self.pool: RolloutPool | None = None
        if actors.rollouts is not None:
            self.pool = RolloutPool(actors.rollouts, timeout_s=config.rollout.timeout_s)
        return actors

    def _restore_position(self) -> None:
        """Find the newest whole checkpoint of this folder and take its place in the data."""
        found = self.store.latest(checksums=True)
        for path, why in found.rejected.items():
            self.failures["checkpoint_damaged"] += 1
            self.progress.show(f"Checkpoint {path.name} is damaged ({why}); the one before is used.")
        self.checkpoint = found.path
        if found.path is None:
            return
        state = load_state(found.path)
        if state["step"] > self.config.run.steps:
            raise UserError(
                f"{found.path} is at step {state['step']}, past run.steps={self.config.run.steps}: "
                "raise run.steps."
            )
        self.step, self.version = state["step"], state["version"]
        self.sampler.load_state(state["sampler"])
        self.best = tuple(state["best"]) if state["best"] else None
        self.failures.update(state["failures"])
        self.folder.cut_after(self.step)
        self.feedback.cut_after(self.step)
        self.progress.show(f"Continuing from step {self.step} ({found.path.name}).")

    async def _load_weights(self) -> None:
        """The checkpoint's weights into the learner, the learner's into every rollout worker."""
        if self.checkpoint is not None:
            limit = self.config.learner.timeout_s
            await self.actors.learners.call("load", str(self.checkpoint / "learner"), timeout_s=limit)
            if self.actors.critic is not None:
                await self._load_critic(self.checkpoint / "critic")
        if self.actors.sync is not None:
            await self.actors.sync.push(self.version)

    async def _load_critic(self, folder: Path) -> None:
        assert self.actors.critic is not None
        if not folder.is_dir():
            raise UserError(
                f"{folder.parent} was written without a critic, which algorithm.name="
                f"{self.config.algorithm.name} needs: start a new run from its {folder.parent / 'hf'} "
                "(model.path), or continue with the algorithm it was made with."
            )
        state = str(folder / "state")
        await self.actors.critic.call("load", state, timeout_s=self.config.learner.timeout_s)

    # -- report, save, finish ----------------------------------------------------------------------

    async def _report(
        self, step: int, metrics: dict[str, Any], pairs: Pairs, *, force_evaluation: bool = False
    ) -> None:
        """Evaluate and save where it is due, then write the step's line and show it."""
        config = self.config
        is_last = step == config.run.steps
        every = config.evaluation.every
        metrics["step"] = step
        if self.held_out.sets and (force_evaluation or is_last or (every and step % every == 0)):
            metrics |= await self._evaluate()
        is_due = config.checkpoint.every and step % config.checkpoint.every == 0
        is_best = self._is_best(step, metrics)
        if step and (is_last or is_due or is_best):
            metrics["time/checkpoint_s"] = await self._save()
        self.failures.update(failures_of(pairs))
        metrics["observe/trackers_disabled"] = len(self.trackers.failures)
        written = self.folder.append_metrics(metrics)
        self.trackers.log(step, written)
        self.feedback.append(step, pairs)
        observe = config.observe
        if pairs and observe.rollouts_every and step % observe.rollouts_every == 0:
            write_rollouts(self.folder.rollouts, step, pairs)
        if pairs and observe.samples_every and step % observe.samples_every == 0:
            self.progress.show(table_of_samples(pairs[:3], step=step))
        if step:
            self.progress.finish_step(
                step,
                reward=metrics["reward/mean"],
                demo_ratio=metrics["selection/demo_question_ratio"],
                tokens_per_s=metrics["rollout/tokens_per_s"] or metrics["learner/tokens_per_s"],
            )

    async def _evaluate(self) -> dict[str, float]:
        begin = time.perf_counter()
        self.progress.phase("evaluate")
        assert self.pool is not None
        assert self.actors.verifier is not None
        values = await self.held_out.scores(self.pool, self.actors.verifier)
        if self.config.evaluation.demonstration_loss:
            values |= await self.held_out.demonstration_losses(
                self.actors.learners,
                tokens_per_microbatch=self.config.tokens_per_microbatch,
                num_terms=len(self.estimator.terms),
            )
        return {**values, "time/evaluation_s": time.perf_counter() - begin}

    def _is_best(self, step: int, metrics: dict[str, Any]) -> bool:
        """Whether the declared validation set came out better than ever; of equals the earliest stays."""
        score = metrics.get(f"eval/{self.config.checkpoint.best_of}/mean")
        if not step or score is None or (self.best is not None and score <= self.best[0]):
            return False
        self.best = (score, step)
        return True

    async def _save(self) -> float:
        """A checkpoint: learner state, Hugging Face export, and the run's position. Seconds it took."""
        begin = time.perf_counter()
        self.progress.phase("save")
        folder = self.store.begin(self.step)
        limit = self.config.learner.timeout_s
        (folder / "learner").mkdir()
        await self.actors.learners.call("save", str((folder / "learner").resolve()), timeout_s=limit)
        await self.actors.learners.call("export", str((folder / "hf").resolve()), timeout_s=limit)
        if self.actors.critic is not None:
            critic = (folder / "critic").resolve()
            (critic / "state").mkdir(parents=True)
            await self.actors.critic.call("save", str(critic / "state"), timeout_s=limit)
            await self.actors.critic.call("export", str(critic), timeout_s=limit)
        self.store.commit(
            self.step,
            {
                "step": self.step,
                "version": self.version,
                "sampler": self.sampler.state(),
                "best": self.best,
                "failures": dict(self.failures),
            },
            keep_also=self.best[1] if self.best else None,
        )
        return time.perf_counter() - begin

    def _finish(self, times: dict[str, float], *, wall_s: float) -> dict[str, Any]:
        lines = self.folder.read_metrics()
        newest = self.store.latest().path
        summary = {
            "name": self.config.run.name,
            "steps": self.step,
            "evaluations": summarize_evaluations(lines),
            "wall_s": wall_s,
            **times,
            "dropped_rows": self.dropped,
            "failures": dict(self.failures) | {f"tracker/{k}": v for k, v in self.trackers.failures.items()},
            "best": self.best
            and {"mean": self.best[0], "checkpoint": f"checkpoints/step-{self.best[1]:06d}"},
            "checkpoint": str(newest.relative_to(self.folder.root)) if newest else None,
        }
        self.folder.write_summary(summary)
        if not self.quiet:
            self.progress.show(end_summary(summary, self.folder.root))
        return summary
