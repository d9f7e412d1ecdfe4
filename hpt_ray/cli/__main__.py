"""`hpt_ray COMMAND …`, the same as `python -m MODULE …`: one door to every command.

A command is a module with `main(arguments) -> exit code`; it is imported when it is called, and no other is.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

COMMANDS = {
    "train": ("hpt_ray.main", "train a model, or plan it with --dry-run"),
    "evaluate": ("hpt_ray.cli.evaluate", "sample and grade benchmarks, or compare two results"),
    "explain": ("hpt_ray.cli.explain", "an algorithm's parts, formulas and a worked example"),
    "replay": ("hpt_ray.cli.replay", "compute a step again and compare its gradient"),
    "report": ("hpt_ray.tools.report.__main__", "a page about one run or several"),
    "suite": ("hpt_ray.tools.suite.__main__", "many methods, models and seeds, and one report"),
    "deploy": ("hpt_ray.tools.deploy.__main__", "Kubernetes manifests, and checks of an installation"),
    "prepare": ("hpt_ray.data.prepare", "published data sets as prompt files"),
    "mini-base": ("hpt_ray.cli.mini_base", "build the small task's base models"),
}


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in COMMANDS:
        return import_module(COMMANDS[words[0]][0]).main(words[1:])
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    if words[:1] in (["-h"], ["--help"]):
        print("\n".join(["usage: hpt_ray COMMAND …", "", *lines]))
        return 0
    near = get_close_matches(words[0], COMMANDS, n=1) if words else []
    problem = f"no command `{words[0]}`" if words else "a command is needed"
    hint = f" Did you mean `{near[0]}`?" if near else ""
    print("\n".join([f"error: {problem}.{hint}", *lines]), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
