"""Where actors are asked to stand: bundles, pools, shared GPUs, and the words when a pool has no node."""

import pytest

from hpt_ray.cluster.runtime import POOL_SHARE, ResourceRequest, lay_out, missing_pools
from hpt_ray.config.checks import broken_rules
from hpt_ray.config.load import load_config
from hpt_ray.driver.actors import resource_requests, with_one_thread
from hpt_ray.driver.setup import Roles
from hpt_ray.errors import UserError
from hpt_ray.rollout.engine import BATCHED_TOKENS, EngineSpec, engine_arguments, graph_sizes, wrong_stack
from hpt_ray.weight_sync.backends import BACKENDS, Backend, backend_of

GOOD = ("model.path=m", "data.train=[a.parquet]")


def room(*words: str, rollouts: bool = True) -> dict[str, ResourceRequest]:
    """What a run with these words asks for, by kind."""
    config = load_config(None, [*GOOD, *words])
    asked = resource_requests(config, Roles(rollouts=rollouts, reference=True, critic=False))
    return {request.kind: request for request in asked}


def test_a_bundle_holds_what_is_above_zero() -> None:
    assert ResourceRequest("learner", 1, 2.0, 1.0).bundle == {"CPU": 2.0, "GPU": 1.0}
    assert ResourceRequest("verifier", 1, 0.0, 0.0).bundle == {}
    assert ResourceRequest("verifier", 1, 0.0, 0.0, "head").bundle == {"head": POOL_SHARE}


def test_pools_are_given_to_the_groups_they_name() -> None:
    asked = room("cluster.pools={rollout: a, learner: b}")
    assert {kind: request.pool for kind, request in asked.items()} == {
        "learner": "b",
        "rollout": "a",
        "verifier": None,
        "reference": None,
    }
    assert asked["rollout"].bundle["a"] == POOL_SHARE


def test_a_pool_without_a_node_is_named() -> None:
    asked = list(room("cluster.pools={rollout: a, learner: b}").values())
    (line,) = missing_pools(asked, {"CPU": 4.0, "b": 1.0})
    assert "`a` (cluster.pools.rollout)" in line
    assert """ray start --resources '{"a": 1}'""" in line


def test_each_actor_has_a_bundle_of_its_own() -> None:
    bundles, places = lay_out(
        [
            ResourceRequest("learner", 2, 1.0, 1.0),
            ResourceRequest("verifier", 1, 0.0, 0.0),
            ResourceRequest("rollout", 1, 2.0, 4.0),
        ]
    )
    assert bundles == [{"CPU": 1.0, "GPU": 1.0}] * 2 + [{"CPU": 2.0, "GPU": 4.0}]
    assert places == {"learner": [0, 1], "rollout": [2]}


COLOCATED = (
    "cluster.colocate=true",
    "rollout.num_workers=2",
    "rollout.tensor_parallel=2",
    "rollout.num_gpus=2",
    "rollout.num_cpus=3",
    "learner.num_ranks=4",
    "learner.num_gpus=1",
)


def test_colocated_an_engine_and_the_ranks_of_its_gpus_share_a_bundle() -> None:
    asked = room(*COLOCATED, "cluster.pools={rollout: a, learner: a}")
    bundles, places = lay_out(list(asked.values()))
    assert places["rollout"] == [0, 1]
    assert places["learner"] == [0, 0, 1, 1]
    assert bundles[:2] == [{"CPU": 5.0, "GPU": 2.0, "a": 3 * POOL_SHARE}] * 2
    assert len(bundles) == 3  # and the reference


def test_without_rollouts_there_is_nothing_to_share() -> None:
    asked = room(*COLOCATED, rollouts=False)
    assert asked["learner"].beside is None
    assert lay_out(list(asked.values()))[0][:4] == [{"CPU": 1.0, "GPU": 1.0}] * 4


