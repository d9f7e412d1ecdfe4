r"""The verifier service: responses in, results out, for the whole run; and `grade` for scripts.

A plain class with async methods. The driver makes it an actor (`actor.py`); many small batches may be in
flight at once, and all of them share one pool of killable processes. It chooses the reward function by
`data_source`, refuses truncated responses where configured, adds the extra reward terms, and counts outcomes.
It does not generate, and it does not decide what trains.

Extra terms are small functions of a response, by name, each with its weight: `reward.terms: {overlong: 1.0,
format: 0.1}` adds `1.0 · overlong + 0.1 · format` to every score. They change the reward only: whether a
prompt counts as solved, and so the gate, is the reward function's outcome alone.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hpt_ray.config.schema import RewardConfig
from hpt_ray.errors import UserError
from hpt_ray.reward.functions.extract import after_thinking, last_boxed
from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.functions.table import check_ground_truth, check_reward_function, suggestion
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.types import Outcome, RewardResult
from hpt_ray.utils.plugins import load_inherited

TRUNCATED = RewardResult(
    0.0, Outcome.NO_ANSWER, detail="truncated at the token limit (reward.require_finished)"
)
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class GradeItem:
    """One response to grade. `finished`: the rollout ended with its end token, not by the token limit.

    All responses to one prompt share its `row`, which is sent once. `num_tokens` is the length of the response;
    only the term `overlong` reads it.
    """

    response: str
    ground_truth: Any
    row: Row
    finished: bool
    num_tokens: int = 0


def format_reward(response: str) -> float:
    r"""1 if the response holds a balanced `\boxed{…}` after its thinking, else 0."""
    return float(last_boxed(after_thinking(response)) is not None)


def overlong_penalty(num_tokens: int, limit: int, buffer: int) -> float:
    """0 down to −1 over the last `buffer` tokens before `limit` (DAPO, arXiv 2503.14476, Eq 13).

    Example: limit 100, buffer 20: 80 tokens → 0, 90 → −0.5, 100 → −1.
    """
    return -min(1.0, max(0.0, (num_tokens - (limit - buffer)) / buffer))


# name → (item, configuration, limit of a response in tokens) → reward
TERMS: dict[str, Callable[[GradeItem, RewardConfig, int], float]] = {
    "format": lambda item, config, limit: format_reward(item.row.opening + item.response),
    "overlong": lambda item, config, limit: overlong_penalty(item.num_tokens, limit, config.overlong_buffer),
}


class VerifierService:
    """Raises UserError at once when the configuration names a reward function or a term that does not exist.

    Those that a user's files add (`run.plugins`) are known here and in the grading processes. What reward
    functions print goes to `log_file`.
    """

    def __init__(
        self, config: RewardConfig, max_response_tokens: int = 0, log_file: str | None = None
    ) -> None:
        self.config = config
        self.max_response_tokens = max_response_tokens
        load_inherited()
        check_reward_functions(config)
        check_terms(config, max_response_tokens)
        self._outcomes: Counter[str] = Counter()
        preload = sorted({config.function, *config.functions.values()})
        self._pool = Pool.of(config, preload=preload, output=log_file)

    async def grade(self, items: list[GradeItem]) -> list[RewardResult]:
        """The results of the items, in their order. Never raises for what an item holds."""
        accepted = [item.finished or not self.config.require_finished for item in items]
        tasks = [
            Task(
                reward_function_of(self.config, item.row.data_source),
                item.response,
                item.ground_truth,
                item.row,
            )
            for item, is_accepted in zip(items, accepted, strict=True)
            if is_accepted
        ]
        results_of_tasks: list[RewardResult] = await asyncio.wrap_future(self._pool.submit(tasks))
        graded = iter(results_of_tasks)
        results = [next(graded) if is_accepted else TRUNCATED for is_accepted in accepted]
        self._outcomes.update(result.outcome.value for result in results)
        if not self.config.terms:
            return results
        return [
            replace(result, score=result.score + self._extra(item))
            for item, result in zip(items, results, strict=True)
        ]

    def counts(self) -> dict[str, int]:
        """How often each outcome came up so far (zeros included), and how many processes were replaced."""
        counts = {outcome.value: self._outcomes[outcome.value] for outcome in Outcome}
        return {**counts, "processes_replaced": self._pool.num_replaced}

    def close(self) -> None:
        self._pool.close()

    def _extra(self, item: GradeItem) -> float:
        """The weighted sum of the configured terms."""
        terms = self.config.terms.items()
        return sum(
            weight * TERMS[name](item, self.config, self.max_response_tokens) for name, weight in terms
        )


def reward_function_of(config: RewardConfig, data_source: str) -> str:
    """The reward function of a data source."""
    return config.functions.get(data_source, config.function)


def check_reward_functions(config: RewardConfig) -> None:
    """Raise UserError if the configuration names a reward function that cannot be built."""
    named = {f"reward.functions[{source}]": function for source, function in config.functions.items()}
    for key, reward_function in {"reward.function": config.function, **named}.items():
        try:
            check_reward_function(reward_function)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    if unset := [name for name in config.environment if name not in os.environ]:
        raise UserError(
            f"reward.environment names {', '.join(unset)}, which is not set in the environment: set it, or take it out."
        )


def check_terms(config: RewardConfig, max_response_tokens: int) -> None:
    """Raise UserError for an unknown term, or one whose lengths do not fit."""
    for name in config.terms:
        if name not in TERMS:
            raise UserError(f"reward.terms: unknown term `{name}`. {suggestion(name, TERMS)}")
    if "overlong" in config.terms and not 0 < config.overlong_buffer <= max_response_tokens:
        raise UserError(
            f"reward.overlong_buffer ({config.overlong_buffer}) must lie between 1 and "
            f"data.max_response_tokens ({max_response_tokens}) for the term `overlong`."
        )


def grade(response: str, ground_truth: Any, reward_function: str = "math") -> RewardResult:
    r"""Grade one response from a script, in a killable process that is kept for the next call.

    Raises UserError for an unknown reward function or a ground truth it cannot use.
    Example: `grade(r"… \boxed{\frac12}", "0.5")` is `RewardResult(1.0, Outcome.CORRECT, r"\frac12")`.
    """
    reason = check_ground_truth(ground_truth, reward_function)
    if reason is not None:
        raise UserError(
            f"Reward function `{reward_function}` cannot use the ground truth {ground_truth!r}: {reason}."
        )
    with _lock:
        pool = _pool_of_scripts()
    return pool.grade([Task(reward_function, response, ground_truth)])[0]


@cache
def _pool_of_scripts() -> Pool:
    pool = Pool()
    atexit.register(pool.close)  # before the threads of the pool are stopped
    return pool
