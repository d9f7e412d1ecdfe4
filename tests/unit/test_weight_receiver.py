"""vLLM's side of the weight sync, on a small model without an engine."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpt_ray.weight_sync.buckets import TensorMeta, cut


class Two(torch.nn.Module):
    """Two layers that load their weights as vLLM's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        loaded = set()
        for name, weight in weights:
            parameter = self.get_parameter(name)
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, weight)
            loaded.add(name)
        return loaded


@pytest.mark.parametrize("breaks_off", [False, True])
def test_an_update_is_written_where_the_weights_are(
    monkeypatch: pytest.MonkeyPatch, breaks_off: bool
) -> None:
    """CUDA graphs have the addresses of the weights, so no update may move them, nor one that breaks off before."""
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    from hpt_ray.rollout import weight_receiver

    model = Two()
    record_metadata_for_reloading(model)
    where = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    sent = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    metas = [TensorMeta(name, "float32", tuple(weight.shape)) for name, weight in sent.items()]
    buckets = list(cut(metas, 64))  # a weight and its bias do not come together
    assert len(buckets) > 1

    def receive(_: Any, buckets: list[list[TensorMeta]], load: Any) -> None:
        for bucket in buckets:
            flat = [sent[meta.name].flatten().view(torch.uint8) for meta in bucket]
            load(torch.cat(flat), bucket)

    monkeypatch.setattr(weight_receiver, "receive", receive)
    engine: Any = weight_receiver.BucketTransferEngine.__new__(weight_receiver.BucketTransferEngine)
    engine.model, engine.model_config, engine._group = model, SimpleNamespace(dtype=torch.float32), object()
    if breaks_off:
        engine.start_weight_update()
        engine.receive_weights(weight_receiver.UpdateInfo(metas=metas[:1], bucket_bytes=64))
    engine.start_weight_update()
    engine.receive_weights(weight_receiver.UpdateInfo(metas=metas, bucket_bytes=64))
    engine.finish_weight_update()
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == where[name]
        assert torch.equal(parameter, sent[name])
