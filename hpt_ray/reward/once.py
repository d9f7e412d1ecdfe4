"""Grading one answer from a script, in a killable process exactly like the service's.

The process is started by the first call, kept for the next ones, and ended when Python exits.
"""

from __future__ import annotations

import atexit
import threading
from typing import Any

from hpt_ray.errors import UserError
from hpt_ray.reward.functions.table import check_ground_truth
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.types import RewardResult

_lock = threading.Lock()
_pool: Pool | None = None


def grade(response: str, ground_truth: Any, reward_function: str = "math") -> RewardResult:
    r"""Grade one response. Raises UserError for an unknown reward function or a ground truth it cannot use.

    Example: `grade(r"… \boxed{\frac12}", "0.5")` is `RewardResult(1.0, Outcome.CORRECT, r"\frac12")`.
    """
    reason = check_ground_truth(ground_truth, reward_function)
    if reason is not None:
        raise UserError(
            f"Reward function `{reward_function}` cannot use the ground truth {ground_truth!r}: {reason}."
        )
    return _shared_pool().grade([Task(reward_function, response, ground_truth)])[0]


def _shared_pool() -> Pool:
    global _pool
    with _lock:
        if _pool is None:
            _pool = Pool()
            atexit.register(_pool.close)
        return _pool
