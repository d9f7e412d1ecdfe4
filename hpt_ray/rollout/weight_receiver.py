"""vLLM's side of the weight sync: the backend, and the checks that every update gets.

vLLM imports this module in each of its workers because `WorkerExtension` is named as the worker
extension; that also registers the backend. The other end is `hpt_ray.weight_sync.group`.

An update that breaks off leaves the model half loaded: fit for the next update, not for serving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo

from hpt_ray.learner.architectures import rule_of
from hpt_ray.utils.plugins import load_inherited
from hpt_ray.weight_sync.buckets import TensorMeta, cut, unpack
from hpt_ray.weight_sync.group import Rendezvous, TransferGroup, receive

BACKEND = "hpt_ray"  # as vLLM knows it


@dataclass
class JoinInfo(WeightTransferInitInfo):
    """For each of this engine's workers, in order, the group to join and the place in it."""

    seats: list[tuple[Rendezvous, int]]


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """What will come, in order; both sides cut it into the same buckets."""

    metas: list[TensorMeta]
    bucket_bytes: int


class BucketTransferEngine(WeightTransferEngine[JoinInfo, UpdateInfo]):
    """Receives packed buckets and loads them with vLLM's layerwise reload."""

    init_info_cls = JoinInfo
    update_info_cls = UpdateInfo
    _group: TransferGroup | None = None

    def init_transfer_engine(self, init_info: JoinInfo) -> None:
        self.shutdown()
        rendezvous, place = init_info.seats[self.parallel_config.rank]
        self._group = TransferGroup(rendezvous, place, device=self.device)

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        _forget_partial_layers(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        assert self._group is not None, "receive before connect"

        def load(buffer: torch.Tensor, bucket: list[TensorMeta]) -> None:
            self.model.load_weights(unpack(buffer, bucket))  # type: ignore[operator]
            _copy_what_is_kept(self.model, buffer)

        receive(self._group, list(cut(update_info.metas, update_info.bucket_bytes)), load)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_head(self.model)
        _repack_experts(self.model)

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


def _forget_partial_layers(model: torch.nn.Module) -> None:
    """Layers that an update left incomplete wait for the rest; they are to wait for all of it again."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights.clear()
        info.load_numel = 0


def _copy_what_is_kept(model: torch.nn.Module, buffer: torch.Tensor) -> None:
    """The reload keeps the tensors of a layer (q, k and v, say) until it has all of them. Those that are views
    of `buffer` get memory of their own, so that the buffer can take the next bucket.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    memory = buffer.untyped_storage().data_ptr()
    for layer in model.modules():
        for _, kept in get_layerwise_info(layer).loaded_weights:
            for name, value in kept.arguments.items():
                if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == memory:
                    kept.arguments[name] = value.clone()


def _repack_tied_head(model: torch.nn.Module) -> None:
    """vLLM on CPUs packs linear weights; a tied output layer gets no weight of its own in a reload, so
    its packed copy would silently stay at the old values.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def _repack_experts(model: torch.nn.Module) -> None:
    """vLLM on CPUs packs the weights of experts at their first loading only: a reload leaves them as they came."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None and isinstance(kernel.fused_experts, CPUUnquantizedExperts):
            kernel.fused_experts.process_weights_after_loading(module)


class WorkerExtension:
    """Mixed into vLLM's worker: records which names arrive and which parameters they load."""

    model_runner: Any
    _weight_update_active: bool

    def watch_loading(self, *, check_each_name: bool) -> None:
        """Record the coming update. With `check_each_name` (the first sync) a name that loads no
        parameter is an error; it costs a scan of the model per name.
        """
        self._weight_update_active = False  # one that broke off after this worker had received it all
        model = self.model_runner.get_model()
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
        model = self.model_runner.get_model()
        model.load_weights = self._load_weights
        tied = getattr(model.config, "tie_word_embeddings", False)
        head = rule_of(model.config).tied_head
        missing = {n for n in self._expected - self._loaded if not (tied and n.startswith(head))}
        if missing:
            raise RuntimeError(
                f"weight sync left {len(missing)} parameters of vLLM unset: {sorted(missing)[:5]}"
            )
        return self._received


def register() -> None:
    """Make the backend known to vLLM; a second import of this module changes nothing."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, BucketTransferEngine)


load_inherited()  # vLLM's workers are processes of their own
register()
