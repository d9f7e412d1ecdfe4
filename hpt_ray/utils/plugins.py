"""Python files of a user whose parts a run may name: `run.plugins`, and `python:FILE:NAME` in the place of a name.

A file of `run.plugins` adds its parts by plain assignment to their tables:

    from hpt_ray.algorithms import ALGORITHMS, Algorithm, Recipe, Term

    ALGORITHMS["raft"] = Algorithm(…)

`algorithm.name=python:raft.py:RAFT` loads the file as `run.plugins=[raft.py]` does, and takes what stands in it under
that name. What a process loaded stands in the environment variable `HPT_RAY_PLUGINS`, which its actors are given and
its child processes inherit: they call `load_inherited` before anything else, and so know the same parts.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from hpt_ray.errors import UserError

VARIABLE = "HPT_RAY_PLUGINS"  # absolute paths, separated as in PATH
OUTSIDE = "python:"  # of a name that is looked up in a file
PREFIX = "hpt_ray_plugin_"  # of the modules' names

_loaded: list[str] = []  # in this process


def load(files: Sequence[str], *, key: str = "run.plugins") -> list[str]:
    """Import each file once per process. Returns their absolute paths, for whoever needs them elsewhere.

    Raises `UserError` for one that is not there or cannot be imported; `key` is what named it.
    """
    paths = [str(Path(file).absolute()) for file in files]
    for path in paths:
        if path not in _loaded:
            try:
                _import(Path(path))
            except UserError as error:
                raise UserError(f"{key}: {error}") from error
            _loaded.append(path)
            os.environ.update(environment())
    return paths


def load_inherited() -> None:
    """Import what the process that started this one had loaded."""
    load([*filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))])


def environment() -> dict[str, str]:
    """What an actor must find in its environment to know the parts that this process knows."""
    return {VARIABLE: os.pathsep.join(_loaded)} if _loaded else {}


def fingerprint(file: Path) -> str:
    """Changes with the text of a user's file, and of the modules beside it that it imports. Nothing is run."""
    files = [file]
    for found in files:  # it grows on the way
        names: list[str] = []
        with suppress(SyntaxError, ValueError):  # whoever runs it will say so
            for node in ast.walk(ast.parse(found.read_bytes())):
                if isinstance(node, ast.Import):
                    names += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    parts = [*filter(None, [node.module])]
                    names += [*parts, *(".".join([*parts, alias.name]) for alias in node.names)]
        beside = (file.parent / f"{name.replace('.', '/')}.py" for name in names)
        files += [path for path in dict.fromkeys(beside) if path.is_file() and path not in files]
    return hashlib.sha256(b"\0".join(found.read_bytes() for found in files)).hexdigest()[:16]


# ---- python:FILE:NAME ---------------------------------------------------------------------------------


def is_outside(name: object) -> bool:
    return isinstance(name, str) and name.startswith(OUTSIDE)


def split(spec: str) -> tuple[str, str]:
    """`python:my.py:RAFT` → my.py and RAFT. Raises `UserError`."""
    file, _, name = spec.removeprefix(OUTSIDE).rpartition(":")
    if not file or not name.isidentifier():
        raise UserError(f"{spec}: write it as python:FILE:NAME, such as python:my.py:RAFT.")
    return file, name


def absolute(value: Any) -> Any:
    """The same with absolute paths in every `python:FILE:NAME`, also inside lists and dicts.

    A configuration that is kept must hold wherever it is read again.
    """
    if isinstance(value, dict):
        return {name: absolute(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [absolute(inner) for inner in value]
    file, _, name = str(value).removeprefix(OUTSIDE).rpartition(":")
    if not is_outside(value) or not file:
        return value
    return f"{OUTSIDE}{Path(file).absolute()}:{name}"


def module_of(spec: str) -> ModuleType:
    """The module of the file that `python:FILE:NAME` names, imported once. Raises `UserError`."""
    file, _ = split(spec)
    (path,) = load([file], key=spec)
    return sys.modules[_module_name(Path(path))]


@contextmanager
def blaming(module: ModuleType, what: str) -> Iterator[None]:
    """What the user's code raises inside becomes a `UserError` that names the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        file = Path(str(module.__file__))
        raise UserError(f"{what}: {file}{line_of(error, file)}: {_reason(error)}") from error


# ---- importing ----------------------------------------------------------------------------------------


def _module_name(file: Path) -> str:
    """The same in every process, so that what the file defines can be pickled between them."""
    return f"{PREFIX}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _import(file: Path) -> None:
    if not file.is_file():
        raise UserError(
            f"{file} is not there. A relative path is relative to the working directory; on a cluster "
            "the file must lie on storage that every node has at this path, or in the job's working directory."
        )
    name = _module_name(file)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is no Python file; its name must end with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # it may import what lies beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{file}{line_of(error, file)} cannot be imported: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def line_of(error: BaseException, file: Path) -> str:
    """Where in the file it went wrong, as `:12`."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f":{error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
    ]
    return f":{lines[-1]}" if lines else ""
