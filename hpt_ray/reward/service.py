"""The verifier service: graded items in, verdicts out, for the whole run.

A plain class with async methods. The driver wraps it with `ray.remote`; many small batches may be in
flight at once, and all of them share one pool of killable processes. It chooses the grader by `data_source`,
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
from hpt_ray.reward.graders.table import check_grader
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.reward.terms import check_terms, extra_reward
from hpt_ray.types import Outcome, Verdict


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
    """Raises UserError at once when the configuration names a grader or a term that does not exist."""

    def __init__(self, config: RewardConfig, max_response_tokens: int = 0) -> None:
        self.config = config
        self.max_response_tokens = max_response_tokens
        check_graders(config)
        check_terms(config, max_response_tokens)
        self._outcomes: Counter[str] = Counter()
        self._pool = Pool(
            config.num_processes,
            timeout_s=config.timeout_s,
            memory_mb=config.memory_mb,
            preload=sorted({config.grader, *config.graders.values()}),
        )

    async def grade(self, items: list[GradeItem]) -> list[Verdict]:
        """The verdicts of the items, in their order. Never raises for what an item holds."""
        refused = Verdict(0.0, Outcome.NO_ANSWER, detail="cut at the token limit (reward.require_finished)")
        cut = [self.config.require_finished and not item.finished for item in items]
        tasks = [
            Task(self.grader_of(item.data_source), item.response, item.ground_truth)
            for item, is_cut in zip(items, cut, strict=True)
            if not is_cut
        ]
        verdicts_of_tasks: list[Verdict] = await asyncio.wrap_future(self._pool.submit(tasks))
        graded = iter(verdicts_of_tasks)
        verdicts = [refused if is_cut else next(graded) for is_cut in cut]
        self._outcomes.update(verdict.outcome.value for verdict in verdicts)
        if not self.config.terms:
            return verdicts
        return [
            replace(verdict, score=verdict.score + self._extra(item))
            for item, verdict in zip(items, verdicts, strict=True)
        ]

    def grader_of(self, data_source: str) -> str:
        """The grader of a data source: for reports as for grading."""
        return self.config.graders.get(data_source, self.config.grader)

    def counts(self) -> dict[str, int]:
        """How often each outcome came up so far (zeros included), and how many processes were replaced."""
        counts = {outcome.value: self._outcomes[outcome.value] for outcome in Outcome}
        return {**counts, "processes_replaced": self._pool.num_replaced}

    def close(self) -> None:
        self._pool.close()

    def _extra(self, item: GradeItem) -> float:
        return extra_reward(self.config, item.response, item.num_tokens, self.max_response_tokens)


def check_graders(config: RewardConfig) -> None:
    """Raise UserError if the configuration names a grader that cannot be built."""
    named = {f"reward.graders[{source}]": grader for source, grader in config.graders.items()}
    for key, grader in {"reward.grader": config.grader, **named}.items():
        try:
            check_grader(grader)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
