"""What a run will need, before it starts: placement, memory, cost. No Ray calls, no network.

`survey` reads files and `find_shape` a config.json; all else is a pure function.
"""

from hpt_ray.tools.plan.cost import DataFacts
from hpt_ray.tools.plan.make import Group, Plan, check_plan, host_gib_of, make_plan
from hpt_ray.tools.plan.shape import ModelShape, find_shape
from hpt_ray.tools.plan.survey import plan_run, seen_at_start, survey

__all__ = [
    "DataFacts", "Group", "ModelShape", "Plan", "check_plan", "find_shape", "host_gib_of", "make_plan", "plan_run",
    "seen_at_start", "survey",
]  # fmt: skip
