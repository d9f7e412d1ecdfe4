"""Rules across sections: each refuses what it is for, says what to change, and lets the rest pass."""

import ast
import inspect

import pytest

from hpt_ray.config.checks import RULES, broken_rules, check_config, wrong_pools
from hpt_ray.config.load import load_config
from hpt_ray.driver.setup import check_choices
from hpt_ray.errors import UserError

GOOD = ("model.path=m", "data.train=[a.parquet]")

# what must hold → (words that break it, what the message must name)
BROKEN: dict[str, tuple[tuple[str, ...], str]] = {
    "prompts_divide_into_updates": (("prompts_per_step=10", "updates_per_step=4"), "the nearest is 8"),
    "rehearsal_has_files_and_rows": (("data.rehearsal_per_step=8",), "set both, or none"),
    "rehearsal_divides_into_updates": (
        ("data.rehearsal=[b.parquet]", "data.rehearsal_per_step=7", "updates_per_step=4"),
        "`data.rehearsal_per_step` (7) must be a multiple of `updates_per_step` (4)",
    ),
    "sample_fits_into_micro_batch": (("max_tokens_per_micro_batch=9215",), "to 9216"),
    "sample_fits_into_engine": (
        ("rollout.engine.max_model_len=4096",),
        "`rollout.engine.max_model_len` is 4096",
    ),
    "training_has_data": (("data.train=[]",), "`data.train` is empty"),
    "correction_has_a_sampler": (
        ("algorithm.correction=token_mask", "learner.recompute_old_logprobs=true"),
        "use one of the two",
    ),
    "gamma_is_a_share": (("selection.gamma=1.5",), "`selection.gamma` is 1.5"),
    "rollouts_of_a_prompt_differ": (("rollout.temperature=0",), "all 8 rollouts"),
    "evaluation_samples_differ": (("evaluation.samples=4",), "all 4 samples"),
    "evaluation_has_sets": (("evaluation.every=5",), "`evaluation.sets` is empty"),
    "batch_invariance_is_covered": (
        ("model.batch_invariant=true", "model.dtype=bfloat16", "updates_per_step=2"),
        "needs `model.dtype` float32, `updates_per_step` 1;",
    ),
    "best_of_is_a_set": (("checkpoint.best_of=valid",), "no set of `evaluation.sets`"),
    "shares_are_shares": (
        ("rollout.top_p=1.5", "evaluation.top_p=0"),
        "`rollout.top_p` (1.5) and `evaluation.top_p`",
    ),
    "prompts_are_replaced_as_results_come": (
        ("selection.max_num_gen_batches=2", "rollout.max_off_policy_steps=1"),
        "`selection.max_num_gen_batches` above 1",
    ),
    "top_k_is_a_count": (("rollout.top_k=0",), "`rollout.top_k` is 0"),
    "betas_are_a_pair": (("learner.betas=[0.9]",), "`learner.betas` is [0.9]"),
    "schedule_goes_down": (("learner.min_lr_ratio=2",), "`learner.min_lr_ratio` is 2"),
    "zero_stage_exists": (("learner.zero_stage=4",), "`learner.zero_stage` is 4"),
    "offload_needs_zero": (
        ("learner.zero_stage=0", "learner.offload_optimizer=true"),
        "`learner.zero_stage` to 1",
    ),
    "offload_has_what_is_kept": (
        ("learner.offload_activations=true", "learner.num_gpus=1"),
        "`learner.offload_activations` moves what `learner.gradient_checkpointing` keeps",
    ),
    "pull_ends_at_most_at_the_base": (
        ("learner.base_pull=300", "learner.learning_rate=0.01"),
        "every update would end at the base",
    ),
    "pull_has_a_base": (
        ("learner.base_pull=1", "model.random_init=true"),
        "`model.random_init` draws others",
    ),
    "pull_has_its_weights_in_memory": (
        (
            "learner.base_pull=1",
            "learner.zero_stage=3",
            "learner.deepspeed={zero_optimization: {offload_optimizer: {device: nvme}}}",
        ),
        "not to NVMe",
    ),
    "pull_has_weights_that_train": (
        ("learner.base_pull=1", "learner.lora.rank=8"),
        "leave `learner.base_pull` at 0",
    ),
    "adapters_are_on": (("learner.lora.alpha=0", "learner.lora.rank=8"), "`learner.lora.alpha` is 0"),
    "rank_has_one_gpu": (("learner.num_gpus=2",), "`learner.num_ranks`"),
    "engine_has_its_gpus": (("rollout.tensor_parallel=4", "rollout.num_gpus=1"), "`rollout.num_gpus` to 4"),
    "ranks_share_evenly": (
        ("learner.num_ranks=6", "learner.sequence_parallel=4"),
        "`learner.sequence_parallel` (4) must divide `learner.num_ranks` (6)",
    ),
    "ranks_share_our_attention": (
        ("learner.num_ranks=2", "learner.sequence_parallel=2", "model.attention=sdpa"),
        "`learner.sequence_parallel` needs `model.attention=segments`",
    ),
    "pools_name_groups": (
        ("cluster.pools={learners: a}",),
        "names learners; actor groups are learner, critic, rollout, verifier, reference",
    ),
    "gpus_are_whole": (("rollout.num_gpus=0.5",), "`rollout.num_gpus` (0.5) must be a whole number"),
    "engine_stands_on_one_node": (
        ("rollout.engine.pipeline_parallel_size=2",),
        "`rollout.engine.pipeline_parallel_size` is 2",
    ),
    "engine_takes_the_weights_as_they_are": (
        ("rollout.engine.quantization=fp8",),
        "`rollout.engine.quantization` is 'fp8'",
    ),
    "colocated_groups_match": (
        ("cluster.colocate=true", "rollout.num_workers=2", "learner.zero_stage=0"),
        "`learner.num_ranks` (1) to be 2, `rollout.num_workers` times `rollout.tensor_parallel`; "
        "`learner.zero_stage` to be 1, 2 or 3",
    ),
    "best_of_has_evaluations": (
        ("checkpoint.best_of=valid", "evaluation.sets={valid: v.parquet}"),
        "`checkpoint.best_of` needs evaluations",
    ),
    "best_of_is_no_test_set": (
        ("checkpoint.best_of=t", "evaluation.sets={t: mini:test/add}", "evaluation.every=5"),
        "`checkpoint.best_of` is t, a test set",
    ),
    "pools_are_custom_resources": (("cluster.pools={rollout: GPU}",), "`cluster.pools.rollout` is 'GPU'"),
}


