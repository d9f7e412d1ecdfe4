"""`hpt_ray COMMAND …`, or `python -m hpt_ray COMMAND …`: one door to every command.

A command is a module with `main(words) -> exit code`. Its words are read before it is imported, and no other
command is.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

from hpt_ray import __version__
from hpt_ray.utils import signals
from hpt_ray.utils.arguments import READERS

COMMANDS = {
    "train": ("hpt_ray.main", "train a model"),
    "plan": ("hpt_ray.main", "check a configuration, its data and the room it needs; start nothing"),
    "evaluate": ("hpt_ray.cli.evaluate", "sample and grade benchmarks, or compare two results"),
    "grade": ("hpt_ray.cli.grade", "grade a file of responses, and show at which stage each was decided"),
    "explain": ("hpt_ray.cli.explain", "an algorithm's parts, formulas and a worked example"),
    "measure": ("hpt_ray.cli.measure", "bias, variance and signal-to-noise of methods' gradients"),
    "replay": ("hpt_ray.cli.replay", "compute a step again and compare its gradient"),
    "watch": ("hpt_ray.tools.watch.__main__", "a live page of runs: curves, the gate, rollouts"),
    "report": ("hpt_ray.tools.report.__main__", "a page about one run or several"),
    "suite": ("hpt_ray.tools.suite.__main__", "many methods, models and seeds, and one report"),
    "deploy": ("hpt_ray.tools.deploy.__main__", "Kubernetes manifests of a run"),
    "prepare": ("hpt_ray.data.prepare", "published data sets, or a model's responses, as prompt files"),
    "mini-base": ("hpt_ray.cli.mini_base", "build the small task's base models"),
}


def main(arguments: list[str] | None = None) -> int:
    if arguments is None:
        signals.watch()
    name, *words = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in COMMANDS:
        if name in READERS:
            READERS[name](words)
        before = ["--dry-run"] if name == "plan" else []
        return import_module(COMMANDS[name][0]).main([*before, *words])
    if name == "--version":
        print(f"hpt_ray {__version__}")
        return 0
    lines = [f"  {command:<10} {what}" for command, (_, what) in COMMANDS.items()]
    if name in ("-h", "--help"):
        head = ["usage: hpt_ray COMMAND …", "", *lines, ""]
        print(
            "\n".join([*head, "`hpt_ray COMMAND --help` says what a command takes, `--version` the version."])
        )
        return 0
    near = get_close_matches(name, COMMANDS, n=1)
    problem = f"no command `{name}`" if name else "a command is needed"
    hint = f" Did you mean `{near[0]}`?" if near else ""
    print("\n".join([f"error: {problem}.{hint}", *lines]), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
