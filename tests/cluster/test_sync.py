"""Learner to vLLM through the real backend: after a sync both give the same log-probs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from probe import call
from wired import Wired, start_wired

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(
    scope="module",
    params=[
        ("qwen2", True, 1, 1, 1, 64, "gloo"),  # everything in one bucket
        ("llama", False, 2, 3, 2, 0.02, "gloo"),  # embedding, head and MLP larger than a bucket, norms in one
        ("qwen2", True, 1, 1, 2, 64, "ipc"),  # one rank sends to two
        ("llama", False, 2, 3, 2, 0.02, "ipc"),  # each rank to the worker of its number
    ],
    ids=lambda case: f"{case[0]}-{case[2]}-to-{case[4]}-{case[-1]}",
)
def wired(request, ray_cluster, tiny_model) -> Iterator[Wired]:
    architecture, tied, num_ranks, stage, num_workers, bucket_mb, backend = request.param
    yield from start_wired(
        tiny_model(architecture, tied),
        num_ranks=num_ranks,
        stage=stage,
        num_workers=num_workers,
        bucket_mb=bucket_mb,
        backend=backend,
    )


def test_sampler_and_learner_agree_after_every_sync(wired, capsys):
    sync = wired.sync()
    for version in (1, 2):
        if version == 2:
            wired.train()
        # vLLM starts from weights of its own, and a step moves the learner's away: a gap can be seen.
        assert wired.gap(version - 1, 1.0) > 0.1
        report = asyncio.run(sync.push(version, wired.workers))
        assert (report.attempts, report.failed) == (1, {})
        assert (report.version, report.num_tensors) == (version, len(call(wired.learners, "weight_metas")[0]))
        for temperature in (1.0, 0.7):
            gap = wired.gap(version, temperature)
            with capsys.disabled():
                print(f"\nversion {version}, temperature {temperature}: largest gap {gap:.1e}")
            assert gap < 1e-5


@pytest.mark.parametrize(
    ("tied", "backend"), [(True, "gloo"), (False, "gloo"), (True, "ipc")], ids=["tied", "untied", "tied-ipc"]
)
def test_in_bfloat16_the_gap_is_that_of_rounding(ray_cluster, tiny_model, tied, backend, capsys):
    """The engine's output layer is in float32 then; it must follow the sync like the others."""
    for wired in start_wired(
        tiny_model("qwen2", tied),
        num_ranks=1,
        stage=1,
        num_workers=1,
        bucket_mb=64,
        dtype="bfloat16",
        backend=backend,
    ):
        asyncio.run(wired.sync().push(1, wired.workers))
        gap = wired.gap(1, 1.0)
        with capsys.disabled():
            print(f"\nlargest gap in bfloat16: {gap:.1e}")
        assert gap < 0.06


@pytest.mark.parametrize(
    ("sent_as", "message"),
    [
        ("model.layers.1.mlp.gate.weight", r"no module or parameter named 'layers\.1\.mlp\.gate'"),
        (
            "model.layers.0.input_layernorm.weight",
            r"1 parameters of vLLM unset: .*layers\.1\.input_layernorm",
        ),
    ],
    ids=["unknown", "one-twice-and-one-never"],
)
def test_wrong_names_are_refused(wired, sent_as, message):
    """Must run last: a worker in the middle of an update serves nobody."""
    call(wired.learners, "rename", {"model.layers.1.input_layernorm.weight": sent_as})
    failed = asyncio.run(wired.sync().push(9, wired.workers)).failed
    assert set(failed) == set(wired.workers.names)
    assert all(re.search(message, why) for why in failed.values())
