"""How a user's reward function is called: which of these signatures it has, and what fills its parameters.

    ours      (response, ground_truth)                                also by position, whatever their names
    verl      (data_source, solution_str, ground_truth, extra_info)   known by `solution_str`
              (data_sources, solution_strs, …), lists of one          known by `solution_strs`
    TRL       (prompts, completions, …)                               known by `completions`
    OpenRLHF  (queries, prompts, labels), lists of one                known by `queries`: prompt and response

Every other parameter is filled from the row of the data by its name: `prompt`, `data_source`, `extra_info` or a
column; `answer`, `solution` and `label` are the ground truth where there is no such column. One that nothing fills and
that has no default is an error which names it. In TRL's form every value is a list, here of one response; where the
prompt is a list of messages the completion is one too. The query of such a prompt has the texts of its messages.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable
from typing import Any

from hpt_ray.reward.functions.row import Row

VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
GROUND_TRUTH_TOO = ("answer", "solution", "label")
NOT_BY_POSITION = ("ground_truth", "prompt", "data_source", "extra_info")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


class Call:
    """One call of a function: its arguments, in the form that the function asks for.

    Raises LookupError for a parameter that nothing fills.
    """

    def __init__(self, function: Callable[..., Any], response: str, ground_truth: Any, row: Row):
        self._function = function
        signature = _signature(function)
        parameters = signature.parameters.values()
        preset = getattr(function, "keywords", {})  # of a functools.partial
        named = {
            p.name: p
            for p in parameters
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in preset
        }
        values, others = _values(named, response, ground_truth, row)
        for name, parameter in named.items():
            if name in values or parameter.default is not parameter.empty:
                continue
            if name in GROUND_TRUTH_TOO:
                values[name] = values["ground_truth"]
            else:
                raise LookupError(
                    f"nothing fills its parameter `{name}`: the data has no such column; there are "
                    f"{', '.join(sorted(values))}"
                )
        given = {name: values[name] for name in named if name in values}
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                given[parameter.name] = {n: values[n] for n in others if n not in named and n not in preset}
        self._bound = inspect.BoundArguments(signature, given)  # type: ignore[arg-type]

    def __call__(self) -> Any:
        return self._function(*self._bound.args, **self._bound.kwargs)

    def __str__(self) -> str:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        arguments = [f"{key}={_short.repr(value)}" for key, value in self._bound.arguments.items()]
        return f"{name}({', '.join(arguments)})"


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """By position where the function does not say what it takes: one in C, or a decorator's (*args, **kwargs)."""
    by_position = inspect.signature(lambda response, ground_truth, /: None)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return by_position
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    says_nothing = inspect.Parameter.VAR_POSITIONAL in kinds and kinds <= {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    return by_position if says_nothing else signature


def _values(
    named: dict[str, inspect.Parameter], response: str, ground_truth: Any, row: Row
) -> tuple[dict[str, Any], list[str]]:
    """All that can be asked for, by name, and which of it goes into `**kwargs`."""
    values = {
        **row.extra,
        "ground_truth": ground_truth,
        "prompt": row.prompt,
        "data_source": row.data_source,
        "extra_info": dict(row.extra),
    }
    lists = {name: [value] for name, value in values.items()}
    if "completions" in named:
        completion = response if isinstance(row.prompt, str) else [{"role": "assistant", "content": response}]
        lists |= {"prompts": [row.prompt], "completions": [completion]}
        return lists, list(lists)
    if "queries" in named:
        texts = [row.prompt] if isinstance(row.prompt, str) else [each["content"] for each in row.prompt]
        query = "\n".join(texts) + response
        return lists | {"queries": [query], "prompts": [row.prompt], "labels": [ground_truth]}, []
    if "solution_strs" in named:
        return lists | {f"{name}s": lists.get(name, [response]) for name in VERL}, []
    if "solution_str" in named:
        defaults = {name for name, p in named.items() if p.default is not p.empty} - set(VERL)
        values = {name: value for name, value in values.items() if name not in defaults}
        return values | {"solution_str": response}, list(VERL)
    values["response"] = response
    places = [n for n, p in named.items() if p.kind is not p.KEYWORD_ONLY and n not in NOT_BY_POSITION]
    if "response" not in named:
        if not places and named:
            raise LookupError("it has no parameter for the response")
        values |= dict.fromkeys(places[:1], response)
    if "ground_truth" not in named:
        rest = (n for n in places if n not in values and named[n].default is inspect.Parameter.empty)
        values |= dict.fromkeys(list(rest)[:1], ground_truth)
    return values, list(values)
