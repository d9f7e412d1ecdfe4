"""How a user's reward function is called: which of these signatures it has, and what fills its parameters.

    ours      (response, ground_truth)                                also by position, whatever their names
    verl      (data_source, solution_str, ground_truth, extra_info)   known by `solution_str`
              (data_sources, solution_strs, …), lists of one          known by `solution_strs`
    TRL       (prompts, completions, …)                               known by `completions`
    OpenRLHF  (queries, prompts, labels), lists of one                known by `queries`: prompt and response

Every other parameter is filled from the row of the data by its name: `prompt`, `data_source`, `extra_info` or a
column; names of `GROUND_TRUTH_TOO` are the ground truth and those of `PROMPT_TOO` the prompt where there is no such
column. One that nothing fills and that has no default is an error which names it. In TRL's form every value is a list,
here of one response; where the prompt is a list of messages the completion is one too. The query of such a prompt has
the texts of its messages.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable
from typing import Any

from hpt_ray.reward.functions.row import Row

VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
GROUND_TRUTH_TOO = (
    *("answer", "solution", "label", "target", "reference", "expected", "gold", "gt", "y_true"),
    *("reference_answer", "expected_answer"),
)
PROMPT_TOO = ("question", "problem", "query", "instruction")
# What is called so is the response wherever it stands; else the first that is called like nothing else.
RESPONSE_TOO = (
    *("completion", "prediction", "pred", "output", "generation", "candidate", "y_pred"),
    *("generated_text", "model_output"),
)
MANY = re.compile("(response|prediction|predict|output|generation|candidate|answer|solution|text)s")
NO_RESPONSE = "it has no parameter for the response: call one `response`"
NOT_BY_POSITION = ("ground_truth", "prompt", "data_source", "extra_info", *PROMPT_TOO)

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
        if not parameters:
            raise LookupError(NO_RESPONSE)
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
    others = list(values)
    values |= {name: row.prompt for name in PROMPT_TOO if name in named and name not in values}
    places = [n for n, p in named.items() if p.kind is not p.KEYWORD_ONLY and n not in NOT_BY_POSITION]
    taken = "response"
    if taken not in named and named:
        taken = _response_of(places, values, asks_prompt=any(name in named for name in PROMPT_TOO))
        values[taken] = response
    if not any(name in named and name != taken for name in ("ground_truth", *GROUND_TRUTH_TOO)):
        after = places[places.index(taken) + 1 :] if taken in places else places
        rest = (n for n in after if n not in values and named[n].default is inspect.Parameter.empty)
        values |= dict.fromkeys(list(rest)[:1], ground_truth)
    return values, others


def _response_of(places: list[str], values: dict[str, Any], *, asks_prompt: bool) -> str:
    """Which of the parameters `places` is the response. Raises LookupError where that is not clear."""
    free = [name for name in places if name not in values]
    clear = [name for name in free if name in RESPONSE_TOO]
    clear += [name for names in (free, places) for name in names if name not in GROUND_TRUTH_TOO]
    if not clear and (not places or (asks_prompt and len(places) == 1)):
        raise LookupError(NO_RESPONSE)
    found = [*clear, *places][0]
    if MANY.fullmatch(found):
        raise LookupError(
            f"its parameter `{found}` seems to be a list, and a call is about one response: call it `response`"
        )
    return found
