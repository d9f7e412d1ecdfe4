"""Rewards: reward functions in processes that can be killed, and the service that the run asks.

For scripts: `from hpt_ray.reward import grade`; `grade(r"So \\boxed{1/2}", "0.5")` is a correct `RewardResult`.
"""

from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.functions.table import (
    REWARD_FUNCTIONS,
    RewardFunctionKind,
    check_ground_truth,
    check_reward_function,
)
from hpt_ray.reward.service import GradeItem, VerifierService, grade

__all__ = [
    "REWARD_FUNCTIONS",
    "GradeItem",
    "RewardFunctionKind",
    "Row",
    "VerifierService",
    "check_ground_truth",
    "check_reward_function",
    "grade",
]
