"""The vLLM adapter: one engine in this process, driven step by step. No Ray, no threads.

In: `GenerateRequest`s and weight updates. Out: finished responses with the logprobs of the sampled
tokens under the distribution they were sampled from. Every sample is a request of its own with its
own seed, so responses come out one by one; vLLM shares the prompt's cache blocks between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from math import ceil
from typing import Any

import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hpt_ray.cluster.process import importing
from hpt_ray.config.schema import ModelConfig, RolloutConfig
from hpt_ray.errors import UserError, in_one_line
from hpt_ray.rollout.requests import GenerateRequest, Sampling
from hpt_ray.types import FinishReason

ENVIRONMENT = {
    # One process: commands run between two engine steps, so nothing needs a lock or a pause protocol.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
BATCHED_TOKENS = {True: 8192, False: 16384}  # of one step, on a GPU or not
BATCH_INVARIANT = "BatchInvariantForCausalLM"  # vLLM's name of our model class
HEAD_SIZES_ON_CPU = (
    32,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    512,
)  # what vLLM's attention there is built for
CPU_ENVIRONMENT = {
    # vLLM compiles a small logprob helper on first use, even in eager mode: 10 s for nothing here.
    "TORCHDYNAMO_DISABLE": "1",
    # With tensor parallelism vLLM would give each of its processes a NUMA node of its own.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # oneDNN compiles for every shape of batch and keeps 1024 of them: hundreds of MiB, and no step is faster.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is made from."""

    model: ModelConfig
    model_path: str
    rollout: RolloutConfig
    max_model_len: int
    seed: int
    load_weights: bool = False  # from `model_path`, where no learner will send any
    sleeps: bool = False  # gives its memory to a learner between steps
    gpus: str | None = None  # as CUDA names them, where they are reserved by others; None: Ray's choice


@dataclass(frozen=True, slots=True)
class Finished:
    """One response as it left the engine: what it continues, whose logprobs are NaN, and what was sampled."""

    prompt_id: str
    sample: int
    token_ids: np.ndarray  # [L] int32
    logprobs: np.ndarray  # [L] float32
    finish: FinishReason
    weight_version: int
    prefix_length: int


