"""The tables of algorithms, gates and parts: a name of ours, or `python:FILE:NAME` out of a file of a user.

What stands in the file under NAME is a record, a function without parameters that returns one, or, for a gate or a
part, the bare function. It is looked up wherever the table is asked for it, in every process: an estimator that
travels holds names only.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from hpt_ray.errors import UserError
from hpt_ray.utils import plugins
from hpt_ray.utils.names import check_name

Record = TypeVar("Record")


class Table(dict[str, Record], Generic[Record]):
    """Name → record, with those of users' files looked up as they are asked for.

    `parameters` are those of a record's function, "" where a record has none, and `made_of` makes a record of such a
    function and what it does in words.
    """

    def __init__(
        self,
        kind: type[Record],
        rows: dict[str, Record],
        parameters: str = "",
        made_of: Callable[[Callable, str], Record] | None = None,
    ):
        super().__init__(rows)
        self._kind, self._parameters, self._made_of = kind, parameters, made_of
        self._outside: dict[str, Record] = {}

    def __missing__(self, name: str) -> Record:
        if not plugins.is_outside(name):
            raise KeyError(name)
        if name not in self._outside:
            self._outside[name] = self._look_up(name)
        return self._outside[name]

    def checked(self, key: str, name: str, *others: str) -> str:
        """`name` if there is such a record or it is one of `others`, else a `UserError` that names the `key`."""
        if not plugins.is_outside(name):
            return check_name(key, name, [*others, *self])
        try:
            self[name]
        except UserError as error:
            raise UserError(f"{key}={error}") from error
        return name

    def _look_up(self, spec: str) -> Record:
        module, (file, name) = plugins.module_of(spec), plugins.split(spec)
        found: Any = vars(module).get(name)
        if name not in vars(module):
            there = [other for other, value in vars(module).items() if self._fits(value, module.__name__)]
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"{spec}: {file} has no {name}. {hint}It has: {', '.join(there) or 'none'}.")
        if _is_function(found) and not inspect.signature(found).parameters:
            with plugins.blaming(module, spec):
                found = found()
        elif self._made_of and _is_function(found):
            self._check_parameters(spec, found)
            found = self._made_of(found, (inspect.getdoc(found) or f"{name} of {file}").splitlines()[0])
        if not isinstance(found, self._kind):
            raise UserError(f"{spec}: this is {_a(type(found))}, but must be {self._wanted()}.")
        return found

    def _fits(self, value: Any, module: str) -> bool:
        own_function = _is_function(value) and getattr(value, "__module__", module) == module
        return isinstance(value, self._kind) or own_function

    def _check_parameters(self, spec: str, function: Callable) -> None:
        try:
            inspect.signature(function).bind(*self._parameters.split(", "))
        except TypeError as error:
            raise UserError(
                f"{spec}: the function takes {inspect.signature(function)}, but must be {self._wanted()}."
            ) from error

    def _wanted(self) -> str:
        record = f"{_a(self._kind)} of hpt_ray.algorithms, or a function without parameters that returns one"
        return f"{record}, or the function itself, of ({self._parameters})" if self._made_of else record


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOaeio' else 'a'} {kind.__name__}"
