"""The reward functions: each file makes one function `(response, ground_truth) -> RewardResult`; `table.py` names them.

A reward function is a pure function of its two arguments that may take long, crash or raise: it runs in a process
that can be killed (`hpt_ray/reward/pool.py`). It raises ValueError for a ground truth it cannot use.
"""
