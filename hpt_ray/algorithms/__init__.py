"""One estimator for every algorithm: mask · advantage · shaping · π_θ/π_ref, and a table.

    from hpt_ray.algorithms import ALGORITHMS, TokenBatch, make_estimator

    estimator = make_estimator("grpo", clip_high=0.28)
    loss, stats = estimator.loss(TokenBatch(logprobs, old_logprobs, sample_lengths, group_ids, rewards, is_demo))

`ALGORITHMS["gspo"]` prints its formula, source and parts; `describe(estimator)` prints what was
chosen. Needs torch and numpy only.
"""

from hpt_ray.algorithms.base import Algorithm, Term
from hpt_ray.algorithms.batch import BatchShape, SampleWeights, TokenBatch
from hpt_ray.algorithms.build import estimator_from_config, make_estimator
from hpt_ray.algorithms.describe import describe
from hpt_ray.algorithms.estimator import Estimator
from hpt_ray.algorithms.kl import kl_token_rewards
from hpt_ray.algorithms.stats import effective_sample_size
from hpt_ray.algorithms.table import ALGORITHMS
from hpt_ray.algorithms.values import clipped_value_loss, gae

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "BatchShape",
    "Estimator",
    "SampleWeights",
    "Term",
    "TokenBatch",
    "clipped_value_loss",
    "describe",
    "effective_sample_size",
    "estimator_from_config",
    "gae",
    "kl_token_rewards",
    "make_estimator",
]
