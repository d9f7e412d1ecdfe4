"""Rewards: graders in processes that can be killed, and the service that the run asks.

For scripts: `from hpt_ray.reward import grade`; `grade(r"So \\boxed{1/2}", "0.5")` is a correct `Verdict`.
"""

from hpt_ray.reward.graders.table import check_grader, check_ground_truth
from hpt_ray.reward.once import grade
from hpt_ray.reward.service import GradeItem, VerifierService

__all__ = ["GradeItem", "VerifierService", "check_grader", "check_ground_truth", "grade"]
