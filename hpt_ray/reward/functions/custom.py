"""Reward functions of the user: `python:FILE:FUNCTION` or `python:MODULE:FUNCTION`.

The function is whatever can be called and stands at the top of the file: a function, async or not, decorated or not, a
lambda, a functools.partial, an object with `__call__`. How it is called says `call.py`, what it may return
`returned.py`. What it raises becomes the outcome `error`, with the line of the file and the arguments. The file is
loaded once a process; modules beside it can be imported. Async functions of one process share one event loop, so a
client that is made once can be used by every call.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import symtable
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from hpt_ray.reward.functions.call import Call
from hpt_ray.reward.functions.returned import to_result
from hpt_ray.reward.functions.row import NO_ROW, Row
from hpt_ray.types import RewardResult
from hpt_ray.utils.plugins import fingerprint, line_of


def check_python(argument: str) -> None:
    """Reads the file without running it."""
    source, _, function = argument.rpartition(":")
    if not source or not function:
        raise ValueError("a file and a function are needed")
    path = _file_of(source)
    try:
        text = path.read_text(encoding="utf-8-sig")  # as Python reads it
        names = symtable.symtable(text, str(path), "exec").get_symbols()
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno} cannot be read as Python ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as Python ({error})") from error
    there = {name.get_name() for name in names if name.is_assigned() or name.is_imported()}
    if function not in there and "import *" not in text:
        own = sorted(name.get_name() for name in names if name.is_namespace())
        raise ValueError(f"{path} has no function {function} (it has: {', '.join(own) or 'none'})")


def make_python(argument: str) -> Callable[..., RewardResult]:
    source, _, name = argument.rpartition(":")
    path = _file_of(source)
    with _located(path):
        function = getattr(_load(source, path), name)
    if inspect.isclass(function):
        raise TypeError(f"{name} is a class: say `grade = {name}()` in the file, and name `grade`")
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, which cannot be called")
    runner = asyncio.Runner()

    def grade(response: str, ground_truth: Any, row: Row = NO_ROW) -> RewardResult:
        call = Call(function, response, ground_truth, row)
        with _located(path, f"in {call}"):
            returned = call()
            return to_result(runner.run(_wait(returned)) if inspect.isawaitable(returned) else returned)

    return grade


def version(argument: str) -> str:
    """Changes when the function may: with its file, and what that imports from beside it."""
    return fingerprint(_file_of(argument.rpartition(":")[0]))


async def _wait(returned: Any) -> Any:
    return await returned


@contextmanager
def _located(path: Path, *notes: str) -> Iterator[None]:
    """What is raised inside gets notes: the line of the user's file, and those given."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if line := line_of(error, path):
            error.add_note(f"{path.name}{line}")
        for note in notes:
            error.add_note(note)
        raise


def _file_of(source: str) -> Path:
    """The file, or that of a dotted module which can be imported from the working directory. Raises ValueError."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.resolve()
    if path.suffix == ".py" or len(path.parts) > 1:
        raise ValueError(f"there is no file {path.resolve()}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(source)
    except Exception as error:  # finding a module imports the package that it is in
        raise ValueError(f"the module {source} cannot be found ({type(error).__name__}: {error})") from error
    finally:
        sys.path.pop(0)
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no file {path.resolve()}, and no module {source}")
    return Path(spec.origin)


def _load(source: str, path: Path) -> ModuleType:
    if not Path(source).expanduser().is_file():
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(source)
    sys.path.insert(0, str(path.parent))
    name = f"hpt_ray_reward_{path.stem}"  # a file may be called math.py
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # `check_python` has read the file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
