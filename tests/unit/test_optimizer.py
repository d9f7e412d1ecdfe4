"""The pull to the base: its formula, what an update that is skipped leaves alone, and the distance it reports."""

import copy

import pytest
import torch

from hpt_ray.learner import optimizer
from hpt_ray.learner.optimizer import AdamW

RATE, PULL = 1e-2, 20.0


def two_tensors() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [
        torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in ((3, 5), (7,))
    ]


def trained(options: dict, steps: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Tensors after some steps on the sum of their cubes, and what they were."""
    tensors = two_tensors()
    stepped = AdamW(tensors, lr=RATE, weight_decay=0.1, **options)
    stepped.remember_base(tensors, torch.float64)
    for _ in range(steps):
        stepped.zero_grad()
        sum(tensor.pow(3).sum() for tensor in tensors).backward()
        stepped.step()
    return tensors, two_tensors()


def test_every_update_is_adamws_and_then_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "PIECE", 4)  # no size of a tensor is a multiple
    mine, base = trained({"base_pull": PULL})
    theirs = two_tensors()
    plain = torch.optim.AdamW(theirs, lr=RATE, weight_decay=0.1)
    for _ in range(3):
        plain.zero_grad()
        sum(tensor.pow(3).sum() for tensor in theirs).backward()
        plain.step()
        with torch.no_grad():
            for now, then in zip(theirs, base, strict=True):
                now -= RATE * PULL * (now - then)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_without_a_pull_it_is_adamw() -> None:
    mine, _ = trained({"base_pull": 0.0})
    theirs = two_tensors()
    plain = torch.optim.AdamW(theirs, lr=RATE, weight_decay=0.1)
    for _ in range(3):
        plain.zero_grad()
        sum(tensor.pow(3).sum() for tensor in theirs).backward()
        plain.step()
    assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))


def test_the_fused_kernel_gives_the_same() -> None:
    for pull in (0.0, PULL):
        mine, _ = trained({"base_pull": pull, "fused": True})
        theirs, _ = trained({"base_pull": pull})
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("saved", "here"), [(None, True), (True, None)])
def test_a_checkpoint_of_another_machine_leaves_the_kernel_as_it_is(
    saved: bool | None, here: bool | None
) -> None:
    def step(optimizer: AdamW, tensors: list[torch.Tensor]) -> None:
        optimizer.zero_grad()
        sum(tensor.pow(3).sum() for tensor in tensors).backward()
        optimizer.step()

    theirs, mine = two_tensors(), two_tensors()
    there = AdamW(theirs, lr=RATE, base_pull=0.0, fused=saved)
    step(there, theirs)
    with torch.no_grad():
        for a, b in zip(mine, theirs, strict=True):
            a.copy_(b)
    resumed = AdamW(mine, lr=RATE, base_pull=0.0, fused=here)
    resumed.load_state_dict(copy.deepcopy(there.state_dict()))
    for state in resumed.state.values():
        state["step"] = state["step"].double() if here else state["step"]  # as it would be elsewhere
    for _ in range(2):
        step(there, theirs)
        step(resumed, mine)
    assert resumed.param_groups[0]["fused"] is here
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(mine, theirs, strict=True))


def test_a_share_of_one_ends_at_the_base_and_never_beyond() -> None:
    for pull in (1 / RATE, 5 / RATE):
        tensors, base = trained({"base_pull": pull})
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(tensors, base, strict=True))


def test_an_update_that_is_held_moves_nothing() -> None:
    tensors = two_tensors()
    stepped = AdamW(tensors, lr=RATE, base_pull=PULL)
    stepped.remember_base([tensor.detach() + 1 for tensor in tensors], torch.float64)
    stepped.is_held = True
    stepped.step()
    assert all((a == b).all() for a, b in zip(tensors, two_tensors(), strict=True))


def test_the_distance_is_that_of_the_tensors_from_what_they_were() -> None:
    tensors = two_tensors()
    stepped = AdamW(tensors, lr=RATE, base_pull=PULL)
    stepped.remember_base(tensors, torch.float64)
    with torch.no_grad():
        tensors[0] += 0.5
    length = sum(float(tensor.detach().square().sum()) for tensor in two_tensors())
    assert stepped.base_distance() == pytest.approx((15 * 0.25, length))


def test_the_base_is_kept_in_the_models_precision() -> None:
    weights = torch.randn(9, generator=torch.Generator().manual_seed(2)).bfloat16()
    master = weights.float().requires_grad_()
    stepped = AdamW([master], lr=RATE, base_pull=1 / RATE)
    stepped.remember_base([master], torch.bfloat16)
    master.grad = torch.ones(9)
    stepped.step()
    assert (master == weights.float()).all()
    assert {base.dtype for base in stepped._base.values()} == {torch.bfloat16}
