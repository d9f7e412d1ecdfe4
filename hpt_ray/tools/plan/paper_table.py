"""The tables of docs/paper.md on what the paper's experiments cost, made from configs/paper.

`python -m hpt_ray.tools.plan.paper_table` writes them between the two marks of that page; with `--check` it writes
nothing and exits with code 1 where they are not up to date. A test does the same.
"""

from __future__ import annotations

import sys
from functools import cache

from hpt_ray.config.checks import check_config
from hpt_ray.config.docs import DOCS, write_or_check
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import Config
from hpt_ray.tools.plan.cost import Cost
from hpt_ray.tools.plan.make import Plan
from hpt_ray.tools.plan.show import two_digits
from hpt_ray.tools.plan.survey import plan_run

PAPER = DOCS.parent / "configs" / "paper"
PAGE = DOCS / "paper.md"
BEGIN = "<!-- made by `python -m hpt_ray.tools.plan.paper_table`; do not edit by hand -->\n"
END = "<!-- end -->"
MODELS = {
    "Qwen2.5-Math-7B": "qwen2.5-math-7b",
    "Qwen2.5-Math-1.5B": "qwen2.5-math-1.5b",
    "Llama-3.1-8B": "llama-3.1-8b",
}
METHODS = {
    "HPT": None,
    "SFT": "sft",
    "GRPO": "grpo",
    "Dr. GRPO": "dr_grpo",
    "SFT → GRPO": "sft_then_grpo",
    "LUFFY": "luffy",
    "SRFT": "srft",
}
PLACEMENTS = {
    "one node, in turns": "one_node",
    "one node, apart": "one_node_apart",
    "two nodes": "two_nodes",
    "four nodes": "four_nodes",
}
# 7B, 64k prompts, 8 GPUs (LUFFY's README) → the method that comes nearest.
PUBLISHED = {
    "SFT": (24 * 8, "sft"),
    "LUFFY": (77 * 8, "luffy"),
    "RL with an SFT loss": (133 * 8, "srft"),
    "SFT, then RL": (130 * 8, "sft_then_grpo"),
}


@cache
def load_recipe(model: str, method: str | None = None, placement: str | None = None) -> Config:
    """A recipe of configs/paper as its code runs it, with a file of `method` and of `placement` on top.

    Read once: it is for looking at, not for changing.
    """
    files = [PAPER / f"{model}_as_code.yaml"]
    files += [PAPER / "method" / f"{method}.yaml"] if method else []
    files += [PAPER / "placement" / f"{placement}.yaml"] if placement else []
    config = load_config(files, [])
    check_config(config)
    return config


@cache
def plan_of(model: str, method: str | None = None, placement: str | None = None) -> Plan:
    """Its plan, without data: lengths and numbers of prompts are assumed, so it is the same everywhere."""
    return plan_run(load_recipe(model, method, placement), None)


def render_tables() -> str:
    """The three tables."""
    hours = [
        [name, *(_hours(plan_of(model, method)) for model in MODELS.values())]
        for name, method in METHODS.items()
    ]
    places = [
        [name, *(_place(plan_of(model, placement=placement)) for model in MODELS.values())]
        for name, placement in PLACEMENTS.items()
    ]
    published = []
    for name, (number, method) in PUBLISHED.items():
        plan = plan_of(MODELS["Qwen2.5-Math-7B"], method)
        _, expected, _ = _costs(plan)
        published.append([name, f"{number:,}", _hours(plan), f"{number / expected.gpu_hours:.1f}"])
    return "\n".join(
        [
            "GPU hours of an A100 on one node of 8, expected (least to most):\n",
            _table(["method", *MODELS], hours),
            "HPT by placement: hours on how many GPUs, and the fullest moment of a learner's and of an engine's GPU:\n",
            _table(["placement", *MODELS], places),
            "GPU hours that LUFFY's authors report for 7B, beside the plan of the nearest method:\n",
            _table(["run", "published", "planned", "published / planned"], published),
        ]
    )


def _costs(plan: Plan) -> tuple[Cost, Cost, Cost]:
    assert plan.costs is not None, "all recipes name a known model and GPUs"
    return plan.costs


def _hours(plan: Plan) -> str:
    least, expected, most = (two_digits(cost.gpu_hours) for cost in _costs(plan))
    return f"{expected} ({least} to {most})"


def _place(plan: Plan) -> str:
    gib = {group.kind: group.memory.gib for group in plan.groups if group.memory is not None}
    hours = two_digits(_costs(plan)[1].wall / 3600)
    return f"{hours} h on {plan.num_gpus:g}; {gib['learner']:.0f} and {gib['rollout']:.0f} GiB"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def render_page() -> str:
    """docs/paper.md with the tables as they should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render_tables()}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(
        write_or_check(
            PAGE, render_page(), "python -m hpt_ray.tools.plan.paper_table", check="--check" in sys.argv[1:]
        )
    )
