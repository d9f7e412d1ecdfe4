"""One estimator for every algorithm, m · Â · s · π_θ/π_ref, and the tables of algorithms, parts and gates.

    from hpt_ray.algorithms import ALGORITHMS, TokenBatch, make_estimator

    estimator = make_estimator("grpo", clip_high=0.28)
    loss, stats = estimator.loss(TokenBatch(logprobs, old_logprobs, sample_lengths, group_ids, rewards, is_demo))

`sample_weights` and `policy_loss` are the same for padded tensors of a training loop (docs/library.md).
`ALGORITHMS["gspo"]` prints its formula, source and parts; `describe(estimator)` prints what was
chosen. A part, a gate or an algorithm is one record of a table, and is added by assignment, also from outside
(`run.plugins`). Needs torch, numpy and scipy only.
"""

from hpt_ray.algorithms.advantages import ADVANTAGES, clipped_value_loss, gae
from hpt_ray.algorithms.base import Algorithm, Part, Recipe, Term
from hpt_ray.algorithms.batch import BatchShape, SampleWeights, TokenBatch, effective_sample_size
from hpt_ray.algorithms.build import describe, estimator_from_config, make_estimator, overview
from hpt_ray.algorithms.estimator import Estimator
from hpt_ray.algorithms.gates import GATES, Gate
from hpt_ray.algorithms.loss_aggregation import LOSS_AGGREGATIONS
from hpt_ray.algorithms.padded import policy_loss, sample_weights
from hpt_ray.algorithms.table import ALGORITHMS
from hpt_ray.algorithms.token_parts import CLIPS, CORRECTIONS, DENOMINATORS, SHAPINGS, kl_token_rewards

__all__ = [
    "ADVANTAGES",
    "ALGORITHMS",
    "CLIPS",
    "CORRECTIONS",
    "DENOMINATORS",
    "GATES",
    "LOSS_AGGREGATIONS",
    "SHAPINGS",
    "Algorithm",
    "BatchShape",
    "Estimator",
    "Gate",
    "Part",
    "Recipe",
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
    "overview",
    "policy_loss",
    "sample_weights",
]