@pytest.mark.parametrize(
    ("words", "wish"),
    [
        (("learner.num_ranks=2",), "`learner.num_ranks` (2) to be 4"),
        (("rollout.num_gpus=0",), "`rollout.num_gpus` (0) to be 2, the GPUs of 2 ranks"),
        (("rollout.max_off_policy_steps=1",), "`rollout.max_off_policy_steps` to be 0"),
        (("cluster.pools={rollout: a}",), "the same resource for `rollout` and `learner`"),
    ],
)
def test_what_cannot_be_colocated_is_refused(words: tuple[str, ...], wish: str) -> None:
    config = load_config(None, [*GOOD, *COLOCATED, *words])
    (problem,) = [
        problem for problem in broken_rules(config) if problem.startswith("`cluster.colocate` needs")
    ]
    assert problem.count(";") == 0
    assert wish in problem


def test_weights_of_shared_gpus_go_through_the_host() -> None:
    apart = ("rollout.num_gpus=1", "learner.num_gpus=1")
    assert backend_of(load_config(None, [*GOOD, *apart])) == "nccl"
    assert backend_of(load_config(None, [*GOOD, *COLOCATED])) == "gloo"
    assert backend_of(load_config(None, [*GOOD, "rollout.num_gpus=1"])) == "gloo"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("weight_sync.backend=nccl", *COLOCATED),
            "`weight_sync.backend` to be `auto` or `ipc`: NCCL cannot send",
        ),
        (("weight_sync.backend=nccl", "learner.num_gpus=1"), "`rollout.num_gpus`"),
        (("weight_sync.backend=ncl",), "no such name. Did you mean nccl"),
    ],
)
def test_a_backend_that_is_not_there_or_does_not_fit_is_refused(words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(UserError) as error:
        backend_of(load_config(None, [*GOOD, *words]))
    assert problem in str(error.value)


def test_a_backend_of_the_users_says_itself_whether_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = {True: None, False: "it needs two ranks."}
    mine = Backend(lambda *_: None, lambda config: fits[config.learner.num_ranks > 1], "mine")
    monkeypatch.setitem(BACKENDS, "mine", mine)
    words = [*GOOD, "weight_sync.backend=mine"]
    assert backend_of(load_config(None, [*words, "learner.num_ranks=2"])) == "mine"
    with pytest.raises(UserError, match="two ranks"):
        backend_of(load_config(None, words))


def arguments_of(*words: str, sleeps: bool = False) -> dict[str, object]:
    config = load_config(None, [*GOOD, *words])
    return engine_arguments(EngineSpec(config.model, "m", config.rollout, 64, 0, sleeps=sleeps))


def test_an_engine_over_several_gpus_is_processes_on_one_node() -> None:
    arguments = arguments_of("rollout.tensor_parallel=4", "rollout.num_gpus=4")
    assert arguments["tensor_parallel_size"] == 4
    assert arguments["distributed_executor_backend"] == "mp"
    assert "distributed_executor_backend" not in arguments_of("rollout.num_gpus=1")


def test_only_on_gpus_is_there_memory_to_give_up() -> None:
    assert arguments_of("rollout.num_gpus=1", sleeps=True)["enable_sleep_mode"] is True
    assert arguments_of("rollout.num_gpus=1")["enable_sleep_mode"] is False
    told = arguments_of("rollout.num_gpus=1", "rollout.engine.kv_cache_memory_bytes=5")
    assert told["kv_cache_memory_bytes"] == 5
    assert "enable_sleep_mode" not in arguments_of(sleeps=True)


def test_an_engine_on_gpus_decodes_by_graphs_that_need_no_compiler() -> None:
    from vllm import EngineArgs
    from vllm.config import CompilationMode, CUDAGraphMode

    arguments = arguments_of("rollout.num_gpus=1", sleeps=True)
    assert (arguments["enforce_eager"], arguments["sleep_mode_offload_cudagraph"]) == (False, True)
    graphs = EngineArgs(**arguments).compilation_config
    assert graphs.cudagraph_capture_sizes == graph_sizes(256)
    assert (graphs.mode, graphs.cudagraph_mode) == (CompilationMode.NONE, CUDAGraphMode.FULL_DECODE_ONLY)
    eager = arguments_of("rollout.num_gpus=1", "rollout.enforce_eager=true", sleeps=True)
    assert eager["enforce_eager"] is True
    assert "compilation_config" not in eager
    assert arguments_of()["enforce_eager"] is True, "a CPU has no graphs"
    own = arguments_of("rollout.num_gpus=1", "rollout.engine={compilation_config: {mode: 3}}")
    assert own["compilation_config"] == {"mode": 3}


@pytest.mark.parametrize("most", [1, 3, 4, 8, 250, 256, 257, 1024, 4096])
def test_graphs_reach_the_largest_batch_and_are_few(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, most)
    assert len(sizes) <= 36


def test_what_is_overridden_for_the_engine_alone_is_added_to_what_holds_for_both() -> None:
    both = ("model.config_overrides={rope_theta: 5000.0, sliding_window: 64}",)
    alone = ("rollout.engine={hf_overrides: {sliding_window: 32}}",)
    assert arguments_of(*both)["hf_overrides"] == {"rope_theta": 5000.0, "sliding_window": 64}
    assert arguments_of(*both, *alone)["hf_overrides"] == {"rope_theta": 5000.0, "sliding_window": 32}


def test_the_output_layer_computes_in_float32_whatever_the_rest_does() -> None:
    assert "head_dtype" not in arguments_of()["hf_overrides"]
    assert arguments_of("model.dtype=bfloat16")["hf_overrides"] == {"head_dtype": "float32"}
    short = "rollout.engine={hf_overrides: {head_dtype: model}}"
    assert arguments_of("model.dtype=bfloat16", short)["hf_overrides"] == {"head_dtype": "model"}


def test_an_engine_takes_as_many_tokens_at_a_time_as_the_plan_reckons_with() -> None:
    assert arguments_of("rollout.num_gpus=1")["max_num_batched_tokens"] == BATCHED_TOKENS[True]
    more = ("rollout.num_gpus=1", "rollout.engine={max_num_batched_tokens: 16384}")
    assert arguments_of(*more)["max_num_batched_tokens"] == 16384


@pytest.mark.parametrize(
    ("num_gpus", "device", "has_flashinfer", "line"),
    [
        (1, "cpu", False, "set rollout.num_gpus=0"),
        (0, "cuda", True, "set rollout.num_gpus=1"),
        (
            1,
            "cuda",
            False,
            "grep ^flashinfer-python requirements/gpu.lock | pip install -r /dev/stdin --no-deps",
        ),
        (0, "cpu", False, None),
        (2, "cuda", True, None),
    ],
)
def test_a_stack_that_cannot_serve_is_refused_with_the_line_to_write(
    num_gpus: float, device: str, has_flashinfer: bool, line: str | None
) -> None:
    refusal = wrong_stack(num_gpus, device, has_flashinfer)
    assert (refusal is None) == (line is None)
    assert line is None or line in str(refusal)


def test_actors_of_a_deterministic_run_compute_with_one_thread_and_reserve_what_they_reserve() -> None:
    words = ("learner.num_cpus=4", "critic.num_cpus=2", "reference.num_cpus=0", "rollout.num_cpus=0.5")
    config = load_config(None, [*GOOD, *words, "run.deterministic=true"])
    told = with_one_thread(config)
    assert (told.learner.num_cpus, told.critic.num_cpus) == (1.0, 1.0)
    assert (told.reference.num_cpus, told.rollout.num_cpus) == (0.0, 0.5)
    assert resource_requests(config, Roles(rollouts=True, reference=True, critic=False))[0].cpus == 4.0
