"""The command that started this process, as a person would type it again."""

from __future__ import annotations

import shlex
import shutil
import sys


def this_command(**keys: str) -> str:
    """Quoted for a shell, with `key=value` for each of `keys` in place of what it had.

    Example: `this_command(resume="runs/a")` is `python -m hpt_ray.main --config a.yaml resume=runs/a`.
    """
    words = sys.argv[1:]
    for key, value in keys.items():
        words = [*(word for word in words if not word.startswith(f"{key}=")), f"{key}={value}"]
    return shlex.join([*_start(), *words])


def _start() -> list[str]:
    """The interpreter and its module, or the script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        interpreter = (
            sys.orig_argv[: sys.orig_argv.index("-m")] if "-m" in sys.orig_argv else sys.orig_argv[:1]
        )
        return [*interpreter, "-m", spec.name.removesuffix(".__main__")]
    script = sys.argv[0]
    name = script.rpartition("/")[2]
    return [name if shutil.which(name) == script else script]
