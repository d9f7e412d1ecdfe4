"""The reward service as an actor. Apart from the service, which grading processes import without Ray."""

from __future__ import annotations

from pathlib import Path

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.process import log_file
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import RewardConfig
from hpt_ray.reward.service import VerifierService

# The verifier grades many small batches at the same time in one actor.
VERIFIER_CONCURRENCY = 1000

# Ray starts such an actor again by itself, and asks it again what was not answered.
STATELESS = {"max_restarts": -1, "max_task_retries": -1}


def make_verifier(cluster: Cluster, reward: RewardConfig, max_response_tokens: int, logs: Path) -> ActorGroup:
    """The verifier service, coming up."""
    arguments = [(reward, max_response_tokens, log_file(logs, "verifier", 0))]
    return cluster.create(
        "verifier", VerifierService, arguments, max_concurrency=VERIFIER_CONCURRENCY, **STATELESS
    )
