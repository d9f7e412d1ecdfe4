"""Python files of a user whose parts a run may name: `run.plugins`.

A part is added by plain assignment to its table when the file is imported:

    from hpt_ray.algorithms import ALGORITHMS, Algorithm, Recipe, Term

    ALGORITHMS["raft"] = Algorithm(…)

The driver loads the files right after it has read the configuration. What it loaded stands in the environment
variable `HPT_RAY_PLUGINS`, which its actors are given and its child processes inherit: they call `load_inherited`
before anything else, and so know the same parts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hpt_ray.errors import UserError

VARIABLE = "HPT_RAY_PLUGINS"  # absolute paths, separated as in PATH


_loaded: list[str] = []  # in this process


def load(files: Sequence[str]) -> list[str]:
    """Import each file once per process. Returns their absolute paths, for whoever needs them elsewhere.

    Raises `UserError` for one that is not there or cannot be imported.
    """
    paths = [str(Path(file).absolute()) for file in files]
    for path in paths:
        if path not in _loaded:
            _import(Path(path))
            _loaded.append(path)
            os.environ.update(environment())
    return paths


def load_inherited() -> None:
    """Import what the process that started this one had loaded."""
    load([*filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))])


def environment() -> dict[str, str]:
    """What an actor must find in its environment to know the parts that this process knows."""
    return {VARIABLE: os.pathsep.join(_loaded)} if _loaded else {}


def _import(file: Path) -> None:
    if not file.is_file():
        raise UserError(
            f"run.plugins: {file} is not there. A relative path is relative to the working directory; on a cluster "
            "the file must lie on storage that every node has at this path, or in the job's working directory."
        )
    # The name is the same in every process, so that what the file defines can be pickled between them.
    name = f"hpt_ray_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"run.plugins: {file} is no Python file; its name must end with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = traceback.format_exception_only(error)[-1].strip()
        raise UserError(f"run.plugins: {file}{line_of(error, file)} cannot be imported: {reason}") from error


def line_of(error: BaseException, file: Path) -> str:
    """Where in the file it went wrong, as `:12`."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f":{error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
    ]
    return f":{lines[-1]}" if lines else ""
