"""Parts and gates of a user's file, called once on a small example before anything starts.

What fails there would fail in a learner rank after minutes, or train wrong: a mask that is not in logs, one number
where a token each is wanted, a gate that asks for a demonstration that is not there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from hpt_ray.algorithms.batch import BatchShape, TokenBatch, sample_view, to_numpy, token_view
from hpt_ray.algorithms.estimator import Estimator, parts_of
from hpt_ray.algorithms.gates import GATES
from hpt_ray.algorithms.padded import group_of
from hpt_ray.algorithms.token_parts import CORRECTIONS
from hpt_ray.errors import UserError
from hpt_ray.types import Decision
from hpt_ray.utils import plugins

# Two prompts with two rollouts each; the first has a demonstration. The policy has moved a little.
LENGTHS, GROUPS = np.array([3, 2, 4, 2, 3]), np.array([0, 0, 1, 1, 0])
REWARDS, IS_DEMO = np.array([1.0, 0.0, 0.0, 0.0, 1.0]), np.array([False, False, False, False, True])
R = int(LENGTHS.sum())
TOKENS = TokenBatch(
    logprobs=-torch.linspace(0.1, 2.0, R),
    old_logprobs=-torch.linspace(0.15, 1.9, R),
    sample_lengths=torch.from_numpy(LENGTHS),
    group_ids=torch.from_numpy(GROUPS),
    rewards=torch.from_numpy(REWARDS),
    is_demo=torch.from_numpy(IS_DEMO),
    entropy=torch.linspace(0.2, 1.5, R),
    ref_logprobs=-torch.linspace(0.2, 1.8, R),
)


def try_parts(estimator: Estimator, gate: str, gamma: float) -> None:
    """Raise `UserError` where a part of a user's file fails, or gives what cannot be used."""
    samples = sample_view(
        LENGTHS,
        GROUPS,
        REWARDS,
        IS_DEMO,
        np.ones(len(LENGTHS)),
        BatchShape(2, 2, 8),
        estimator.settings,
        values=np.zeros(R),
        teacher_gaps=np.zeros(R),
    )
    tokens = token_view(TOKENS, estimator.settings)
    for term in estimator.terms:
        inputs: dict[str, tuple[tuple, int]] = {
            "advantage": ((samples,), len(LENGTHS)),
            "denominator": ((tokens,), R),
            "clip": ((tokens.log_ratio_old, torch.ones(R), estimator.settings), R),
            "shaping": ((tokens,), R),
            "loss_aggregation": ((samples, samples.members(term.stream)), len(LENGTHS)),
        }
        for family, part in parts_of(term).items():
            arguments, length = inputs[family]
            length = R if part.needs & {"values", "teacher"} else length
            _try(f"{family} {getattr(term, family)}", part.function, arguments, length)
    correction = CORRECTIONS[estimator.correction].function
    _try(f"correction {estimator.correction}", correction, (tokens.log_ratio_old, tokens), R)
    _try_gate(gate, gamma)


def _try(what: str, function: Callable, arguments: tuple[Any, ...], length: int) -> None:
    module = _users_module(function)
    if module is None:
        return
    with plugins.blaming(module, what):
        found = to_numpy(function(*arguments))
    kind = "response token" if length == R else "sample"
    if found.shape != (length,):
        raise UserError(
            f"{what}: it returns shape {found.shape} for {length} {kind}s; return one number for each."
        )
    if found.dtype == bool and what.startswith("clip"):
        raise UserError(
            f"{what}: it returns truth values, but a mask is in logs: return 0 where a token is kept and −inf where "
            "it is dropped, such as torch.where(kept, 0.0, -math.inf)."
        )
    if not np.issubdtype(found.dtype, np.number) or np.isnan(found).any():
        raise UserError(f"{what}: it returns {found.tolist()}; return a number for each {kind}.")


def _try_gate(gate: str, gamma: float) -> None:
    function, what = GATES[gate].function, f"gate {gate}"
    module = _users_module(function)
    if module is None:
        return
    for rewards, has_demonstration in (((1, 0), True), ((0, 0), True), ((0, 0), False)):
        with plugins.blaming(module, what):
            found = function(group_of("example", np.array(rewards), has_demonstration), gamma, ())
        if not isinstance(found, Decision):
            raise UserError(f"{what}: it returns {found!r}; return a Decision of hpt_ray.types.")
        if not (0 <= found.rollout_weight < np.inf and 0 <= found.demo_weight < np.inf):
            raise UserError(f"{what}: it returns {found}; weights are numbers from 0 on.")
        if found.demo_weight and not has_demonstration:
            raise UserError(
                f"{what}: it asks for the demonstration of a prompt that has none; return demo_weight=0 where "
                "group.prompt.demonstration is None."
            )


def may_ask(gate: str, gamma: float, num_rollouts: int) -> bool:
    """Whether there are results with which the gate uses a demonstration. The switch with γ < 0 has none."""
    kind, numbers = GATES[gate], np.arange(num_rollouts)
    return kind.prefixes or (
        kind.needs_demonstrations
        and any(
            kind.function(group_of("example", numbers < solved, True), gamma, ()).demo_weight > 0
            for solved in range(num_rollouts + 1)
        )
    )


def _users_module(function: Callable) -> ModuleType | None:
    """The file of a user that the function is from."""
    name = getattr(getattr(function, "func", function), "__module__", None) or ""
    return sys.modules.get(name) if name.startswith(plugins.PREFIX) else None