class VllmEngine:
    """One vLLM engine. Not thread-safe: one thread makes it and calls it."""

    def __init__(self, spec: EngineSpec):
        """Raises `UserError` where the engine does not start beside a torch that vLLM was not built for."""
        try:
            self._engine = make_engine(spec)
        except UserError:
            raise
        except Exception as error:
            if (explained := wrong_torch(error)) is not None:
                raise explained from error
            raise
        self.weight_version = 0
        # Request id -> request, sample, version of the weights it was asked of.
        self._requests: dict[str, tuple[GenerateRequest, int, int]] = {}
        self._count = 0
        self._is_asleep = False

    @property
    def busy(self) -> bool:
        """Whether there is something to decode, and memory to do it in."""
        return bool(self._requests) and not self._is_asleep

    def add(self, request: GenerateRequest, sampling: Sampling) -> None:
        """Queue the samples of one prompt."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        prompt = TokensPrompt(prompt_token_ids=[*request.prompt_ids.tolist(), *request.prefix.tolist()])
        for sample, seed in zip(request.samples, request.seeds, strict=True):
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens - len(request.prefix),
                # The tokens that end a turn are ours to say, not the model folder's.
                stop_token_ids=list(sampling.stop_token_ids),
                ignore_eos=True,
                seed=seed if sampling.temperature > 0 else None,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,
            )
            request_id = f"{self._count}"
            self._count += 1
            self._requests[request_id] = (request, sample, self.weight_version)
            self._engine.add_request(request_id, prompt, params)

    def step(self) -> list[Finished]:
        """Decode one token for every running response; those that ended with it."""
        return [self._finished(output) for output in self._engine.step() if output.finished]

    def _finished(self, output: Any) -> Finished:
        request, sample, version = self._requests.pop(output.request_id)
        response, prefix = output.outputs[0], request.prefix
        unknown = np.full(len(prefix), np.nan, np.float32)
        return Finished(
            prompt_id=request.prompt_id,
            sample=sample,
            token_ids=np.concatenate([prefix, np.asarray(response.token_ids, np.int32)]),
            # vLLM lists the sampled token first at every position, and nothing else with logprobs=0.
            logprobs=np.concatenate([unknown, np.asarray(response.logprobs.logprobs, np.float32)]),
            finish=FinishReason(response.finish_reason),
            weight_version=version,
            prefix_length=len(prefix),
        )

    def abort(self, prompt_ids: set[str]) -> int:
        """Stop what is still running for these prompts; tokens that had been sampled for it."""
        ids = {rid for rid, (request, _, _) in self._requests.items() if request.prompt_id in prompt_ids}
        states = self._engine.output_processor.request_states.values()
        num_tokens = sum(
            state.detokenizer.num_output_tokens()
            for state in states
            if state.external_req_id in ids and state.detokenizer is not None
        )
        self._engine.abort_request(list(ids))
        for request_id in ids:
            del self._requests[request_id]
        return num_tokens

    # -- memory ------------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Give up the memory of weights and cache; what is still running ends. On CPUs nothing is given up."""
        self.abort({request.prompt_id for request, _, _ in self._requests.values()})
        self._is_asleep = True
        self._engine.sleep(level=2)

    def wake(self, what: str) -> None:
        """Take up the memory of "weights", whose values must then be received, and after that of "kv_cache"."""
        self._engine.wake_up(tags=[what])
        self._is_asleep = self._engine.is_sleeping()

    # -- weights: a transaction of begin, receive, commit ------------------------------------------

    def connect(self, init_info: dict) -> None:
        """Leave the transfer group before this one and join it (blocks until all members are there)."""
        self._rpc("init_weight_transfer_engine", init_info=init_info)

    def begin_update(self, *, check_each_name: bool) -> None:
        """From here until `commit_update` the engine must not decode. Starts over after one that broke off."""
        self._rpc("watch_loading", check_each_name=check_each_name)
        self._rpc("start_weight_update")

    def receive(self, update_info: dict) -> None:
        """Take in all weights. Raises `TransferBroken` where the driver calls it off or a member is gone: the
        engine has no usable weights then, until an update is committed.
        """
        self._rpc("update_weights", update_info=update_info)

    def commit_update(self, version: int) -> list[str]:
        """Make the received weights the ones that serve; the names that were received."""
        self._rpc("finish_weight_update")
        received = self._rpc("loaded_names")[0]
        # Cached keys and values belong to the old weights.
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM kept its prefix cache over a weight update")
        self.weight_version = version
        return received

    def _rpc(self, method: str, **kwargs: Any) -> list[Any]:
        return self._engine.collective_rpc(method, kwargs=kwargs)


def make_engine(spec: EngineSpec) -> Any:
    """vLLM's engine, up and with its memory taken.

    Raises `UserError`, before the model is loaded, where what is installed cannot run it.
    """
    with importing():
        from vllm import EngineArgs, LLMEngine
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.platforms import current_platform

        from hpt_ray.rollout.weight_receiver import BACKEND

    has_flashinfer = find_spec("flashinfer") is not None
    if wrong := wrong_stack(spec.rollout.num_gpus, current_platform.device_type, has_flashinfer):
        raise wrong
    if spec.model.batch_invariant:
        from hpt_ray.rollout.batch_invariant import register

        register(BATCH_INVARIANT)
    transfer = WeightTransferConfig(backend=BACKEND)
    return LLMEngine.from_engine_args(EngineArgs(weight_transfer_config=transfer, **engine_arguments(spec)))


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """The vLLM engine arguments that a run's configuration comes to; `rollout.engine` has the last word."""
    rollout = spec.rollout
    engine = dict(rollout.engine)
    overrides = {**spec.model.config_overrides, **engine.pop("hf_overrides", {})}
    if spec.model.dtype != "float32":  # the learner computes logits in float32
        overrides.setdefault("head_dtype", "float32")
    if spec.model.batch_invariant:
        overrides["architectures"] = [BATCH_INVARIANT]
    arguments: dict[str, Any] = {
        "model": spec.model_path,
        "dtype": spec.model.dtype,
        "trust_remote_code": spec.model.trust_remote_code,
        # In training, weights come from the learner before the first request, also after a restart.
        "load_format": "safetensors" if spec.load_weights else "dummy",
        "hf_overrides": overrides,
        "tensor_parallel_size": rollout.tensor_parallel,
        "max_model_len": spec.max_model_len,
        "max_num_seqs": rollout.max_num_seqs,
        "enforce_eager": rollout.is_eager,
        "seed": spec.seed,
        # The distribution that was sampled from: temperature, top-p and top-k applied.
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        # Nobody's defaults for temperature or top-k from the model folder.
        "generation_config": "vllm",
        # Token ids go in and come out; which ids end a turn is said with every request.
        "skip_tokenizer_init": True,
        "worker_extension_cls": "hpt_ray.rollout.weight_receiver.WorkerExtension",
    }
    if rollout.tensor_parallel > 1:
        # Else vLLM, finding itself in a placement group, would look for its GPUs in bundles of their own.
        arguments["distributed_executor_backend"] = "mp"
    if rollout.num_gpus == 0:
        arguments |= {
            "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
            "block_size": 32,  # CPU default 128: short prompts would never share a block
            # A seeded request whose prefill is split kills the CPU engine, so prefills stay whole.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(spec.max_model_len, BATCHED_TOKENS[False]),
        }
    else:
        arguments["max_num_batched_tokens"] = BATCHED_TOKENS[True]
        arguments["gpu_memory_utilization"] = rollout.gpu_memory_utilization
        arguments["enable_sleep_mode"] = spec.sleeps
        if not rollout.is_eager:
            # Of whole decoding steps, which need no compiler and so no minute of it at every start.
            arguments["compilation_config"] = {
                "mode": 0,
                "cudagraph_mode": "FULL_DECODE_ONLY",
                "cudagraph_capture_sizes": graph_sizes(rollout.max_num_seqs),
            }
            arguments["sleep_mode_offload_cudagraph"] = spec.sleeps
    return arguments | engine


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batches that get a graph, at most 36; one in between is padded to the next. Example: 20 → 1, 2, 4, 8, 16, 20."""
    between = range(8, max_num_seqs, 8 * ceil(max_num_seqs / 256))
    return [*(size for size in (1, 2, 4, *between) if size < max_num_seqs), max_num_seqs]


def environment(rollout: RolloutConfig) -> dict[str, str]:
    """What vLLM's process needs in its environment before the import."""
    return {**ENVIRONMENT, **(CPU_ENVIRONMENT if rollout.num_gpus == 0 else {})}


