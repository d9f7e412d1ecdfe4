"""The plan of a run: what fits, what is refused with which advice, what it costs, and what a dry run says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console
from transformers import Qwen2Config

from hpt_ray.config.checks import check_config
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError
from hpt_ray.main import main
from hpt_ray.rollout.engine import HEAD_SIZES_ON_CPU
from hpt_ray.tools.plan import DataFacts, Plan, check_plan, find_shape, make_plan
from hpt_ray.tools.plan.cost import forward_flops
from hpt_ray.tools.plan.make import check_heads
from hpt_ray.tools.plan.shape import NAMED, shape_of
from hpt_ray.tools.plan.show import plan_summary, two_digits

SEVEN_B = (
    "model.path=Qwen/Qwen2.5-Math-7B",
    "model.dtype=bfloat16",
    "model.config_overrides={max_position_embeddings: 16384}",
    "data.train=[openr1.parquet]",
    "run.steps=500",
    "rollout.num_gpus=1",
    "rollout.num_workers=4",
    "learner.num_gpus=1",
    "learner.num_ranks=4",
    "learner.zero_stage=2",
    "learner.offload_optimizer=true",
    "learner.gradient_checkpointing=true",
)


@cache
def planned(*words: str) -> tuple[Config, Plan]:
    config = load_config(None, [*SEVEN_B, *words])
    check_config(config)
    return config, make_plan(config, find_shape(config.model, config.model.path))


def terms(plan: Plan, kind: str) -> dict[str, float]:
    memory = next(group.memory for group in plan.groups if group.kind == kind)
    assert memory is not None
    return {term.name: term.gib for term in memory.terms}


# -- shapes --------------------------------------------------------------------------------------------

# As published with the models.
PARAMETERS = {
    "Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen2.5-0.5B": 494_032_768,
    "Llama-3.1-8B": 8_030_261_248,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen3-30B-A3B": 30_532_122_624,
}


def test_named_models_have_their_published_number_of_parameters() -> None:
    assert {name: shape_of(make()).num_parameters for name, make in NAMED.items()} == PARAMETERS


def test_a_shape_comes_from_the_folder_and_its_overrides(tmp_path: Path) -> None:
    NAMED["Qwen2.5-0.5B"]().save_pretrained(tmp_path)
    config, _ = planned()
    model = replace(config.model, path=str(tmp_path))
    shape = find_shape(model, model.path)
    assert shape is not None
    assert shape.num_parameters == PARAMETERS["Qwen2.5-0.5B"]
    assert shape.num_embedding == 0, "its embedding is its output layer, which every token is multiplied by"
    assert shape.kv_numbers == 2 * 24 * 128
    model.config_overrides = {"num_hidden_layers": 12}
    smaller = find_shape(model, model.path)
    assert smaller is not None
    assert smaller.num_parameters < shape.num_parameters
    assert find_shape(model, "somebody/unknown-model") is None


# -- memory --------------------------------------------------------------------------------------------


def test_terms_of_a_seven_billion_model() -> None:
    _, plan = planned()
    learner, rollout = terms(plan, "learner"), terms(plan, "rollout")
    gib = PARAMETERS["Qwen2.5-Math-7B"] / 2**30
    assert learner["weights"] == pytest.approx(2 * gib)
    assert learner["gradients"] == pytest.approx(4 * gib / 4), "ZeRO 2 shards them over 4 ranks"
    assert terms(planned("learner.zero_stage=1")[1], "learner")["gradients"] == pytest.approx(4 * gib)
    assert "optimizer" not in learner
    assert rollout["weights"] == pytest.approx(2 * gib)
    assert sum(rollout.values()) == pytest.approx(0.75 * 80), "vLLM takes its share, whatever the model"
    assert plan.sync_bytes == 2 * PARAMETERS["Qwen2.5-Math-7B"]
    assert plan.num_gpus == 8
    # 2 · 28 layers · 4 heads · 128 · 2 bytes · 9216 tokens a sample.
    samples = int(rollout["KV cache"] * 2**30 / (2 * 28 * 4 * 128 * 2 * 9216))
    memory = next(group.memory for group in plan.groups if group.kind == "rollout")
    assert memory is not None
    assert memory.note == f"cache for {samples} of 256 responses at full length"


def test_copies_in_memory_are_in_the_host_s() -> None:
    """On two nodes, and twice while the next one comes: 2·2·(12 + 2) bytes a parameter over 4 ranks."""
    hosts = []
    for words in ((), ("checkpoint.in_memory_every=1",)):
        memory = next(group.memory for group in planned(*words)[1].groups if group.kind == "learner")
        assert memory is not None
        hosts.append(memory.host_gib)
    assert hosts[1] - hosts[0] == pytest.approx(56 * PARAMETERS["Qwen2.5-Math-7B"] / 2**30 / 4)


def test_offloaded_activations_are_in_the_host_s() -> None:
    """2 bytes of each of 28 layers · 3584 numbers a token."""
    config, before = planned()
    after = planned("learner.offload_activations=true")[1]
    moved = 2 * 28 * 3584 * config.max_tokens_per_micro_batch / 2**30
    left = terms(before, "learner")["activations"] - terms(after, "learner")["activations"]
    hosts = [
        g.memory.host_gib for plan in (before, after) for g in plan.groups if g.memory and g.kind == "learner"
    ]
    assert left == pytest.approx(moved)
    assert hosts[1] - hosts[0] == pytest.approx(moved)


@pytest.mark.parametrize(
    ("words", "smaller"),
    [
        (("learner.zero_stage=3",), "weights"),
        (("max_tokens_per_micro_batch=16384",), "activations"),
        (("max_tokens_per_micro_batch=16384",), "logprobs"),
        (("learner.deepspeed={data_types: {grad_accum_dtype: bf16}}",), "gradients"),
    ],
)
def test_what_makes_a_term_smaller(words: tuple[str, ...], smaller: str) -> None:
    before, after = terms(planned()[1], "learner"), terms(planned(*words)[1], "learner")
    assert after[smaller] < before[smaller]


def test_tensor_parallel_engines_share_the_weights() -> None:
    _, plan = planned("rollout.tensor_parallel=2", "rollout.num_gpus=2", "rollout.num_workers=2")
    assert terms(plan, "rollout")["weights"] == pytest.approx(PARAMETERS["Qwen2.5-Math-7B"] / 2**30)


def test_shared_gpus_are_counted_once_and_hold_both_sides_weights() -> None:
    words = ("cluster.colocate=true", "learner.num_ranks=8", "rollout.num_workers=8")
    config, plan = planned(*words)
    assert plan.num_gpus == 8
    assert terms(plan, "rollout")["learner's weights"] > 14
    check_plan(config, plan)
    config, plan = planned(*words, "rollout.gpu_memory_utilization=0.9")
    with pytest.raises(UserError, match="rollout"):
        check_plan(config, plan)


SHARED = ("cluster.colocate=true", "learner.num_ranks=4", "learner.offload_optimizer=false")
SMALL = (
    "model.path=Qwen/Qwen2.5-0.5B",
    "rollout.gpu_memory_utilization=0.5",
    "max_tokens_per_micro_batch=16384",
)


def test_sides_take_turns_only_where_there_is_no_room_for_both() -> None:
    config, plan = planned(*SHARED)
    assert plan.config.cluster.take_turns is True
    assert plan.config.rollout.engine == {}
    config, plan = planned(*SHARED, *SMALL)
    check_plan(config, plan)
    assert config.cluster.take_turns is None
    assert plan.config.cluster.take_turns is False
    assert "learner's weights" not in terms(plan, "rollout")
    sides = sum(group.memory.gib for group in plan.groups if group.memory is not None and group.gpus)
    assert sides <= 0.9 * 80
    # The engine's cache is the planned one: it cannot measure what a learner leaves that works meanwhile.
    cache = terms(plan, "rollout")["KV cache"]
    assert plan.config.rollout.engine == {"kv_cache_memory_bytes": int(cache * 2**30)}
    _, asked = planned(*SHARED, *SMALL, "cluster.take_turns=true")
    assert asked.config.cluster.in_turns
    for shown, how in ((plan, "at once"), (asked, "in turns")):
        console = Console(file=io.StringIO(), width=120)
        console.print(plan_summary(shown))
        said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
        assert f"engines and learner {how}" in said
    assert terms(asked, "rollout")["learner's weights"] > 0.9
    _, own = planned(*SHARED, *SMALL, "rollout.engine.kv_cache_memory_bytes=1000000000")
    assert own.config.rollout.engine == {"kv_cache_memory_bytes": 1_000_000_000}
    _, on_cpu = planned(*SHARED, *SMALL, "rollout.num_gpus=0", "learner.num_gpus=0")
    assert on_cpu.config.cluster.take_turns is False
    assert on_cpu.config.rollout.engine == {}


def test_sides_that_shall_not_take_turns_must_fit() -> None:
    config, plan = planned(*SHARED, "cluster.take_turns=false")
    with pytest.raises(UserError, match=r"learner and engine need about .* leave out `cluster.take_turns`"):
        check_plan(config, plan)


def test_groups_that_only_some_algorithms_have() -> None:
    _, plan = planned("algorithm.name=ppo", "critic.num_gpus=1", "critic.num_ranks=4")
    assert [group.kind for group in plan.groups] == ["learner", "rollout", "verifier", "critic"]
    assert terms(plan, "critic")["weights"] < terms(plan, "learner")["weights"], "it has no output layer"
    _, plan = planned("algorithm.name=grpo", "algorithm.kl_coef=0.01", "reference.num_gpus=1")
    assert terms(plan, "reference")["weights"] == pytest.approx(terms(plan, "rollout")["weights"])
    _, plan = planned("algorithm.name=sft")
    assert [group.kind for group in plan.groups] == ["learner"]
    assert plan.sync_bytes is None


# What cannot fit → the group, the largest part, what to change.
TOO_MUCH: dict[tuple[str, ...], tuple[str, str, str]] = {
    ("learner.offload_optimizer=false", "learner.zero_stage=1"): (
        "learner",
        "gradients",
        "`learner.zero_stage` to 2",
    ),
    ("learner.offload_optimizer=false", "learner.zero_stage=0"): (
        "learner",
        "optimizer",
        "`learner.zero_stage` to 3",
    ),
    ("learner.gradient_checkpointing=false",): (
        "learner",
        "activations",
        "`learner.gradient_checkpointing`",
    ),
    ("max_tokens_per_micro_batch=131072",): (
        "learner",
        "activations",
        "`max_tokens_per_micro_batch` (131072), which must hold one sample, or let ranks share it",
    ),
    ("cluster.gpu_memory_gib=16",): ("rollout", "weights", "`rollout.tensor_parallel`"),
}


@pytest.mark.parametrize("words", TOO_MUCH)
def test_a_plan_that_cannot_fit_is_refused(words: tuple[str, ...]) -> None:
    kind, largest, advice = TOO_MUCH[words]
    config, plan = planned(*words)
    with pytest.raises(UserError) as refused:
        check_plan(config, plan)
    line = next(line for line in str(refused.value).splitlines() if f"`{kind}`" in line)
    assert f"The largest part is {largest}" in line
    assert advice in line
    assert "`cluster.gpu_memory_gib` is" in line


def test_the_advice_helps() -> None:
    config, plan = planned("learner.gradient_checkpointing=false")
    with pytest.raises(UserError):
        check_plan(config, plan)
    check_plan(*planned())
    with pytest.raises(UserError):
        check_plan(*planned("max_tokens_per_micro_batch=131072"))
    check_plan(*planned("max_tokens_per_micro_batch=131072", "learner.sequence_parallel=4"))


def test_ranks_that_share_a_micro_batch_hold_their_slice_of_it() -> None:
    alone, shared = (terms(planned(*words)[1], "learner") for words in ((), ("learner.sequence_parallel=4",)))
    assert shared["activations"] == pytest.approx(alone["activations"] / 4)
    assert shared["weights"] == alone["weights"]


def test_host_memory_is_compared_on_request() -> None:
    words = ("rollout.num_gpus=0", "learner.num_gpus=0", "learner.num_ranks=1", "rollout.num_workers=1")
    config, plan = planned(*words)
    assert plan.costs is None
    check_plan(config, plan)
    with pytest.raises(UserError, match=r"this machine has 64.*largest part is"):
        check_plan(config, plan, host_gib=64)


@pytest.mark.parametrize(
    ("heads", "words", "refused"),
    [
        (4, (), "a head of .* has 16 numbers"),
        (2, (), None),
        (4, ("algorithm.name=sft",), None),  # nobody samples
        (4, ("rollout.num_gpus=1",), None),
    ],
)
def test_heads_that_no_engine_on_a_cpu_serves_are_refused(
    tmp_path: Path, heads: int, words: tuple[str, ...], refused: str | None
) -> None:
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
    }
    Qwen2Config(**sizes, vocab_size=100, intermediate_size=64).save_pretrained(tmp_path)
    config = load_config(None, [f"model.path={tmp_path}", "data.train=[some.parquet]", *words])
    shape = find_shape(config.model, config.model.path)
    with pytest.raises(UserError, match=refused) if refused else nullcontext():
        check_heads(config, shape)


def test_the_sizes_of_heads_are_those_of_the_installed_vllm() -> None:
    found = find_spec("vllm")  # which imports nothing of it
    assert found is not None
    assert found.origin is not None
    source = (Path(found.origin).parent / "v1" / "attention" / "backends" / "cpu_attn.py").read_text()
    listed = re.search(r"def get_supported_head_sizes.*?return (\[.*?\])", source, re.DOTALL)
    assert listed is not None
    assert tuple(json.loads(listed[1])) == HEAD_SIZES_ON_CPU


# -- cost ----------------------------------------------------------------------------------------------

# GPU hours of 7B runs on 64k prompts (LUFFY's README) → how such a run is set up.
PUBLISHED = {
    "LUFFY": (77 * 8, ("algorithm.name=luffy",)),
    "RL with an SFT loss": (133 * 8, ("algorithm.name=srft",)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hours_lie_within_the_range(name: str) -> None:
    hours, words = PUBLISHED[name]
    _, plan = planned(*words, "cluster.colocate=true", "learner.num_ranks=8", "rollout.num_workers=8")
    assert plan.costs is not None
    least, expected, most = (cost.gpu_hours for cost in plan.costs)
    assert least < hours < most
    assert expected < hours, "evaluations, old logprobs and waiting come on top of what is counted"
    assert hours < 3.5 * expected


def test_cost_follows_the_work() -> None:
    def hours(*words: str) -> float:
        costs = planned(*words)[1].costs
        assert costs is not None
        return costs[1].gpu_hours

    assert hours("run.steps=1000") == pytest.approx(2 * hours())
    assert hours("algorithm.name=sft") < 0.2 * hours()
    assert hours("data.max_response_tokens=4096") < 0.55 * hours()
    phases = "phases=[{steps: 100, algorithm: {name: sft}}, {steps: 400, algorithm: {name: grpo}}]"
    # The engines stand idle during the first phase, as beside an SFT run that evaluates.
    sft = hours("algorithm.name=sft", "run.steps=100", "evaluation.sets={a: a.jsonl}")
    words = [word for word in SEVEN_B if not word.startswith("run.steps")]
    config = load_config(None, [*words, phases])
    costs = make_plan(config, find_shape(config.model, config.model.path)).costs
    assert costs is not None
    assert costs[1].gpu_hours == pytest.approx(sft + hours("algorithm.name=grpo", "run.steps=400"))


def test_prompts_that_are_drawn_again_are_part_of_the_cost() -> None:
    """BREAD draws the quarter of the prompts that no rollout is expected to solve twice more."""

    def generation(name: str) -> float:
        costs = planned(f"algorithm.name={name}")[1].costs
        assert costs is not None
        return costs[1].busy["generation"]

    assert generation("bread") == pytest.approx((1 + 2 * 0.25) * generation("grpo"))


def test_evaluations_are_part_of_the_cost() -> None:
    words = ("evaluation.sets={aime24: aime24.parquet}", "evaluation.every=10", "evaluation.samples=8")
    config = load_config(None, [*SEVEN_B, *words, "evaluation.temperature=0.6"])
    shape = find_shape(config.model, config.model.path)
    with_them = make_plan(config, shape, DataFacts(evaluation_prompts={"aime24": 30})).costs
    without = make_plan(config, shape).costs
    assert with_them is not None
    assert without is not None
    assert with_them[1].busy["evaluation"] > 0
    assert with_them[1].gpu_hours > without[1].gpu_hours


def test_operations_of_a_token() -> None:
    shape = shape_of(NAMED["Qwen2.5-Math-7B"]())
    products = 2 * (PARAMETERS["Qwen2.5-Math-7B"] - 152064 * 3584)
    assert forward_flops(shape, 0) == products
    assert forward_flops(shape, 1000) - products == 2 * 28 * 3584 * 1000
    experts = shape_of(NAMED["Qwen3-30B-A3B"]())
    assert experts.num_parameters - experts.num_idle == pytest.approx(3.3e9, rel=0.02), (
        "as published: 3.3 B active"
    )
    assert forward_flops(experts, 0) == 2 * (experts.num_parameters - experts.num_idle - 151936 * 2048)
    assert [two_digits(x) for x in (1234.0, 0.0456, 98.7)] == ["1,200", "0.046", "99"]


# -- what is shown -------------------------------------------------------------------------------------


def shown(plan: Plan) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(plan_summary(plan))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_plan_is_readable_at_100_columns() -> None:
    text = shown(planned()[1])
    assert max(len(line) for line in text.splitlines()) <= 100
    for part in (
        "4 × learner",
        "47.6 of 80 GiB",
        "activations 17.3",
        "15.2 GB",
        "GPU hours of an A100",
        "8 GPUs",
    ):
        assert part in text
    assert len(text.splitlines()) <= 16


def test_memory_is_planned_under_the_names_it_is_measured_by() -> None:
    _, plan = planned()
    assert plan.memory_mb["memory/learner_gpu_mb"] == pytest.approx(
        1024 * sum(terms(plan, "learner").values()), abs=1
    )
    config, _ = planned()
    assert make_plan(config, None).memory_mb == {}


def test_an_unknown_model_is_said_to_be_unknown() -> None:
    config, _ = planned()
    text = shown(make_plan(config, None))
    assert "memory" in text
    assert "not planned" in text
    assert "4 × learner" in text


# -- the dry run ---------------------------------------------------------------------------------------


@pytest.fixture
def dry_run(tmp_path: Path) -> Callable[..., int]:
    """The exit code of a dry run of the 7B configuration."""
    file = tmp_path / "base.yaml"
    file.write_text("prompts_per_step: 128\n")
    return lambda *words: main(["--dry-run", "--config", str(file), *SEVEN_B, *words])


def test_a_dry_run_names_what_it_could_not_check(
    dry_run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run("evaluation.sets={aime24: no/aime24.parquet}") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Not checked" in said
    assert "Qwen/Qwen2.5-Math-7B is no folder here" in said
    assert "data.train: openr1.parquet is not here" in said
    assert "evaluation.sets.aime24: no/aime24.parquet is not here" in said
    assert "47.6 of 80 GiB" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("algorithm.name=gspq",), "gspq"),
        (("reward.function=nonsense",), "nonsense"),
        (("reward.terms={nonsense: 1.0}",), "nonsense"),
        (("learner.gradient_checkpointing=false",), "activations"),
        (("selection.gamma=0.3",), "selection.gamma"),
    ],
)
def test_a_dry_run_without_files_still_finds_mistakes(
    words: tuple[str, ...], message: str, dry_run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(*words) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_checks_the_files_that_are_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"prompt": "no prompt"}) + "\n")
    words = ["--dry-run", f"data.train=[mini:train, {broken}]", "evaluation.sets={gone: gone.jsonl}"]
    assert main(words) == 2
    assert "broken.jsonl" in capsys.readouterr().err
    assert main(["--dry-run", "evaluation.sets={gone: gone.jsonl}"]) == 0
    said = capsys.readouterr().out
    assert "evaluation.sets.gone: gone.jsonl is not here" in said
    assert main(["--dry-run"]) == 0
    assert "Everything was checked." in capsys.readouterr().out


def test_a_real_start_refuses_what_a_dry_run_only_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run.dir={tmp_path}", "data.train=[gone.jsonl]"]
    assert main(words) == 2
    assert "gone.jsonl: no such file" in capsys.readouterr().err
    words = [f"run.dir={tmp_path}", "cluster.gpu_memory_gib=1", "rollout.num_gpus=1", "learner.num_gpus=1"]
    assert main(words) == 2
    assert "`cluster.gpu_memory_gib` is 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "refused before the run has a folder"


def test_several_configuration_files_compose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("prompts_per_step: 16\nrun: {steps: 7}\n")
    second.write_text("prompts_per_step: 24\n")
    config = load_config([first, second], ["model.path=m"])
    assert (config.prompts_per_step, config.run.steps) == (24, 7)
    second.write_text("prompts_per_stop: 24\n")
    with pytest.raises(UserError, match=r"second\.yaml"):
        load_config([first, second], ["model.path=m"])
