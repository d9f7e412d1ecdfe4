"""What each command is called and which words it takes: `READERS[name](words)` gives the options.

Nothing here is slow to import, so `--help` and a mistyped option are answered at once. A reader ends the process as
argparse does: exit code 0 after `--help`, 2 where the words are wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# Of types.Outcome, slow to import.
OUTCOMES = ("correct", "wrong", "no_answer", "unparsable", "timeout", "error")
Words = Sequence[str] | None  # None: those of the process


class Parser(argparse.ArgumentParser):
    """Shows texts as they are written, and knows how a key is given."""

    def __init__(self, command: str, description: str, epilog: str = ""):
        super().__init__(
            prog=f"hpt_ray {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_config(self, default: str) -> None:
        help = f"a YAML file; of several, later ones win; default: {default}"
        self.add_argument("--config", action="append", metavar="FILE", help=help)

    def add_keys(self, help: str = "keys to replace") -> None:
        self.add_argument("overrides", nargs="*", metavar="key=value", help=help)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: -"):
            from hpt_ray.config.load import hint_for_option  # slow to import

            message += "\n" + hint_for_option(message.split()[2])
        super().error(message)


class ShowKeys(argparse.Action):
    """Prints keys with their defaults and what they mean, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *found: Any) -> None:
        from hpt_ray.config.docs import list_keys  # slow to import
        from hpt_ray.errors import UserError

        try:
            print(list_keys(found[1]))
        except UserError as error:
            parser.error(str(error))
        parser.exit()


def train(words: Words, *, command: str = "train") -> argparse.Namespace:
    what = "Check everything, print the plan and stop." if command == "plan" else "Train a model."
    parser = Parser(
        command,
        what,
        f"""examples:
  hpt_ray {command}                                       the small task, on any machine
  hpt_ray {command} --config my_run.yaml run.steps=200 learner.learning_rate=1e-6
  hpt_ray {command} --config configs/algorithm/grpo.yaml --config my_run.yaml

Keys are also in docs/configuration.md. What an algorithm computes: hpt_ray explain.""",
    )
    parser.add_config("configs/quickstart.yaml, or with model.path=… the defaults of every key")
    help = "print the keys of a section such as `learner`, or all, with defaults and meanings, and stop"
    parser.add_argument("--keys", nargs="?", metavar="SECTION", action=ShowKeys, help=help)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan and stop")
    help = "show the best layouts on N cards of so many GiB (24, 48, 80, 141), as in 8x80, and stop"
    parser.add_argument("--cards", metavar="NxGIB", help=help)
    parser.add_keys()
    return parser.parse_intermixed_args(words)


def plan(words: Words) -> argparse.Namespace:
    return train(words, command="plan")


def evaluate(words: Words) -> argparse.Namespace:
    """`a`, `b` and `json` of `compare`; the options of an evaluation otherwise."""
    if words and words[0] == "compare":
        parser = Parser("evaluate compare", "Compare two results on the prompts both have.")
        parser.add_argument("a", type=Path, metavar="A", help="folder of a result, or its prompts.parquet")
        parser.add_argument("b", type=Path, metavar="B", help="the same")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison to this file too")
        return parser.parse_args(words[1:])
    parser = Parser(
        "evaluate",
        "Evaluate a model on benchmarks. `hpt_ray evaluate compare A B` compares two results.",
        """examples:
  hpt_ray evaluate model=runs/latest benchmarks=[math500] samples=4
  hpt_ray evaluate compare evaluations/A evaluations/B

Keys and benchmarks: docs/evaluation.md.""",
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file of keys")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan and stop")
    parser.add_keys("keys to set")
    return parser.parse_intermixed_args(words)


def measure(words: Words) -> argparse.Namespace:
    parser = Parser(
        "measure",
        "Measure bias, variance and signal-to-noise of methods' gradients against the true policy gradient.",
        """examples:
  hpt_ray measure --model mini:t --prompts 64
  hpt_ray measure --model runs/latest --method grpo --method hpt,gate=posterior,gamma=0.125
  hpt_ray measure --model mini:t --parts grpo

How to read it: docs/meter.md.""",
    )
    parser.add_config("the run's own where --model is one, else configs/quickstart.yaml")
    help = "a run, checkpoint or model folder; repeated: stages, joined by a path; default: model.path"
    parser.add_argument("--model", action="append", default=[], metavar="M", help=help)
    help = "sample the measured rollouts from this model instead, as a policy that has become stale"
    parser.add_argument("--sampler", metavar="M", help=help)
    help = "NAME[,KEY=VALUE…]: an algorithm with keys of `algorithm`, gate or gamma; may be repeated; default: all"
    parser.add_argument("--method", action="append", default=[], metavar="NAME", help=help)
    parser.add_argument("--parts", metavar="NAME", help="this algorithm, and each of its parts switched")
    sizes = {
        "prompts": (512, "prompts, drawn at random"),
        "draws": (1, "groups of rollouts a prompt"),
        "reference": (128, "further rollouts a prompt, for the true gradient"),
        "dimensions": (16384, "numbers of a projected gradient"),
        "workers": (0, "processes, each on the cores and GPUs of a learner rank; 0: this one alone"),
    }
    for name, (default, what) in sizes.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{what}; default: {default}"
        )
    parser.add_argument("--out", type=Path, default=Path("measure"), metavar="DIR", help="default: measure/")
    parser.add_keys()
    return parser.parse_intermixed_args(words)


