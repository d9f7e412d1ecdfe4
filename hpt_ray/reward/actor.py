"""The reward service as an actor. Apart from the service, which grading processes import without Ray."""

from __future__ import annotations

from pathlib import Path

from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.cluster.process import log_file, reserved_gpus, see_gpus
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import RewardConfig
from hpt_ray.reward.service import VerifierService

# The verifier grades many small batches at the same time in one actor.
VERIFIER_CONCURRENCY = 1000

# Ray starts such an actor again by itself, and asks it again what was not answered.
STATELESS = {"max_restarts": -1, "max_task_retries": -1}


class Verifier(VerifierService):
    """The service as an actor: neither it nor its grading processes see a GPU, since it reserves none."""

    def __init__(self, reward: RewardConfig, max_response_tokens: int, log_file: str | None):
        see_gpus(reserved_gpus())
        super().__init__(reward, max_response_tokens, log_file)


def make_verifier(cluster: Cluster, reward: RewardConfig, max_response_tokens: int, logs: Path) -> ActorGroup:
    """The verifier service, coming up."""
    arguments = [(reward, max_response_tokens, log_file(logs, "verifier", 0))]
    return cluster.create("verifier", Verifier, arguments, max_concurrency=VERIFIER_CONCURRENCY, **STATELESS)
