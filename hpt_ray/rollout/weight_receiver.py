"""vLLM's side of the weight sync: the gloo carrier, and the checks every carrier gets.

vLLM imports this module in each of its workers because `WorkerExtension` is named as the worker
extension; that also registers the carrier. The sender is `hpt_ray.weight_sync.gloo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo

from hpt_ray.weight_sync.buckets import TensorMeta, cut, unpack
from hpt_ray.weight_sync.gloo import GlooGroup


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the sender waits and which place in the group this engine's first worker takes."""

    host: str
    port: int
    rank_offset: int
    world_size: int
    bucket_bytes: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """What will come, in order; both sides cut it into the same buckets."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives packed buckets over gloo and loads them with vLLM's layerwise reload."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        self._bucket_bytes = init_info.bucket_bytes
        self._group = GlooGroup(
            init_info.host,
            init_info.port,
            rank=init_info.rank_offset + self.parallel_config.rank,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
        )

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        assert self._group is not None, "receive before connect"
        metas = [
            TensorMeta(name, dtype, tuple(shape))
            for name, dtype, shape in zip(
                update_info.names, update_info.dtype_names, update_info.shapes, strict=True
            )
        ]
        for bucket in cut(metas, self._bucket_bytes):
            # The reload may keep a view until the layer is complete, so each bucket owns its memory.
            buffer = torch.empty(sum(meta.num_bytes for meta in bucket), dtype=torch.uint8)
            self._group.broadcast(buffer)
            self.model.load_weights(unpack(buffer, bucket))  # type: ignore[operator]

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_head(self.model)

    def shutdown(self) -> None:
        self._group = None


def _repack_tied_head(model: torch.nn.Module) -> None:
    """vLLM on CPUs packs linear weights; a tied output layer gets no weight of its own in a reload, so
    its packed copy would silently stay at the old values.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


class WorkerExtension:
    """Mixed into vLLM's worker: records which names arrive and which parameters they load."""

    model_runner: Any

    def watch_loading(self, *, check_each_name: bool) -> None:
        """Record the coming update. With `check_each_name` (the first sync) a name that loads no
        parameter is an error; it costs a scan of the model per name.
        """
        model = self.model_runner.model
        if not hasattr(self, "_load_weights"):
            self._load_weights = model.load_weights
            self._expected = {name for name, _ in model.named_parameters()}
        self._received: list[str] = []
        self._loaded: set[str] = set()

        def load(weights: Any) -> set[str]:
            for batch in ([item] for item in weights) if check_each_name else (list(weights),):
                names = [name for name, _ in batch]
                loaded = self._load_weights(iter(batch))
                if check_each_name and not loaded:
                    raise RuntimeError(f"vLLM loaded nothing from weight {names[0]}")
                self._received += names
                self._loaded |= loaded
            return self._loaded

        model.load_weights = load

    def loaded_names(self) -> list[str]:
        """The names received since `watch_loading`. Raises where a parameter of vLLM's got no weight."""
        model = self.model_runner.model
        model.load_weights = self._load_weights
        tied = getattr(model.config, "tie_word_embeddings", False)
        missing = {n for n in self._expected - self._loaded if not (tied and n.startswith("lm_head"))}
        if missing:
            raise RuntimeError(
                f"weight sync left {len(missing)} parameters of vLLM unset: {sorted(missing)[:5]}"
            )
        return self._received


def register() -> None:
    """Make the carrier known to vLLM; a second import of this module changes nothing."""
    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)


register()