def explain(words: Words) -> argparse.Namespace:
    parser = Parser(
        "explain",
        "Explain the algorithm of a configuration: parts, formulas and a worked example.",
        "example:\n  hpt_ray explain algorithm.name=gspo",
    )
    parser.add_config("configs/quickstart.yaml")
    parser.add_argument(
        "--all", action="store_true", help="print the tables of what may be named: algorithms, gates, …"
    )
    parser.add_keys()
    return parser.parse_intermixed_args(words)


def replay(words: Words) -> argparse.Namespace:
    parser = Parser(
        "replay",
        "Compute a step of a run again and compare its gradient. See docs/resume.md.",
        "example:\n  hpt_ray replay runs/latest step=12",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("words", nargs="+", metavar="key=value", help="step=K, tolerance=T, keys to replace")
    return parser.parse_intermixed_args(words)


def report(words: Words) -> argparse.Namespace:
    parser = Parser(
        "report", "A page about one run, or a comparison of several.", "How to read it: docs/report.md."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or an evaluation of one"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to write to (default: report/ in the run, of several beside the first)",
    )
    return parser.parse_args(words)


def watch(words: Words) -> argparse.Namespace:
    parser = Parser(
        "watch",
        "A page that shows runs while they train: curves, the gate, rollouts. Only this machine can open it.",
        """examples:
  hpt_ray watch                           the runs in runs/
  hpt_ray watch runs/latest

How to read it: docs/watch.md.""",
    )
    help = "a run folder, or a folder of runs; default: runs"
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], metavar="RUN", help=help)
    parser.add_argument(
        "--port", type=int, default=8420, metavar="N", help="default: 8420; 0: any that is free"
    )
    return parser.parse_args(words)


def suite(words: Words) -> argparse.Namespace:
    parser = Parser(
        "suite", "Carry a suite of runs out and write one report.", "Keys of a suite: docs/reproduce.md."
    )
    parser.add_argument("suite", help="a suite file, such as configs/mini/small.yaml")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="runs by name, as in 't.hpt.*'; may be repeated",
    )
    help = "check everything, show what is missing, and its GPU hours, cost and wall time, and stop"
    parser.add_argument("--dry-run", "--plan", action="store_true", help=help)
    help = (
        "try each row for two steps with a tiny model on a CPU, in OUT/pilot; with --dry-run: only check each"
    )
    parser.add_argument("--pilot", action="store_true", help=help)
    parser.add_argument("--report", action="store_true", help="start nothing; report about what is there")
    parser.add_argument(
        "--jobs", choices=("local", "ray"), default="local", help="processes here, or Ray jobs"
    )
    parser.add_argument("--address", help="with --jobs ray: http://HOST:8265 of the cluster's dashboard")
    parser.add_argument("--working-dir", help="with --jobs ray: folder sent to the cluster with each job")
    parser.add_keys("keys of the suite to replace")
    return parser.parse_intermixed_args(words)


def grade(words: Words) -> argparse.Namespace:
    parser = Parser(
        "grade",
        "Grade a file of responses and show what was read as the answer, what was decided, and at which stage.",
        """examples:
  hpt_ray grade runs/latest/rollouts/step-000010.parquet --only wrong
  hpt_ray grade responses.jsonl --reward-function gsm8k --ground-truth answer

The stages of `math`: docs/grading.md. Other reward functions: docs/reward.md.""",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="parquet or JSON lines, one response a row")
    parser.add_argument("--reward-function", default="math", metavar="NAME", help="default: math")
    parser.add_argument("--response", metavar="COLUMN", help="default: response, text, completion or output")
    parser.add_argument(
        "--ground-truth",
        metavar="COLUMN",
        help="default: ground_truth, reward_model.ground_truth, reference or answer",
    )
    parser.add_argument("--only", choices=OUTCOMES, help="rows to show")
    parser.add_argument("--rows", type=int, default=50, metavar="N", help="how many to show; default: 50")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="for one response; default: 10"
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="a file of `run.plugins`; may be repeated",
    )
    return parser.parse_args(words)


def mini_base(words: Words) -> argparse.Namespace:
    parser = Parser(
        "mini-base",
        "Build the small task's base models, which are kept in the cache.",
        "example:\n  hpt_ray mini-base mini:t mini:xs",
    )
    parser.add_argument("models", nargs="+", metavar="mini:SIZE", help="mini:SIZE or mini:SIZE-llama")
    return parser.parse_args(words)


# The other commands read their words in modules that are quick to import themselves.
READERS: dict[str, Callable[[Words], argparse.Namespace]] = {
    "train": train,
    "plan": plan,
    "evaluate": evaluate,
    "explain": explain,
    "grade": grade,
    "measure": measure,
    "replay": replay,
    "report": report,
    "watch": watch,
    "suite": suite,
    "mini-base": mini_base,
}
