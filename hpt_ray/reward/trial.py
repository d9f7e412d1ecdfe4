"""Reward functions on real rows before a run starts: their mistakes, and what they say of demonstrations.

In: prompts of the data, at most 64. Out: the results of their demonstrations; `UserError` for a reward function that
fails on every row it was tried on. One that fails on some rows is let through: failures of a run are counted, and
`reward.max_failure_share` limits them. What the functions print is not shown.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, wait

from hpt_ray.config.references import public
from hpt_ray.config.schema import RewardConfig
from hpt_ray.errors import UserError
from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.reward.service import reward_function_of
from hpt_ray.types import Outcome, Prompt, RewardResult

TRIAL_S = 10.0  # for the rows after the first of each reward function; what is not graded then is left out
NO_MEMORY = ("of address space", "failed to map segment", "annot allocate memory")


def try_rewards(
    config: RewardConfig, prompts: Sequence[Prompt], *, max_response_tokens: int
) -> list[tuple[Prompt, RewardResult]]:
    """The demonstrations of `prompts` with their results, in the order of `prompts`.

    A prompt without a demonstration is tried with its ground truth as the response, and is not among the results.
    Demonstrations are graded as finished responses, without the extra rewards of `reward.terms`. Raises `UserError`.
    """
    rows = defaultdict(list)
    for i, prompt in enumerate(prompts):
        rows[reward_function_of(config, prompt.data_source)].append(i)
    results: dict[int, RewardResult] = {}
    with Pool.of(config, output=os.devnull) as pool:
        first = {name: numbers[0] for name, numbers in rows.items()}
        tried = pool.grade([_task(name, prompts[i]) for name, i in first.items()])
        results |= zip(first.values(), tried, strict=True)
        for name, i in first.items():
            if _cannot_go_on(name, results[i]):
                raise _failed(config, name, prompts[i], results[i], 1)
        waiting: dict[int, Future[list[RewardResult]]] = {
            i: pool.submit([_task(name, prompts[i])]) for name, numbers in rows.items() for i in numbers[1:]
        }
        done, _ = wait(waiting.values(), timeout=TRIAL_S)
        results |= {i: future.result()[0] for i, future in waiting.items() if future in done}
    for name, numbers in rows.items():
        graded = [i for i in numbers if i in results]
        if all(results[i].outcome.is_failure for i in graded):
            raise _failed(config, name, prompts[graded[0]], results[graded[0]], len(graded))
    return [(prompts[i], results[i]) for i in sorted(results) if prompts[i].demonstration is not None]


def _task(name: str, prompt: Prompt) -> Task:
    shown = prompt.demonstration
    response = str(prompt.ground_truth) if shown is None else shown.text
    return Task(name, response, prompt.ground_truth, Row.of(prompt))


def _cannot_go_on(name: str, result: RewardResult) -> bool:
    """It would fail on every other row as well, and take long to do so."""
    no_answer = name.startswith("http") and result.outcome is Outcome.ERROR
    return no_answer or result.outcome is Outcome.TIMEOUT


def _failed(
    config: RewardConfig, name: str, prompt: Prompt, result: RewardResult, num_tried: int
) -> UserError:
    rows = f"each of the {num_tried} rows" if num_tried > 1 else "the row"
    how = "mend it; docs/reward.md shows what a reward function is given and may return"
    if result.outcome is Outcome.TIMEOUT:
        how = "raise reward.timeout_s if it needs longer (loading the file does not count)"
    elif any(words in str(result.detail) for words in NO_MEMORY):
        how = f"raise reward.memory_mb, which is {config.memory_mb}, if it needs more (torch alone may need 8000)"
    return UserError(
        f"the reward function {public(name)} failed on {rows} that it was tried on, the first of them {prompt.id}: "
        f"{result.detail}. Please {how}."
    )
