"""The scorer on packed samples against full logits of one sample at a time, on small models in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import hpt_ray.learner.logprobs as logprob_module
from hpt_ray.data.mini.model import model_config
from hpt_ray.errors import UserError
from hpt_ray.learner.architectures import ARCHITECTURES, ArchitectureRule, rule_of
from hpt_ray.learner.logprobs import TokenScorer
from hpt_ray.learner.packing import WeightedSample, make_micro_batch
from hpt_ray.learner.scorer_input import ScorerInput
from hpt_ray.types import MicroBatch, Sample

VOCABULARY = 82
TEMPERATURE = 0.7
MODELS = [(architecture, tied) for architecture in ("qwen2", "llama") for tied in (True, False)]


def make_model(architecture: str, tied: bool, attention: str = "segments") -> PreTrainedModel:
    """2 layers, 2 query heads on 1 key head; no weight is zero or one."""
    config = model_config("t", architecture)
    config.tie_word_embeddings = tied
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation=attention)
    return fill(model)


def fill(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights for the same shapes, none of them zero or one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) + (p.dim() == 1))
    return model


def make_samples() -> list[Sample]:
    """Samples of many lengths, among them the shortest possible, and every third a demonstration."""
    random = np.random.default_rng(0)
    shapes = [(1, 1), (3, 20), (9, 2), (1, 60), (30, 1), (4, 4)]
    return [
        Sample(
            prompt_id=f"q/{i}",
            token_ids=random.integers(0, VOCABULARY, prompt + response).astype(np.int32),
            prompt_length=prompt,
            old_logprobs=np.zeros(response, np.float32),
            is_demo=i % 3 == 0,
            reward=0.0,
            group=i,
        )
        for i, (prompt, response) in enumerate(shapes)
    ]


def micro_batch_of(samples: list[Sample]) -> MicroBatch:
    return make_micro_batch([WeightedSample(sample, np.zeros((1, 1)), np.zeros(1)) for sample in samples])


def full_logits(model: PreTrainedModel, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """log π and entropy [R] by transformers' own forward pass, sample by sample."""
    logprobs, entropies = [], []
    for sample in samples:
        tokens = torch.from_numpy(sample.token_ids).long()
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, sample.prompt_length - 1 : -1]
        log_pi = torch.log_softmax(logits / (1.0 if sample.is_demo else TEMPERATURE), -1)
        response = tokens[sample.prompt_length :]
        logprobs.append(log_pi[torch.arange(len(response)), response])
        entropies.append(-(log_pi.exp() * log_pi).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def gradient(model: PreTrainedModel, logprob: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """Of one random direction of both outputs."""
    generator = torch.Generator().manual_seed(4)
    w, v = (torch.randn(logprob.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = (w * logprob).sum() + (v * entropy).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((mine - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("chunk_samples", [1, 7, 1000], ids=lambda n: f"chunks-of-{n}")
@pytest.mark.parametrize("recompute", [False, True], ids=["", "gradient-checkpointing"])
@pytest.mark.parametrize(("architecture", "tied"), MODELS)
def test_equals_full_logits(monkeypatch, architecture, tied, recompute, chunk_samples):
    """The results are float32 by design, so that much of float64 is left."""
    monkeypatch.setitem(logprob_module.TILE_LOGITS, "cpu", chunk_samples * VOCABULARY)
    samples = make_samples()
    plain = make_model(architecture, tied, attention="eager")
    expected = full_logits(plain, samples)
    model = make_model(architecture, tied).train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    scorer = TokenScorer(model)
    packed = ScorerInput.from_micro_batch(micro_batch_of(samples), temperature=TEMPERATURE, device="cpu")
    logprob, entropy = scorer(packed, entropy_grad=True)
    assert logprob.dtype == entropy.dtype == torch.float32
    assert (logprob - expected[0]).abs().max() < 2e-6
    assert (entropy - expected[1]).abs().max() < 2e-6
    assert relative(gradient(model, logprob, entropy), gradient(plain, *expected)) < 1e-6


class OddLinear(torch.nn.Linear):
    """An output layer that is more than its weight."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 1.5


@pytest.mark.parametrize("chunk_samples", [7, 1000], ids=lambda n: f"chunks-of-{n}")
def test_an_output_layer_of_another_kind_is_called(monkeypatch, chunk_samples):
    monkeypatch.setattr(logprob_module, "CHUNK_LOGITS", chunk_samples * VOCABULARY)
    samples = make_samples()
    plain, model = (make_model("qwen2", tied=True, attention=name) for name in ("eager", "segments"))
    for m in (plain, model):
        m.lm_head.__class__ = OddLinear
    expected = full_logits(plain, samples)
    packed = ScorerInput.from_micro_batch(micro_batch_of(samples), temperature=TEMPERATURE, device="cpu")
    logprob, entropy = TokenScorer(model)(packed, entropy_grad=True)
    assert (logprob - expected[0]).abs().max() < 2e-6
    assert (entropy - expected[1]).abs().max() < 2e-6
    assert relative(gradient(model, logprob, entropy), gradient(plain, *expected)) < 1e-6


@pytest.mark.parametrize(("architecture", "tied"), MODELS)
def test_parameters_are_those_of_the_model(architecture, tied):
    """The output layer's weight has two owners and one name, one gradient and one place in the optimizer."""
    model = make_model(architecture, tied)
    names = [name for name, _ in TokenScorer(model).named_parameters()]
    assert names == [f"model.{name}" for name, _ in model.named_parameters()]


def test_entropy_is_detached_unless_asked_for():
    scorer = TokenScorer(make_model("qwen2", tied=True))
    packed = ScorerInput.from_micro_batch(micro_batch_of(make_samples()), temperature=1.0, device="cpu")
    logprob, entropy = scorer(packed)
    assert logprob.requires_grad
    assert not entropy.requires_grad
    with_gradient = scorer(packed, entropy_grad=True)[1]
    assert with_gradient.requires_grad
    assert torch.allclose(with_gradient, entropy, rtol=0, atol=1e-6)


def test_samples_do_not_see_each_other():
    scorer = TokenScorer(make_model("llama", tied=False))
    samples = make_samples()

    def score(samples: list[Sample]) -> torch.Tensor:
        return scorer(ScorerInput.from_micro_batch(micro_batch_of(samples), temperature=1.0, device="cpu"))[
            0
        ].detach()

    alone = torch.cat([score([sample]) for sample in samples])
    assert (score(samples) - alone).abs().max() < 1e-6
    backwards = score(samples[::-1]).split([sample.response_length for sample in samples[::-1]])
    assert (torch.cat(backwards[::-1]) - alone).abs().max() < 1e-6


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
# Large and small factors, so that they bend these logits.
BENT = {
    "gemma2": {"final_logit_softcapping": 0.5, "attn_logit_softcapping": None},
    "granite": {"logits_scaling": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 4.0},
    "hyperclovax": {"logits_scaling": 4.0},
}


@pytest.mark.parametrize("architecture", BENT)
def test_logits_that_the_model_bends_or_scales(architecture):
    config = AutoConfig.for_model(architecture, **SMALL, **BENT[architecture])
    plain, model = (
        fill(
            AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=torch.float64, attn_implementation=name
            )
        )
        for name in ("eager", "segments")
    )
    samples = make_samples()
    expected = full_logits(plain, samples)
    packed = ScorerInput.from_micro_batch(micro_batch_of(samples), temperature=TEMPERATURE, device="cpu")
    logprob, entropy = TokenScorer(model)(packed, entropy_grad=True)
    assert (logprob - expected[0]).abs().max() < 2e-6
    assert (entropy - expected[1]).abs().max() < 2e-6
    assert relative(gradient(model, logprob, entropy), gradient(plain, *expected)) < 1e-6


def test_an_output_layer_of_another_kind_is_called_and_its_logits_are_bent():
    """Cap after scale, as `cap(s · z, c) / T = cap(z, c / s) / (T / s)` has it."""
    scorer = TokenScorer(make_model("qwen2", tied=True))
    scorer.model.lm_head.__class__ = OddLinear
    scorer.head, scorer._scale, scorer._softcap = None, 3.0, 2.0 / 3.0
    samples = make_samples()
    packed = ScorerInput.from_micro_batch(micro_batch_of(samples), temperature=TEMPERATURE, device="cpu")
    hidden = packed.hidden_before(scorer.model)
    logits = 2.0 * torch.tanh(3.0 * scorer.model.lm_head(hidden) / 2.0) / packed.temperature[:, None]
    expected = logits.log_softmax(-1).gather(1, packed.targets[:, None]).squeeze(1)
    assert (scorer(packed)[0] - expected).abs().max() < 2e-6


def test_windows_that_vllm_makes_wider_are_refused():
    config = AutoConfig.for_model("cohere2", **SMALL)
    with pytest.raises(UserError, match=r"cohere2 cannot be trained .sliding_window.: vLLM gives"):
        TokenScorer(AutoModelForCausalLM.from_config(config))


def test_a_type_that_is_in_no_table_is_searched_for_all_that_is_known_of_any():
    rule = rule_of(SimpleNamespace(model_type="new"))
    assert rule.scale_of(SimpleNamespace()) == 1.0
    assert rule.scale_of(SimpleNamespace(logit_scale=0.5, logits_scaling=None)) == 0.5
    assert rule.scale_of(SimpleNamespace(logits_scaling=8.0)) == 0.125
    assert rule.softcap_of(SimpleNamespace(final_logit_softcapping=30.0)) == 30.0


def test_a_rule_of_the_users_holds_for_its_type_alone(monkeypatch):
    rule = ArchitectureRule(refused={"ring": "it runs in a ring"}, softcap="cap", tied_head="model.head")
    monkeypatch.setitem(ARCHITECTURES, "mine", rule)
    config = SimpleNamespace(model_type="mine", cap=30.0, logit_scale=0.5)
    assert rule_of(config) is rule
    rule.check(config)
    assert rule.softcap_of(config) == 30.0
    assert rule_of(SimpleNamespace(model_type="other")).softcap_of(config) is None
    with pytest.raises(UserError, match=r"mine cannot be trained .ring.: it runs in a ring"):
        rule.check(SimpleNamespace(model_type="mine", ring=4))
