"""The learner's counterpart: one process, plain PyTorch, one sample at a time, float64.

Shares nothing with the learner but the samples: transformers' own attention, full logits, log-softmax,
torch's clip and AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from hpt_ray.config.training import LearnerConfig
from hpt_ray.types import Sample

VOCABULARY = 82


class Added(torch.nn.Module):
    """W + α/r · B·A in the place of a frozen W."""

    def __init__(self, layer: torch.nn.Linear, config: LearnerConfig):
        super().__init__()
        rank, weight = config.lora.rank, layer.weight
        self.scale = config.lora.alpha / rank
        self.a = torch.nn.Parameter(weight.new_zeros(rank, weight.shape[1]))
        self.b = torch.nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.detach() + self.scale * self.b @ self.a


class PlainLearner:
    """A policy and its AdamW. Parameters, gradients and steps are those of what trains."""

    def __init__(self, path: Path, config: LearnerConfig, temperature: float):
        self.model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float64, attn_implementation="eager"
        )
        self.temperature = temperature
        self.max_grad_norm, self.base_pull = config.max_grad_norm, config.base_pull
        self.trained: dict[str, Tensor] = self._trained(config)
        self.base = self.parameters()
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
        )

    def _trained(self, config: LearnerConfig) -> dict[str, Tensor]:
        """All parameters, or, with `config.lora`, two factors beside each linear layer's weight but the head's."""
        if not config.lora.rank:
            return dict(self.model.named_parameters())
        factors: dict[str, Tensor] = {}
        for name, layer in list(self.model.base_model.named_modules()):
            if isinstance(layer, torch.nn.Linear):
                added = Added(layer, config)
                parametrize.register_parametrization(layer, "weight", added)
                prefix = f"{self.model.base_model_prefix}.{name}"
                factors |= {f"{prefix}.lora_A": added.a, f"{prefix}.lora_B": added.b}
        return factors

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy().copy() for name, p in self.trained.items()}

    def set_parameters(self, values: Mapping[str, np.ndarray]) -> None:
        assert self.trained.keys() == values.keys()
        with torch.no_grad():
            for name, value in values.items():
                self.trained[name].copy_(torch.tensor(value))

    def score(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """log π and entropy of the sample's response tokens [L]; a demonstration at temperature 1."""
        tokens = torch.from_numpy(sample.token_ids).long()
        logits = self.model(input_ids=tokens[None]).logits[0, sample.prompt_length - 1 : -1]
        log_pi = torch.log_softmax(logits / (1.0 if sample.is_demo else self.temperature), -1)
        response = tokens[sample.prompt_length :]
        return log_pi[torch.arange(len(response)), response], -(log_pi.exp() * log_pi).sum(-1)

    def gradient(self, loss: Tensor) -> tuple[dict[str, np.ndarray], float]:
        """The gradient by parameter name and its norm, both before the clip."""
        self.optimizer.zero_grad(set_to_none=False)
        for p in self.trained.values():
            p.grad = torch.zeros_like(p)
        if loss.requires_grad:
            loss.backward()
        gradient = {name: p.grad.numpy().copy() for name, p in self.trained.items()}
        return gradient, norm(gradient)

    def step(self, learning_rate: float) -> None:
        """Clip and update with the gradient of the last call of `gradient`."""
        self.optimizer.param_groups[0]["lr"] = learning_rate
        if self.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(list(self.trained.values()), self.max_grad_norm)
        self.optimizer.step()
        pulled = {
            name: now - learning_rate * self.base_pull * (now - self.base[name])
            for name, now in self.parameters().items()
        }
        self.set_parameters(pulled)


def norm(tree: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(x.astype(np.float64)).sum() for x in tree.values())))


def distance(mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """‖mine − theirs‖₂ over all tensors, which must have the same names and shapes."""
    assert mine.keys() == theirs.keys()
    assert all(mine[name].shape == theirs[name].shape for name in mine)
    return norm({name: mine[name].astype(np.float64) - theirs[name] for name in mine})


def make_samples(
    plain: PlainLearner,
    groups: Sequence[tuple[Sequence[float], bool]],
    *,
    seed: int,
    prompt_lengths: tuple[int, int] = (1, 9),
    max_response: int = 24,
) -> list[list[Sample]]:
    """Random samples, prompt by prompt: a rollout per reward, and a demonstration where asked for.

    The sampler of the rollouts was a policy near `plain`: ratios lie around 1, some past the clip.
    """
    random = np.random.default_rng(seed)

    def sample(index: int, reward: float, is_demo: bool, prompt: np.ndarray) -> Sample:
        response = random.integers(0, VOCABULARY, random.integers(1, max_response + 1))
        made = Sample(
            prompt_id=f"q/{index}",
            token_ids=np.concatenate([prompt, response]).astype(np.int32),
            prompt_length=len(prompt),
            old_logprobs=np.full(len(response), np.nan, np.float32),
            is_demo=is_demo,
            reward=reward,
            group=index,
        )
        if not is_demo:
            with torch.no_grad():
                logprob = plain.score(made)[0].numpy()
            made.old_logprobs = (logprob + 0.15 * random.standard_normal(len(logprob))).astype(np.float32)
        return made

    prompts = []
    for index, (rewards, has_demo) in enumerate(groups):
        prompt = random.integers(0, VOCABULARY, random.integers(*prompt_lengths))
        samples = [sample(index, reward, False, prompt) for reward in rewards]
        prompts.append(samples + ([sample(index, 1.0, True, prompt)] if has_demo else []))
    return prompts
