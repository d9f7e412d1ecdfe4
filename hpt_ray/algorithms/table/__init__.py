"""The table of algorithms. Each sample is made in the file of its family, with formula and source.

A new algorithm is one `Algorithm` in one file here, and one entry in `ALGORITHMS`.
"""

from hpt_ray.algorithms.base import Algorithm
from hpt_ray.algorithms.table.cispo import CISPO
from hpt_ray.algorithms.table.grpo import DAPO, DR_GRPO, GRPO
from hpt_ray.algorithms.table.gspo import GSPO
from hpt_ray.algorithms.table.hpt import HPT
from hpt_ray.algorithms.table.luffy import LUFFY
from hpt_ray.algorithms.table.ppo import PPO
from hpt_ray.algorithms.table.reinforce import REINFORCE, RLOO
from hpt_ray.algorithms.table.sft import SFT
from hpt_ray.algorithms.table.srft import SRFT, SRFT_OFFICIAL

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        SFT,
        REINFORCE,
        RLOO,
        PPO,
        GRPO,
        DR_GRPO,
        DAPO,
        CISPO,
        GSPO,
        LUFFY,
        SRFT,
        SRFT_OFFICIAL,
        HPT,
    )
}

__all__ = ["ALGORITHMS"]
