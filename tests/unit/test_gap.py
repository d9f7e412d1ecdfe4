"""Sampler and learner must compute the same model, on the same distribution; what they do not is said."""

from __future__ import annotations

import pytest

from hpt_ray.config.load import load_config
from hpt_ray.driver.setup import check_choices
from hpt_ray.driver.step_metrics import check_gap
from hpt_ray.errors import SamplerMismatch, UserError

TINY = "tests/cluster/tiny.yaml"


def gap(mean: float | None) -> dict[str, float | None]:
    return {"policy/logprob_gap_mean": mean, "policy/logprob_gap_max": mean and 5 * mean}


@pytest.mark.parametrize(("dtype", "fine", "too_much"), [("float32", 1e-4, 0.019), ("bfloat16", 0.03, 0.69)])
def test_a_gap_that_rounding_does_not_explain_stops_the_run(dtype: str, fine: float, too_much: float) -> None:
    config = load_config(TINY, [f"model.dtype={dtype}"])
    check_gap(config, 1, gap(fine))
    check_gap(config, 1, gap(None))  # nothing was sampled
    with pytest.raises(SamplerMismatch, match=rf"differ by {too_much:g} nats.*{dtype}.*same model"):
        check_gap(config, 1, gap(too_much))
    for told in ("learner.recompute_old_logprobs=true", "algorithm.correction=token_truncate"):
        check_gap(load_config(TINY, [f"model.dtype={dtype}", told]), 1, gap(too_much))


@pytest.mark.parametrize("cut", ["rollout.top_p=0.9", "rollout.top_k=20"])
def test_a_cut_distribution_is_refused_where_it_would_be_weighed(cut: str) -> None:
    with pytest.raises(UserError, match=r"rollout\.top_p=1 and rollout\.top_k=-1"):
        check_choices(load_config(TINY, ["algorithm.name=grpo", cut]))
    for goes in ("algorithm.name=reinforce", "algorithm.name=sft", "learner.recompute_old_logprobs=true"):
        check_choices(load_config(TINY, ["algorithm.name=grpo", cut, goes]))
