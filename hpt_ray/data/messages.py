"""Values of a row, checked: prompts and demonstrations as texts or as chat messages.

Messages are `{role, content}`, or `{from, value}` with ShareGPT's names of the roles; OpenAI's `developer` is `system`.
A list of them may be written as text, and a content as a list of text parts. An assistant's last turn with OpenAI's
`weight: 0` is not to be trained on, so it is no demonstration. What is absent (null) is no error: it becomes an empty
list or None. Anything else raises UserError with file, row, column, what was found and what to do.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from hpt_ray.data.template import Message
from hpt_ray.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    "observation": "tool",
}
NOT_READ = {  # fields of a message → why a row with one is refused
    **dict.fromkeys(("tool_calls", "function_call"), "tool calls cannot be trained on"),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking"), "write it into the content, as in <think>…</think>"
    ),
}
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]""")


def wrong(where: str, column: str, found: Any, wanted: str) -> UserError:
    """The error for a value of the wrong type."""
    text = repr(found)
    text = text if len(text) <= 60 else text[:60] + "…"
    return UserError(
        f"{where}: `{column}` should be {wanted}, found {type(found).__name__} {text}. "
        "Correct this row, or the program that wrote it."
    )


def check_text(where: str, column: str, text: Any) -> str:
    """A text; an empty one for null."""
    if not isinstance(text, str | None):
        raise wrong(where, column, text, "a text")
    return text or ""


def check_prompt(where: str, column: str, prompt: Any) -> list[Message]:
    """The messages of a prompt; a text is the only user message."""
    if isinstance(prompt, str) and not _WRITTEN.match(prompt):
        return [{"role": "user", "content": prompt}]
    messages = check_messages(where, column, prompt)
    roles = [message["role"] for message in messages]
    if roles and roles[-1] != "user":
        raise wrong(where, column, roles[-1], "a conversation that ends with a user message")
    return messages


def check_demonstration(where: str, column: str, demonstration: Any) -> str | None:
    """The text of a demonstration: as it is, or of the one assistant message.

    `chosen` may be the whole conversation: its last turn is meant.
    """
    if demonstration is None or (isinstance(demonstration, str) and not _WRITTEN.match(demonstration)):
        return demonstration
    demonstration = _as_list(where, column, demonstration)
    messages = check_messages(where, column, demonstration)
    if column == "chosen":
        messages = messages[-1:]
    if [message["role"] for message in messages] not in ([], ["assistant"]):
        raise wrong(where, column, demonstration, "one single message of the assistant")
    return messages[0]["content"] if messages and not _has_no_weight(demonstration) else None


def split_conversation(where: str, column: str, turns: Any) -> tuple[list[Message], str | None]:
    """The messages before the last assistant turn, and that turn; None where another turn is the last."""
    turns = _as_list(where, column, turns)
    messages = check_messages(where, column, turns)
    demonstration = None
    if messages and messages[-1]["role"] == "assistant":
        last = messages.pop()["content"]
        demonstration = None if _has_no_weight(turns) else last
    if not any(message["role"] == "user" for message in messages):
        return [], demonstration  # nothing is asked: dropped as an empty prompt
    if messages[-1]["role"] not in ("user", "tool"):
        raise wrong(where, column, messages[-1]["role"], "turns of user and assistant, one after the other")
    return messages, demonstration


def _has_no_weight(messages: list[Any]) -> bool:
    """Whether the last message, of those that were checked, is not to be trained on."""
    return bool(messages[-1].get("weight") == 0)


def check_messages(where: str, column: str, messages: Any) -> list[Message]:
    return [_check_message(where, column, message) for message in _as_list(where, column, messages)]


def _as_list(where: str, column: str, messages: Any) -> list[Any]:
    """The messages as they are, out of a text too; none for null."""
    if messages is None:
        return []
    if isinstance(messages, str):
        messages = parsed(messages)
    if not isinstance(messages, list):
        no_list = "" if isinstance(messages, str) else "a text or "
        raise wrong(where, column, messages, f"{no_list}a list of messages {{role, content}}")
    return messages


def parsed(text: str) -> Any:
    """The value that a text is written from, in JSON or, as pandas writes CSV, in Python; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    return text


def _check_message(where: str, column: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise wrong(where, column, message, "a list of messages {role, content}")
    if message.get("role") is None and "from" in message:
        name, of_role, of_content = SHAREGPT_ROLES.get(str(message["from"]).lower()), "from", "value"
        known = tuple(SHAREGPT_ROLES)
    else:
        name, of_role, of_content = message.get("role"), "role", "content"
        name = "system" if name == "developer" else name
        known = ROLES
    if name not in ROLES:
        raise wrong(where, f"{column}.{of_role}", message.get(of_role), f"one of {', '.join(known)}")
    for field, instead in NOT_READ.items():
        if message.get(field):
            raise wrong(where, f"{column}.{field}", message[field], f"absent: {instead}")
    content = next((message[each] for each in (of_content, "content", "value") if each in message), message)
    return {"role": name, "content": _check_content(where, f"{column}.{of_content}", content)}


def _check_content(where: str, column: str, content: Any) -> str:
    """A text, or text parts as `[{"type": "text", "text": …}]`, one after the other."""
    if not isinstance(content, list):
        return check_text(where, column, content)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise wrong(
                where, column, part, "a text or text parts alone: images and the like cannot be trained on"
            )
    return "".join(part["text"] for part in content)
