"""The eval sets of a run, scored by its own engines and reward functions between two steps."""

from __future__ import annotations

import time

from hpt_ray.config.schema import Config
from hpt_ray.driver.actors import Actors
from hpt_ray.driver.setup import Prepared, PreparedPhase
from hpt_ray.evaluation.eval_sets import EvalSets
from hpt_ray.rollout.requests import Sampling
from hpt_ray.types import Group


class Evaluator:
    """When a step is evaluated, and what comes of it."""

    def __init__(self, config: Config, prepared: Prepared):
        self._config = config.evaluation
        self._sets = EvalSets(
            sets=prepared.eval_sets,
            samples=self._config.samples,
            sampling=Sampling(
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                top_k=-1,
                max_tokens=self._config.max_response_tokens or config.data.max_response_tokens,
                stop_token_ids=prepared.stop_token_ids,
            ),
            seed=config.run.seed,
            timeout_s=config.rollout.timeout_s,
        )

    @property
    def before_training(self) -> bool:
        return bool(self._sets.sets) and self._config.before_training

    def is_due(self, step: int, *, is_last: bool) -> bool:
        every = self._config.every
        return bool(self._sets.sets) and (is_last or (every > 0 and step % every == 0))

    async def scores(
        self, actors: Actors, phase: PreparedPhase
    ) -> tuple[dict[str, float], dict[str, list[Group]]]:
        """`eval/<set>/…` of every set, and the seconds it took; the graded responses by set."""
        begin = time.perf_counter()
        assert actors.router is not None, "nobody to sample"
        assert actors.verifier is not None, "nobody to grade"
        values, groups = await self._sets.scores(actors.router, actors.verifier)
        if self._config.demonstration_loss:
            values |= await self._sets.demonstration_losses(
                actors.learners,
                max_tokens_per_micro_batch=phase.config.max_tokens_per_micro_batch,
                sequence_parallel=phase.config.learner.sequence_parallel,
            )
        return {**values, "time/evaluation_s": time.perf_counter() - begin}, groups
