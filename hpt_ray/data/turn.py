"""How a chat template writes the assistant's turn: what opens it, and which token closes it.

Chat models close a turn with a token that is often not the tokenizer's EOS (`<|im_end|>`, `<end_of_turn>`,
`<|eot_id|>`). It is found by rendering a turn whose text is known and looking at what follows it. The model's
`generation_config.json` may name further tokens that its makers stop on; an export names all of them, so that
whoever serves the trained model stops where training did.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

GENERATION_CONFIG = "generation_config.json"
ASKED, SAID, RULE = "what was asked 4711", "what was said 4712", "what is the rule 4713"
USER = {"role": "user", "content": ASKED}


@dataclass(frozen=True, slots=True)
class Turn:
    """The assistant's turn, beside its text."""

    end_token_id: int | None  # None: the template closes it with no token of its own
    opening_ids: frozenset[int] = frozenset()  # special tokens of the generation prompt: they begin a turn
    lead: str = ""  # blanks that the template puts between the generation prompt and the text
    strips: bool = False  # it takes blanks at both ends of the text away
    takes_system: bool = True  # a system message is rendered, neither refused nor dropped
    takes_user: bool = True  # a user's message is not dropped


def find_turn(
    tokenizer: PreTrainedTokenizerFast, makers_stop_ids: Sequence[int], variables: Mapping[str, Any]
) -> Turn:
    """The turn as the chat template writes it, given `variables`.

    `makers_stop_ids` are those of the model's generation config.
    """

    def render(*messages: dict[str, str], generate: bool = False) -> str | None:
        try:
            text = tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=generate, tokenize=False, **variables
            )
            return str(text)
        except (
            Exception
        ):  # the template is a program, and may fail as one; what it cannot render says nothing of the others
            return None

    takes_system = RULE in (render({"role": "system", "content": RULE}, USER, generate=True) or "")
    prompt = render(USER, generate=True)
    takes_user = prompt is None or ASKED in prompt
    said = {"role": "assistant", "content": f" \n{SAID}\n "}
    before, found, after = (render(USER, said) or "").partition(SAID)
    if not found:
        return Turn(None, takes_system=takes_system, takes_user=takes_user)
    strips = not after.startswith("\n ")
    if not strips:
        before, after = before.removesuffix(" \n"), after.removeprefix("\n ")
    end = _first_special(tokenizer, after)
    if end is None:  # the turn is closed by the token that opens the next one, where its makers stop on that
        _, _, after = (render(USER, said, USER) or "").partition(SAID)
        opens_next = _first_special(tokenizer, after.removeprefix("\n "))
        end = opens_next if opens_next in makers_stop_ids else None
    prompt = prompt or ""
    lead = before[len(prompt) :] if before.startswith(prompt) else ""
    ids = _ids(tokenizer, prompt.rpartition(ASKED)[2])
    if end in ids:  # the user's turn was closed by it; what follows opens the assistant's
        ids = ids[len(ids) - ids[::-1].index(end) :]
    opening = frozenset(ids) & _special_ids(tokenizer)
    return Turn(end, opening, lead if lead.isspace() else "", strips, takes_system, takes_user)


def stop_ids(
    end_token_id: int, eos_token_id: int | None, turn: Turn, makers: Sequence[int]
) -> tuple[int, ...]:
    """What a rollout stops on, the token that ends demonstrations first.

    A token that opens a turn is none of them, even where the makers stop on it too: a response that runs into it
    has not closed its own turn.
    """
    known = dict.fromkeys(token for token in (end_token_id, eos_token_id, *makers) if token is not None)
    return tuple(token for token in known if token == end_token_id or token not in turn.opening_ids)


def makers_stop_ids(path: str) -> list[int]:
    """`eos_token_id` of the generation config of a model folder or of a Hub name in the cache; [] without one."""
    file = Path(path).expanduser() / GENERATION_CONFIG
    if not Path(path).expanduser().is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(path, GENERATION_CONFIG)
        except ValueError:  # no name of the Hub
            cached = None
        if not isinstance(cached, str):
            return []
        file = Path(cached)
    return _as_list(_read(file).get("eos_token_id"))


def name_stop_ids(folder: Path, ids: Iterable[int]) -> None:
    """Add to the generation config of an exported model what its training stopped on."""
    file = folder / GENERATION_CONFIG
    content = _read(file)
    known = _as_list(content.get("eos_token_id"))
    if missing := [token for token in ids if token not in known]:
        file.write_text(
            json.dumps({**content, "eos_token_id": [*known, *missing]}, indent=2), encoding="utf-8"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _as_list(ids: Any) -> list[int]:
    return [token for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int)]


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Control tokens: those of the tokenizer's roles, and what was added to its vocabulary as special."""
    added = tokenizer.added_tokens_decoder
    return {token for token, entry in added.items() if entry.special} | set(tokenizer.all_special_ids)


def _first_special(tokenizer: PreTrainedTokenizerFast, text: str) -> int | None:
    """The special token that `text` begins with, blanks aside."""
    ids = _ids(tokenizer, text.lstrip())[:1]
    return ids[0] if ids and ids[0] in _special_ids(tokenizer) else None
