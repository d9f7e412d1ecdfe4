"""An engine that fails beside another torch than vLLM's is explained by it; any other failure is left as it is."""

from __future__ import annotations

import pytest

from hpt_ray.rollout.engine import torch_of, wrong_torch

FAILED = AttributeError("'_OpNamespace' '_C' object has no attribute 'init_cpu_memory_env'")


def test_the_installed_pair_explains_nothing() -> None:
    assert wrong_torch(FAILED) is None


@pytest.mark.parametrize("installed", ["2.11.0+cu130", "2.14.1", "2.15.0a0"])
def test_another_torch_is_named_with_what_failed(installed: str) -> None:
    message = str(wrong_torch(FAILED, installed))
    assert f"but torch {installed} is installed" in message
    assert "is built for torch==" in message
    assert "AttributeError: '_OpNamespace'" in message


def test_only_what_is_asked_for_on_this_machine_counts() -> None:
    lines = [
        'torch==1.0; platform_machine == "elsewhere"',
        'torch==3.0; extra == "more"',
        "torchvision==2.0",
        "torch>=2.13",
    ]
    assert torch_of(lines) == torch_of(["torch>=2.13"])
    assert torch_of(lines).contains("2.13.0+cu130")
    assert torch_of(["torchvision"]).contains("1.0")
