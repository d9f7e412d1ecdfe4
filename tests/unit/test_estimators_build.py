"""What make_estimator refuses, and that the refusal says why and what to do."""

import dataclasses

import pytest

from hpt_ray.algorithms import estimator_from_config, make_estimator
from hpt_ray.algorithms.build import FAMILIES, PREFIX
from hpt_ray.algorithms.table import ALGORITHMS
from hpt_ray.algorithms.token_parts import CORRECTIONS
from hpt_ray.config.schema import AlgorithmConfig
from hpt_ray.errors import UserError


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gpro", {}, "Did you mean .*grpo"),
        ("grpo", {"clip_hihg": 0.3}, "Did you mean .*clip_high"),
        ("grpo", {"rollout_advantage": "group_men"}, "Did you mean group_mean"),
        ("grpo", {"rollout_clip": "clipped"}, "Did you mean cispo"),
        ("hpt", {"mode": "offical"}, "Did you mean official"),
        ("gspo", {"mode": "official"}, "does not run gspo"),
        ("hpt", {"offline_branch": "mixed"}, "Did you mean mix"),
        ("grpo", {"offline_branch": "mix"}, "grpo has none"),
        ("grpo", {"demo_loss_aggregation": "seq-mean-token-mean"}, "no term on demonstrations"),
        ("sft", {"rollout_advantage": "group_mean"}, "no term on rollouts"),
        ("srft", {"demo_advantage": "reward"}, "2 terms on demonstrations"),
        ("hpt", {"demo_denominator": "old"}, "π_old is unknown"),
        ("hpt", {"demo_advantage": "group_mean"}, "not one of the group's rollouts"),
        ("hpt", {"demo_advantage": "gae"}, "critic"),
        ("hpt", {"demo_clip": "ppo"}, "needs the ratio"),
        ("hpt", {"rollout_advantage": "union_mean"}, "never trains both"),
        ("hpt", {"rollout_loss_aggregation": "union-seq-mean-token-sum-norm"}, "never trains both"),
        ("grpo", {"rollout_denominator": "one"}, "evenly"),
        ("grpo", {"rollout_denominator": "current"}, "needs the ratio"),
        ("grpo", {"rollout_advantage": "one"}, "without signal"),
        ("sft", {"kl_coef": 0.1}, "kl_coef=0"),
        ("sft", {"correction": "token_mask"}, "correction=none"),
        ("gspo", {"correction": "token_mask"}, "correction=none"),
        ("cispo", {"correction": "token_truncate"}, "correction=none"),
        ("grpo", {"correction": "token_mask", "correction_low": 3.0}, "below correction_high"),
        ("luffy", {"shaping_gamma": 0.0}, "above 0"),
        ("grpo", {"mu": [0.5]}, "has one of them"),
        ("chord_mu", {"mu": [0.9, 0.05]}, "the first value, the last, and over how many steps"),
        ("chord_mu", {"mu": [1.5]}, "one number from 0 to 1"),
        ("opd", {"kl_coef": 0.1}, "set kl_coef=0"),
        ("grpo", {"prefix": [0.5]}, "take prefix_rft or uft"),
        ("uft", {"prefix": [0.5, 2.0, 100]}, "one number from 0 to 1"),
        ("hpt", {"demo_advantage": "continued"}, "none of hpt does"),
        ("prefix_rft", {"rollout_advantage": "continued"}, "a rollout has an advantage of its own"),
        ("prefix_rft", {"kl_coef": 0.1, "kl_in": "reward"}, "set kl_in=loss"),
        ("sft", {"demo_advantage": "teacher"}, "did not sample them"),
        ("grpo", {"rollout_denominator": "mixture"}, "use old"),
        ("grpo", {"kl_estimator": "k4"}, "k1, k2, k3"),
        ("grpo", {"kl_in": "rewards"}, "Did you mean reward"),
    ],
)
def test_refusals(name, overrides, message):
    with pytest.raises(UserError, match=message):
        make_estimator(name, **overrides)


def test_any_four_parts_can_be_named():
    """GRPO spelled out from another sample: only the name differs."""
    built = make_estimator(
        "reinforce",
        rollout_advantage="group_std",
        rollout_denominator="old",
        rollout_clip="ppo",
        rollout_loss_aggregation="seq-mean-token-mean",
    )
    assert dataclasses.replace(built, name="grpo") == make_estimator("grpo")


def test_configuration_and_keywords_give_the_same():
    config = AlgorithmConfig(
        name="dapo", clip_high=0.3, rollout_loss_aggregation="seq-mean-token-sum-norm", length_constant=24.0
    )
    estimator = estimator_from_config(config)
    assert estimator == make_estimator(
        "dapo", clip_high=0.3, rollout_loss_aggregation="seq-mean-token-sum-norm", length_constant=24.0
    )
    assert (estimator.settings.clip_low, estimator.settings.clip_high) == (0.2, 0.3)


def test_samples_keep_their_own_clip():
    assert make_estimator("gspo").settings.clip_high == 4e-4
    assert make_estimator("dapo").settings.clip_high == 0.28


def test_configuration_documents_every_name():
    docs = {f.name: f.metadata["doc"] for f in dataclasses.fields(AlgorithmConfig)}
    for name in ALGORITHMS:
        assert f"`{name}`" in docs["name"]
    for name in CORRECTIONS:
        assert name == "none" or f"`{name}`" in docs["correction"]
    for stream, prefix in PREFIX.items():
        for family, table in FAMILIES.items():
            doc = docs[f"{prefix}_{family}"]
            if "the names of" in doc:
                continue
            for name, part in table.items():
                usable = stream not in part.not_for and not (prefix == "demo" and "ratio" in part.needs)
                assert (f"`{name}`" in doc) == usable, (prefix, family, name)


def test_offline_branches_of_hpt():
    terms = make_estimator("hpt", offline_branch="mix", demo_coef=0.5).terms
    assert [(t.stream, t.shaping, t.coef) for t in terms] == [
        ("rollouts", "none", 1.0),
        ("demonstrations", "none", 0.05),
        ("demonstrations", "luffy", 0.5),
    ]
