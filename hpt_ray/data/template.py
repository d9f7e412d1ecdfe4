"""From messages to token ids: how a prompt is put to the model, and where its response ends.

A prompt is rendered to text and tokenised; a demonstration is tokenised on its own and closed with
the end token. So prompt ids + demonstration ids is exactly what the model would have seen and
sampled: a sampled response starts with a fresh token after the prompt, hence no token here ever spans
the border either. (Tokenising prompt and response as one text could merge across it.)

One token ends every demonstration: with a chat template the one that closes the assistant's turn (see `turn`),
else the tokenizer's EOS, or what `data.end_token` names. A rollout stops on it, and on what else the model's makers
stop on. Nothing is truncated here; what is too long is for `dataset` to drop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from jinja2.defaults import DEFAULT_NAMESPACE
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _get_template_variables

from hpt_ray.config.schema import DataConfig
from hpt_ray.data.token_bound import exceeds, longest_token
from hpt_ray.data.turn import Turn, find_turn, makers_stop_ids, stop_ids
from hpt_ray.errors import UserError, in_one_line
from hpt_ray.types import opening_of

# What a template that asks for today gets (Llama 3's own where there is no clock): tokens do not change by night.
TODAY = datetime(2024, 7, 26)
NOT_KWARGS = {"messages", "add_generation_prompt", "raise_exception", "strftime_now", *DEFAULT_NAMESPACE}


Message = dict[str, str]  # {role, content}


class Template:
    """Renders and tokenises the prompts of one run, as `data.template` and its neighbours say.

    - `chat`: the tokenizer's chat template with its generation prompt and `data.chat_template_kwargs`; BOS is the
      template's affair, and today is always `TODAY`. Where it refuses or drops a system message, that stands at the
      head of the first user message instead.
    - `plain` and texts with `{prompt}`: one user message, after the system message and an empty line
      if there is one. BOS goes first with `add_bos`.

    Raises UserError for settings that the tokenizer cannot serve.
    """

    def __init__(self, config: DataConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        name = tokenizer.name_or_path
        self._kind = config.template
        self._system_prompt = config.system_prompt
        self._tokenizer = tokenizer
        self._bos = _bos_ids(config, tokenizer)
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer {name} has no fast version (tokenizer.json), which data "
                "preparation needs. Convert it with transformers and save it beside the model."
            )
        if self._kind == "chat" and not tokenizer.chat_template:
            raise UserError(
                f"data.template is `chat`, and the tokenizer {name} has no chat template; those of base models often "
                "have none. Set data.template=plain, or a text with {prompt} in it that tells a base model where the "
                'answer begins, as in template: "Question: {prompt}\\nAnswer:".'
            )
        if self._kind not in ("chat", "plain") and "{prompt}" not in self._kind:
            raise UserError(
                f"data.template is {self._kind!r}; it must be `chat`, `plain`, or a text with {{prompt}}."
            )
        self._check_kwargs("data.chat_template_kwargs", config.chat_template_kwargs)
        self._kwargs = config.chat_template_kwargs
        self._variables = {**self._kwargs, "strftime_now": TODAY.strftime}
        makers = makers_stop_ids(name)
        self._turn = find_turn(tokenizer, makers, self._variables) if self._kind == "chat" else Turn(None)
        if not self._turn.takes_user:
            raise UserError(
                f"The chat template of {name} leaves out what the user asks where it is a text: those of vision models "
                "may want a list of parts. Set data.template=plain or a text with {prompt} in it, or use another model."
            )
        self._longest_token = longest_token(tokenizer)
        self.end_token_id = _end_token_id(config, tokenizer, self._turn)
        self.stop_token_ids: tuple[int, ...] = (self.end_token_id,)
        if config.end_token is None:
            self.stop_token_ids = stop_ids(self.end_token_id, tokenizer.eos_token_id, self._turn, makers)

    @property
    def turn_end(self) -> str:
        """What ends a demonstration and a rollout, for people. Example: `<|im_end|>, or <|endoftext|>`."""
        names = self._tokenizer.convert_ids_to_tokens(list(self.stop_token_ids))
        return ", or ".join(filter(None, [names[0], " ".join(names[1:])]))

    @property
    def fingerprint(self) -> str:
        """Changes whenever any text could become other token ids."""
        parts = (
            self._tokenizer.backend_tokenizer.to_str(),
            str(self._tokenizer.chat_template),
            str(self._tokenizer.special_tokens_map),
            self._kind,
            json.dumps(self._kwargs, sort_keys=True, default=str),
            str(TODAY),
            repr(self._system_prompt),
            repr(self._bos),
            repr(self.stop_token_ids),
            repr(self._turn),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def render(self, messages: Sequence[Message], kwargs: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The prompt as text, up to where the response begins. UserError if it cannot be rendered.

        `kwargs`: what the chat template is given for this prompt, over `data.chat_template_kwargs`.
        """
        messages = self._with_system_prompt(messages)
        self._check_kwargs("`chat_template_kwargs`", kwargs)
        if self._kind == "chat":
            try:
                rendered = self._tokenizer.apply_chat_template(
                    list(messages),
                    add_generation_prompt=True,
                    tokenize=False,
                    **{**self._variables, **kwargs},
                )
                return cast(str, rendered)
            except TemplateError as error:
                raise UserError(f"the chat template refuses these messages: {error}") from error
            except Exception as error:  # the template is a program, and fails as one
                name = self._tokenizer.name_or_path
                raise UserError(f"the chat template of {name} fails: {in_one_line(error)}") from error
        roles = [message["role"] for message in messages]
        if roles not in (["user"], ["system", "user"]):
            raise UserError(
                f"the prompt has the roles {', '.join(roles)}; the template `{self._kind}` takes one user "
                "message. Use data.template=chat for conversations"
            )
        text = "\n\n".join(message["content"] for message in messages)
        return text if self._kind == "plain" else self._kind.replace("{prompt}", text)

    def encode_prompts(self, prompts: list[str]) -> list[np.ndarray]:
        """Token ids of rendered prompts, each [P] int32, ending where the response begins."""
        return [np.array(self._bos + ids, np.int32) for ids in self._encode(prompts)]

    def encode_demonstrations(self, demonstrations: list[str]) -> list[np.ndarray]:
        """Token ids of demonstrations, each [L] int32, as the chat template would write them.

        They end with the end token, never twice; another stop token at the end of the text makes room for it.
        """
        if self._turn.strips:
            demonstrations = [text.strip() for text in demonstrations]
        encoded = self._encode([self._turn.lead + text for text in demonstrations])
        for ids in encoded:
            while ids and ids[-1] in self.stop_token_ids:
                ids.pop()
        return [np.array([*ids, self.end_token_id], np.int32) for ids in encoded]

    def is_certainly_longer(self, text: str, limit: int) -> bool:
        """Whether the text has more than `limit` tokens, as far as that is clear without tokenising it."""
        return self._longest_token is not None and exceeds(text, limit * self._longest_token)

    def decode(self, ids: np.ndarray) -> str:
        """Token ids as text, special tokens among it: what the model sees, for people."""
        return cast(str, self._tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))

    def goes_past_end(self, ids: np.ndarray) -> bool:
        """Whether a demonstration goes on after a token that a rollout would have stopped on."""
        return bool(np.isin(ids[:-1], self.stop_token_ids).any())

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        try:
            return self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:
            if type(error) is not Exception:  # what the tokenizer's own library raises
                raise
            raise UserError(
                f"The tokenizer {self._tokenizer.name_or_path} cannot encode these texts ({error}): they hold "
                "characters that it does not know, as most texts do for the small task's. Use another model."
            ) from error

    def _check_kwargs(self, what: str, kwargs: Mapping[str, Any]) -> None:
        """Raise UserError for arguments of the chat template that change nothing."""
        if kwargs and self._kind != "chat":
            raise UserError(f"{what} goes with data.template=chat, and that is {self._kind!r}: take it out.")
        if unused := [name for name in kwargs if name not in self._used_by_template]:
            names = sorted(name for name in self._used_by_template if not name.endswith("_token"))
            raise UserError(
                f"{what} names {', '.join(unused)}, which the chat template of {self._tokenizer.name_or_path} "
                f"does not use, so nothing would change. It uses: {', '.join(names) or 'none'}."
            )

    @cached_property
    def _used_by_template(self) -> frozenset[str]:
        """Names that the chat template reads, without those that are not a user's to set."""
        used: frozenset[str] = _get_template_variables(self._tokenizer.get_chat_template())
        return used - NOT_KWARGS

    def _with_system_prompt(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._system_prompt is not None:
            messages = [message for message in messages if message["role"] != "system"]
            if self._system_prompt:
                messages = [{"role": "system", "content": self._system_prompt}, *messages]
        return messages if self._turn.takes_system else _system_to_user(messages)


def strip_opening(prompt: str, demonstration: str) -> str:
    """The demonstration without the `<think>` that the rendered prompt already ends with.

    At most one is taken away; where the prompt does not open the response, the text stays as it is.
    """
    opening = opening_of(prompt)
    return demonstration.removeprefix(opening if demonstration.startswith(opening) else opening.rstrip())


def _bos_ids(config: DataConfig, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    name = tokenizer.name_or_path
    if not config.add_bos:
        return []
    if config.template == "chat":
        raise UserError(
            "data.add_bos=true goes with data.template=plain or a text; a chat template puts BOS itself."
        )
    if tokenizer.bos_token_id is None:
        raise UserError(f"data.add_bos is true, and the tokenizer {name} has no BOS token. Set it to false.")
    return [tokenizer.bos_token_id]


def _system_to_user(messages: Sequence[Message]) -> Sequence[Message]:
    """The system messages at the head of the first user message."""
    rules = [message["content"] for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    if not rules or not rest or rest[0]["role"] != "user":
        return messages
    return [{**rest[0], "content": "\n\n".join([*rules, rest[0]["content"]])}, *rest[1:]]


def _end_token_id(config: DataConfig, tokenizer: PreTrainedTokenizerFast, turn: Turn) -> int:
    name = tokenizer.name_or_path
    if config.end_token is None and turn.end_token_id is not None:
        return turn.end_token_id
    if config.end_token is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"The tokenizer {name} has no EOS token. Name the token that ends a response "
                "in data.end_token."
            )
        return tokenizer.eos_token_id
    token_id = tokenizer.get_vocab().get(config.end_token)
    if token_id is None:
        raise UserError(
            f"data.end_token {config.end_token!r} is no token of the tokenizer {name}. Name "
            "one single entry of its vocabulary, such as its EOS token."
        )
    return token_id
