"""Loading and exporting the policy, and the critic's model, as Hugging Face folders.

In: the model section. Out: a causal language model ready for packed samples, or the same with a value head; and,
from trained weights, a folder that `transformers` and vLLM load: config.json, generation_config.json, tokenizer,
safetensors. The workers import this late: torch reads the environment that they make for it.
"""

from __future__ import annotations

import copy
import difflib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from hpt_ray.config.schema import ModelConfig
from hpt_ray.data.model_folder import no_weights
from hpt_ray.errors import UserError, in_one_line
from hpt_ray.learner.batch_invariant import NAME as BATCH_INVARIANT
from hpt_ray.learner.batch_invariant import check_architecture, make_batch_invariant
from hpt_ray.learner.scorer_input import ScorerInput  # which registers attention `segments`

# Everything of a model folder that is not weights travels to its exports as it is.
SIDE_FILES = (
    "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json",
    "chat_template*", "generation_config.json", "*.tiktoken", "*.model",
)  # fmt: skip

# In keys of config.json: probabilities of dropping numbers, and the size of noise.
RANDOM_IN_TRAINING = ("dropout", "pdrop", "layerdrop", "jitter")


def load_policy(config: ModelConfig, path: str, *, seed: int) -> PreTrainedModel:
    """The causal language model at `path`, with the configured replacements, dtype and attention."""
    hf_config = load_model_config(config, path)
    trust = {"trust_remote_code": config.trust_remote_code}
    attention = BATCH_INVARIANT if config.batch_invariant else config.attention
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype), "attn_implementation": attention}
    if config.batch_invariant:
        check_architecture(hf_config)
    try:
        if config.random_init:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(hf_config, **options, **trust)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                path, config=hf_config, use_safetensors=True, **options, **trust
            )
    except (OSError, SafetensorError) as error:  # the latter where a file is cut off, or is none
        raise no_weights(path, in_one_line(error)) from error
    return make_batch_invariant(model) if config.batch_invariant else model


def load_model_config(config: ModelConfig, path: str) -> PreTrainedConfig:
    """The configuration of the model at `path` with the configured replacements."""
    try:
        hf_config = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path}: no model configuration can be read there: {error}") from error
    switch_dropout_off(hf_config)
    override(hf_config, config.config_overrides)
    return hf_config


def switch_dropout_off(config: PreTrainedConfig) -> None:
    """Whatever is random in training alone, so that the learner computes the model that was sampled from."""
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if isinstance(value, float) and any(word in name for word in RANDOM_IN_TRAINING):
                setattr(part, name, 0.0)


def override(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> None:
    """Put `overrides` into `config`. Raises `UserError` for a key that the model would not read."""
    for name, value in overrides.items():
        if not hasattr(config, name):
            hint = "; RoPE's base stands in `rope_parameters`, as `{rope_type: default, rope_theta: 40000.0}`"
            near = difflib.get_close_matches(name, config.to_dict(), n=1)
            hint = hint if name.startswith("rope") else f"; is `{near[0]}` meant?" if near else ""
            raise UserError(
                f"config_overrides.{name}: the configuration of a {config.model_type} model has no such key, so "
                f"nothing would read it{hint}."
            )
        setattr(config, name, value)


# Kinds of RoPE whose `max_position_embeddings` is the scaled length already; of others it is before scaling.
_SCALED = ("default", "yarn", "longrope", "su", "llama3")


def positions_of(config: PreTrainedConfig) -> int | None:
    """The longest sequence, beyond which vLLM does not start; None: no limit. Sliding windows are none."""
    positions = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [
        rope,
        *(part for part in rope.values() if isinstance(part, dict)),
    ]  # some have one for a kind of layer
    factors = [kind.get("factor") or 1 for kind in kinds if kind.get("rope_type", "default") not in _SCALED]
    return positions and int(positions * max(factors, default=1))


class Published:
    """Parameters of `model` under the names, and in the parts, that its checkpoints have and vLLM reads.

    Experts that are one parameter in transformers are many on a disk. Such parts are copies, made one at a time: they
    stay what they are when ZeRO 3 lets go of the whole.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._as_they_are: set[str] = set()  # found out once: asking takes a millisecond a parameter

    def parts_of(self, name: str, parameter: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
        if name in self._as_they_are:
            return [(name, parameter)]
        parts = revert_weight_conversion(self._model, {name: parameter})
        if parts.get(name) is parameter:
            self._as_they_are.add(name)
            return [(name, parameter)]
        return ((part_name, part.clone()) for part_name, part in parts.items())


def export_policy(
    model: PreTrainedModel, state_dict: dict[str, torch.Tensor], source: str, folder: Path
) -> None:
    """Write `state_dict` as a Hugging Face folder; side files come from the folder `source`."""
    attention = model.config._attn_implementation
    # An export must load where our attention is not registered.
    model.config._attn_implementation = "sdpa"
    try:
        model.save_pretrained(folder, state_dict=state_dict)
    finally:
        model.config._attn_implementation = attention
    copy_side_files(source, folder)


def copy_side_files(source: str, folder: Path) -> None:
    if Path(source).is_dir():
        for pattern in SIDE_FILES:
            for file in Path(source).glob(pattern):
                if not (folder / file.name).exists():
                    shutil.copy2(file, folder / file.name)
    else:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def load_critic(config: ModelConfig, path: str, *, seed: int) -> PreTrainedModel:
    """The model at `path` with a value head of zeros in the place of the output layer: every value is 0 at first.

    To transformers it is a token classifier with one label, and an export loads as that. Raises `UserError`
    where transformers has no such model of this architecture.
    """
    policy = load_policy(config, path, seed=seed)
    shape = copy.deepcopy(policy.config)
    shape.num_labels = 1
    shape.classifier_dropout = 0.0
    try:
        with torch.device("meta"):  # its own weights are never used
            model = AutoModelForTokenClassification.from_config(shape, attn_implementation=config.attention)
    except ValueError as error:
        raise UserError(
            f"model.path={path}: transformers has no value model (token classification) for "
            f"{shape.model_type}; use an algorithm without a critic, such as rloo or grpo."
        ) from error
    setattr(model, model.base_model_prefix, policy.base_model)
    weight = policy.get_input_embeddings().weight
    model.score = torch.nn.Linear(model.score.in_features, 1, dtype=weight.dtype)
    torch.nn.init.zeros_(model.score.weight)
    torch.nn.init.zeros_(model.score.bias)
    return model


class ValueScorer(torch.nn.Module):
    """A value model seen as: packed samples → V of their response tokens."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model: Any = model

    def forward(self, samples: ScorerInput) -> torch.Tensor:
        """V [R] float32 of the prefix that each response token continues."""
        return samples.of_all(self.model.score(samples.hidden_before(self.model)).squeeze(-1).float())
