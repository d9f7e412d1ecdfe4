"""Tiled log π and entropy against softmax of the full logits, in values and in every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hpt_ray.learner.logprobs import TILE_LOGITS, LogProbHead, logprob_and_entropy

HIDDEN, VOCABULARY = 5, 23
TILES = [1, 7, 23, 64, 10_000]  # one logit, parts of a sample, one sample, some samples, everything


def draw(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def make_inputs(num_samples: int, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": draw(num_samples, HIDDEN, seed=1, scale=2, dtype=dtype).requires_grad_(),
        "weight": draw(VOCABULARY, HIDDEN, seed=2, dtype=dtype).requires_grad_(),
        "bias": draw(VOCABULARY, seed=3, dtype=dtype).requires_grad_(),
        "targets": torch.randint(0, VOCABULARY, (num_samples,), generator=generator),
        "temperature": 0.5 + torch.rand(num_samples, generator=generator),
    }


def plain(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, in float64."""
    z = hidden.double() @ weight.double().T
    if bias is not None:
        z = z + bias.double()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    if temperature is not None:
        z = z / temperature.double()[:, None]
    log_p = z.log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor], *, of_entropy: bool) -> list[Tensor]:
    """Of one random direction of log π, and of the entropy where asked for."""
    logprob, entropy = outputs
    loss = (draw(len(logprob), seed=4).to(logprob.dtype) * logprob).sum()
    if of_entropy:
        loss = loss + (draw(len(logprob), seed=5).to(logprob.dtype) * entropy).sum()
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("tile_logits", TILES)
@pytest.mark.parametrize("num_samples", [0, 1, 2, 11])
@pytest.mark.parametrize("entropy_grad", [False, True], ids=["", "entropy-grad"])
def test_values_and_gradients_equal_full_logits(num_samples, tile_logits, entropy_grad):
    made = make_inputs(num_samples)
    for names in itertools.chain.from_iterable(
        itertools.combinations(("bias", "temperature", "softcap"), size) for size in range(4)
    ):
        options = {name: 1.5 if name == "softcap" else made[name] for name in names}
        inputs = [made["hidden"], made["weight"], *([made["bias"]] if "bias" in names else [])]
        arguments = (made["hidden"], made["weight"], made["targets"])
        mine = logprob_and_entropy(*arguments, **options, entropy_grad=entropy_grad, tile_logits=tile_logits)
        theirs = plain(*arguments, **options)
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == torch.float64
            assert torch.allclose(a, b, rtol=0, atol=1e-13)
        for a, b in zip(
            gradients(mine, inputs, of_entropy=entropy_grad),
            gradients(theirs, inputs, of_entropy=entropy_grad),
            strict=True,
        ):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("tile_logits", [7, 10_000])
def test_gradients_equal_finite_differences(tile_logits, softcap):
    made = make_inputs(3)

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return logprob_and_entropy(
            hidden,
            weight,
            made["targets"],
            bias=bias,
            temperature=made["temperature"].double(),
            softcap=softcap,
            entropy_grad=True,
            tile_logits=tile_logits,
        )

    assert torch.autograd.gradcheck(function, (made["hidden"], made["weight"], made["bias"]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("tile_logits", [64, 10_000])
def test_sums_are_float32(dtype, tolerance, tile_logits):
    """Of bfloat16 only the inputs and the gradients are rounded: log π is as good as in float32."""
    made = make_inputs(11, dtype=dtype)
    inputs = [made[name] for name in ("hidden", "weight", "bias")]
    options = {name: made[name] for name in ("bias", "temperature")}
    arguments = (made["hidden"], made["weight"], made["targets"])
    mine = logprob_and_entropy(*arguments, **options, entropy_grad=True, tile_logits=tile_logits)
    theirs = plain(*arguments, **options)
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == torch.float32
        assert torch.allclose(a.double(), b, rtol=0, atol=5e-6)
    for a, b in zip(
        gradients(mine, inputs, of_entropy=True), gradients(theirs, inputs, of_entropy=True), strict=True
    ):
        assert a.dtype == dtype
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


def test_a_parameter_may_keep_its_gradient_in_float32():
    """As the engine asks for: of bfloat16 weights the sum over tiles is not rounded."""
    made = make_inputs(11, dtype=torch.bfloat16)
    weight = made["weight"]
    weight.grad_dtype = torch.float32
    logprob, _ = logprob_and_entropy(made["hidden"], weight, made["targets"], tile_logits=64)
    logprob.sum().backward()
    assert weight.grad.dtype == torch.float32
    assert (weight.grad != weight.grad.bfloat16()).any()


def test_entropy_is_a_constant_unless_asked_for():
    made = make_inputs(4)
    arguments = (made["hidden"], made["weight"], made["targets"])
    assert not logprob_and_entropy(*arguments)[1].requires_grad
    assert logprob_and_entropy(*arguments, entropy_grad=True)[1].requires_grad


def test_large_logits_do_not_overflow():
    """The largest logit of a sample may come in any tile."""
    made = make_inputs(11)
    hidden = 1e3 * made["hidden"].detach()
    mine = logprob_and_entropy(hidden, made["weight"], made["targets"], tile_logits=7)
    for a, b in zip(mine, plain(hidden, made["weight"], made["targets"]), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-9)


def test_a_frozen_layer_passes_the_gradient_on():
    layer = torch.nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64).requires_grad_(False)
    made = make_inputs(4)
    logprob, _ = LogProbHead(layer)(made["hidden"], made["targets"], made["temperature"], False)
    theirs, _ = plain(
        made["hidden"], layer.weight, made["targets"], bias=layer.bias, temperature=made["temperature"]
    )
    for a, b in zip(
        torch.autograd.grad(logprob.sum(), made["hidden"]),
        torch.autograd.grad(theirs.sum(), made["hidden"]),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """The largest tensor that any operation writes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("num_samples", [256, 1024])
def test_no_tensor_is_larger_than_a_tile(num_samples):
    """Whatever the number of samples, with a vocabulary of a size in use."""
    vocabulary, hidden_size = 151_936, 4
    hidden = draw(num_samples, hidden_size, seed=1, dtype=torch.float32).requires_grad_()
    weight = draw(vocabulary, hidden_size, seed=2, dtype=torch.float32).requires_grad_()
    targets = torch.arange(num_samples)
    with LargestTensor() as largest:
        logprob, entropy = logprob_and_entropy(hidden, weight, targets, entropy_grad=True)
        torch.autograd.grad((logprob + entropy).sum(), [hidden, weight])
    assert largest.numel == max(TILE_LOGITS["cpu"], weight.numel())