def test_every_rule_has_a_case() -> None:
    nodes = [
        node for rules in (*RULES, wrong_pools) for node in ast.walk(ast.parse(inspect.getsource(rules)))
    ]
    assert sum(isinstance(node, ast.Yield) for node in nodes) == len(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_refuses_what_it_is_for(name: str) -> None:
    words, message = BROKEN[name]
    config = load_config(None, [*GOOD, *words])
    (problem,) = broken_rules(config)
    assert message in problem
    with pytest.raises(UserError) as caught:
        check_config(config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("selection.gamma=0.3",), "use 0.25 (2 of 8) or 0.375 (3 of 8)"),
        (("selection.gate=posterior",), "above 0 and below 1"),
        (("group_size=0", "selection.gate=switch"), "selection.gate=demonstrations"),
        (("weight_sync.backend=nccl", "learner.num_gpus=1"), "`rollout.num_gpus`"),
        (("weight_sync.backend=ncl",), "weight_sync.backend=ncl: no such name. Did you mean nccl?"),
        (
            ("selection.max_num_gen_batches=2", "algorithm.name=reinforce"),
            "algorithm.name=reinforce with gate rollouts trains on those too",
        ),
        (("selection.gate=swich",), "selection.gate=swich: no such name. Did you mean switch?"),
        (
            ("algorithm.name=ppo", "learner.num_ranks=4", "learner.sequence_parallel=2"),
            "critic.num_ranks (1) must be a multiple of learner.sequence_parallel (2)",
        ),
        (("phases=[{steps: 1}, {steps: 1, selection: {gamma: 0.3}}]",), "phase 2: selection.gamma=0.3"),
        (
            ("observe.trackers=[wandb, wanbd]",),
            "observe.trackers=wanbd: no such name. Did you mean wandb? There are: mlflow, prometheus, tensorboard",
        ),
    ],
)
def test_what_depends_on_the_parts_there_are_is_refused_before_the_start(
    words: tuple[str, ...], message: str
) -> None:
    config = load_config(None, [*GOOD, *words])
    check_config(config)
    with pytest.raises(UserError) as caught:
        check_choices(config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("selection.gamma=0.25",),
        ("selection.max_num_gen_batches=10", "algorithm.name=dapo"),
        ("selection.max_num_gen_batches=3", "algorithm.name=sft", "group_size=0"),
        ("selection.gamma=-1",),
        ("selection.gamma=1",),
        ("group_size=3", "selection.gamma=0.333333333333"),
        ("selection.gamma=0.3", "selection.gate=rollouts"),
        ("group_size=0", "selection.gate=demonstrations"),
        ("rollout.temperature=0", "group_size=1", "algorithm.name=reinforce"),
        ("evaluation.samples=4", "evaluation.temperature=0.6"),
        ("data.train=[]", "run.steps=0"),
        ("data.rehearsal=[b.parquet]", "data.rehearsal_per_step=8", "updates_per_step=4"),
        ("max_tokens_per_micro_batch=9216",),
        ("learner.zero_stage=3", "learner.offload_optimizer=true", "model.dtype=bfloat16"),
        ("weight_sync.backend=nccl", "learner.num_gpus=1", "rollout.num_gpus=1"),
        ("cluster.pools={rollout: h100, learner: h100}",),
        ("rollout.engine.pipeline_parallel_size=1",),
        ("algorithm.name=ppo", "learner.num_ranks=4", "learner.sequence_parallel=2", "critic.num_ranks=2"),
        (
            "cluster.colocate=true",
            "rollout.num_workers=2",
            "rollout.tensor_parallel=2",
            "rollout.num_gpus=2",
            "learner.num_ranks=4",
            "learner.num_gpus=1",
        ),
    ],
)
def test_what_makes_sense_passes(words: tuple[str, ...]) -> None:
    config = load_config(None, [*GOOD, *words])
    check_config(config)
    check_choices(config)


def test_all_broken_rules_are_told_at_once() -> None:
    config = load_config(None, [*GOOD, "learner.zero_stage=7", "rollout.top_k=-3"])
    with pytest.raises(UserError) as caught:
        check_config(config)
    assert len(str(caught.value).splitlines()) == 2
