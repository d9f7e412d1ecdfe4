"""The verifier service: graded items in, results out, for the whole run.

A plain class with async methods. The driver wraps it with `ray.remote`; many small batches may be in
flight at once, and all of them share one pool of killable processes. It chooses the reward function by `data_source`,
refuses truncated responses where configured, adds the extra reward terms, and counts outcomes.
It does not generate, and it does not decide what trains.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from hpt_ray.config.schema import RewardConfig
from hpt_ray.errors import UserError
from hpt_ray.reward.functions.table import check_reward_function
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.reward.terms import check_terms, extra_reward
from hpt_ray.types import Outcome, RewardResult
from hpt_ray.utils.plugins import load_inherited


@dataclass(frozen=True, slots=True)
class GradeItem:
    """One response to grade. `finished`: the rollout ended with its end token, not by the token limit.

    `num_tokens` is the length of the response; only the term `overlong` reads it.
    """

    response: str
    ground_truth: Any
    data_source: str
    finished: bool
    num_tokens: int = 0


class VerifierService:
    """Raises UserError at once when the configuration names a reward function or a term that does not exist."""

    def __init__(self, config: RewardConfig, max_response_tokens: int = 0) -> None:
        load_inherited()
        self.config = config
        self.max_response_tokens = max_response_tokens
        check_reward_functions(config)
        check_terms(config, max_response_tokens)
        self._outcomes: Counter[str] = Counter()
        self._pool = Pool(
            config.num_processes,
            timeout_s=config.timeout_s,
            memory_mb=config.memory_mb,
            preload=sorted({config.function, *config.functions.values()}),
        )

    async def grade(self, items: list[GradeItem]) -> list[RewardResult]:
        """The results of the items, in their order. Never raises for what an item holds."""
        refused = RewardResult(
            0.0, Outcome.NO_ANSWER, detail="cut at the token limit (reward.require_finished)"
        )
        cut = [self.config.require_finished and not item.finished for item in items]
        tasks = [
            Task(self.reward_function_of(item.data_source), item.response, item.ground_truth)
            for item, is_cut in zip(items, cut, strict=True)
            if not is_cut
        ]
        results_of_tasks: list[RewardResult] = await asyncio.wrap_future(self._pool.submit(tasks))
        graded = iter(results_of_tasks)
        results = [refused if is_cut else next(graded) for is_cut in cut]
        self._outcomes.update(result.outcome.value for result in results)
        if not self.config.terms:
            return results
        return [
            replace(result, score=result.score + self._extra(item))
            for item, result in zip(items, results, strict=True)
        ]

    def reward_function_of(self, data_source: str) -> str:
        """The reward function of a data source: for reports as for grading."""
        return self.config.functions.get(data_source, self.config.function)

    def counts(self) -> dict[str, int]:
        """How often each outcome came up so far (zeros included), and how many processes were replaced."""
        counts = {outcome.value: self._outcomes[outcome.value] for outcome in Outcome}
        return {**counts, "processes_replaced": self._pool.num_replaced}

    def close(self) -> None:
        self._pool.close()

    def _extra(self, item: GradeItem) -> float:
        return extra_reward(self.config, item.response, item.num_tokens, self.max_response_tokens)


def check_reward_functions(config: RewardConfig) -> None:
    """Raise UserError if the configuration names a reward function that cannot be built."""
    named = {
        f"reward.functions[{source}]": reward_function for source, reward_function in config.functions.items()
    }
    for key, reward_function in {"reward.function": config.function, **named}.items():
        try:
            check_reward_function(reward_function)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
