"""The table of algorithms. Each row is made in the file of its family, with formula and source.

A new algorithm is one `Algorithm` in one file here, and one entry in `ALGORITHMS`.
"""

from hpt_ray.estimators.algorithms.cispo import CISPO
from hpt_ray.estimators.algorithms.grpo import DAPO, DR_GRPO, GRPO
from hpt_ray.estimators.algorithms.gspo import GSPO
from hpt_ray.estimators.algorithms.hpt import HPT
from hpt_ray.estimators.algorithms.luffy import LUFFY
from hpt_ray.estimators.algorithms.ppo import PPO
from hpt_ray.estimators.algorithms.reinforce import REINFORCE, RLOO
from hpt_ray.estimators.algorithms.sft import SFT
from hpt_ray.estimators.algorithms.srft import SRFT, SRFT_OFFICIAL
from hpt_ray.estimators.parts import Algorithm

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
