r"""Extra rewards beside correctness: small functions of a response, by name, each with its weight.

`reward.terms: {overlong: 1.0, format: 0.1}` adds `1.0 · overlong + 0.1 · format` to every score. They change
the reward only: whether a prompt counts as solved, and so the gate, is the reward function's outcome alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from hpt_ray.config.schema import RewardConfig
from hpt_ray.errors import UserError
from hpt_ray.reward.functions.extract import last_boxed


def format_reward(response: str) -> float:
    r"""1 if the response holds a balanced `\boxed{…}`, else 0."""
    return float(last_boxed(response) is not None)


def overlong_penalty(num_tokens: int, limit: int, buffer: int) -> float:
    """0 down to −1 over the last `buffer` tokens before `limit` (DAPO, arXiv 2503.14476, Eq 13).

    Example: limit 100, buffer 20: 80 tokens → 0, 90 → −0.5, 100 → −1.
    """
    return -min(1.0, max(0.0, (num_tokens - (limit - buffer)) / buffer))


# name → (config, response, length in tokens, limit of a response in tokens) → reward
TERMS: dict[str, Callable[[RewardConfig, str, int, int], float]] = {
    "format": lambda config, response, num_tokens, limit: format_reward(response),
    "overlong": lambda config, response, num_tokens, limit: overlong_penalty(
        num_tokens, limit, config.overlong_buffer
    ),
}


def check_terms(config: RewardConfig, max_response_tokens: int) -> None:
    """Raise UserError for an unknown term, or one whose lengths do not fit."""
    for name in config.terms:
        if name not in TERMS:
            near = difflib.get_close_matches(name, TERMS, n=1, cutoff=0.3)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise UserError(f"reward.terms: unknown term `{name}`.{hint} There are: {', '.join(TERMS)}.")
    if "overlong" in config.terms and not 0 < config.overlong_buffer <= max_response_tokens:
        raise UserError(
            f"reward.overlong_buffer ({config.overlong_buffer}) must lie between 1 and "
            f"data.max_response_tokens ({max_response_tokens}) for the term `overlong`."
        )


def extra_reward(config: RewardConfig, response: str, num_tokens: int, max_response_tokens: int) -> float:
    """The weighted sum of the configured terms."""
    return sum(
        weight * TERMS[name](config, response, num_tokens, max_response_tokens)
        for name, weight in config.terms.items()
    )