# -- an engine that does not start -----------------------------------------------------------------


def wrong_stack(num_gpus: float, device: str, has_flashinfer: bool) -> UserError | None:
    """What keeps a vLLM that is built for `device` (as it calls it: cpu, cuda, …) from serving on `num_gpus` GPUs."""
    if device == "cpu" and num_gpus > 0:
        return UserError(
            f"the installed vLLM is built for CPUs, but `rollout.num_gpus` is {num_gpus:g}: set rollout.num_gpus=0, or "
            "install the stack for GPUs (docs/gpu.md)."
        )
    if device != "cpu" and num_gpus == 0:
        return UserError(
            "the installed vLLM is built for GPUs, but `rollout.num_gpus` is 0: set rollout.num_gpus=1 (where there "
            "is one GPU for all, also cluster.colocate=true and learner.num_gpus=1), or install the stack for CPUs: "
            "make install"
        )
    if device == "cuda" and not has_flashinfer:
        return UserError(
            "vLLM samples with flashinfer's Python package on a GPU, which is not installed: "
            "grep ^flashinfer-python requirements/gpu.lock | pip install -r /dev/stdin --no-deps"
        )
    return None


def wrong_torch(error: Exception, installed: str | None = None) -> UserError | None:
    """The error to raise instead where torch is not of a version that vLLM asks for; None where it is.

    vLLM's compiled parts are bound to the torch they were built with. With another one they may work, or be left out
    with a warning; then whatever needs them fails, in words that say nothing of versions. So nothing is refused
    beforehand: only a failure is explained.
    """
    installed = installed or metadata.version("torch")
    for package in metadata.packages_distributions().get("vllm", ()):
        wanted = torch_of(metadata.requires(package) or [])
        if not wanted.contains(installed, prereleases=True):
            return UserError(
                f"{package} {metadata.version(package)} is built for torch{wanted}, but torch {installed} is "
                f"installed, and the engine does not start with it ({in_one_line(error)}). Install the two "
                "together: torch, vLLM and DeepSpeed as requirements/cpu.lock or requirements/gpu.lock has them."
            )
    return None


def torch_of(requires: list[str]) -> SpecifierSet:
    """The versions of torch that a package asks for on this machine, from its requirements; all without any."""
    requirements = [Requirement(line) for line in requires]
    of_torch = [one.specifier for one in requirements if one.name == "torch" and applies(one)]
    return SpecifierSet(",".join(str(specifier) for specifier in of_torch))


def applies(requirement: Requirement) -> bool:
    """Whether it is asked for here, without an extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
