r"""The table of benchmarks: one row each, with its prompt, its reward function, samples per prompt and protocol.

A row says where `python -m hpt_ray.data.prepare` puts its prompts, how they are put to a model, and how
they are sampled and graded. Its metric is mean@samples (avg@k in the paper), and pass@k where there is
more than one sample. Names of groups stand for all rows of the group, e.g. `math` for the six benchmarks of
the paper's average. No prompt is stored here: some publishers ask not to spread theirs in plain text.

`PAPER` is the protocol of the HPT paper (arXiv 2509.04419, section 3.1). What is not known about it, such
as which AMC file was used, is said in docs/evaluation.md; `published` names the sizes of known files.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from hpt_ray.data.mini import FAMILIES, OOD_FAMILIES
from hpt_ray.errors import UserError

CHOICES = r"""{prompt}

{choices}

Answer with the letter of the right choice, as in \boxed{{A}}."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How responses are sampled."""

    temperature: float
    top_p: float
    max_response_tokens: int


PAPER = Protocol(temperature=0.6, top_p=0.95, max_response_tokens=8192)
SMALL = Protocol(temperature=0.0, top_p=1.0, max_response_tokens=64)  # one greedy response to the small task


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark. Example: `BENCHMARKS["aime24"].samples == 32`."""

    name: str
    title: str
    group: str = ""
    samples: int = 1
    protocol: Protocol = PAPER
    reward_function: str | None = None  # None: the reward function of training, `reward.function`
    prompt: str = "{prompt}"  # the user's message, made when the prompts are prepared
    level: str = "level"  # the field of `extra_info` that says how difficult a prompt is
    file: str = ""  # within `data_dir`, or `mini:…`; default NAME.parquet
    published: dict[int, str] = field(default_factory=dict)  # number of prompts → which file that is
    globs: tuple[str, ...] = ()  # names of the published file within a folder of them

    @property
    def path(self) -> str:
        return self.file or f"{self.name}.parquet"


def _mini(split: str, name: str) -> list[Benchmark]:
    return [
        Benchmark(
            name=f"{name}-{family}",
            title=f"small task, {family}",
            group=f"{name}-ood" if family in OOD_FAMILIES else name,
            protocol=SMALL,
            level="operations",
            file=f"mini:{split}/{family}",
        )
        for family in FAMILIES
    ]


ROWS = [
    Benchmark(
        name="aime24",
        title="AIME 2024",
        group="math",
        samples=32,
        published={30: "parts I and II"},
        globs=("AIME24.*", "*aime*24*"),
    ),
    Benchmark(
        name="aime25",
        title="AIME 2025",
        group="math",
        samples=32,
        published={30: "parts I and II"},
        globs=("AIME25.*", "*aime*25*"),
    ),
    Benchmark(
        name="amc",
        title="AMC",
        group="math",
        samples=32,
        published={40: "AMC 2023, as in the HPT repository", 83: "AMC12 2022 and 2023, as in LUFFY's file"},
        globs=("AMC23.*", "*amc*"),
    ),
    Benchmark(
        name="math500",
        title="MATH-500",
        group="math",
        published={500: "the 500 test problems of the PRM800K split"},
        globs=("MATH-500.*", "test.jsonl"),
    ),
    Benchmark(
        name="minerva",
        title="Minerva",
        group="math",
        published={272: "undergraduate science with final answers"},
        globs=("*minerva*",),
    ),
    Benchmark(
        name="olympiad",
        title="OlympiadBench",
        group="math",
        published={674: "as in the HPT repository", 675: "as in LUFFY's file; the paper's scores fit it"},
        globs=("Olympiad-Bench.*", "*olympiad*", "*OE_TO_maths_en_COMP*"),
    ),
    Benchmark(
        name="arc-c",
        title="ARC-c",
        group="ood",
        reward_function="choice",
        prompt=CHOICES,
        published={1172: "the test split of ARC-Challenge"},
        globs=("*ARC-Challenge*test*", "ARC-Challenge/*test*"),
    ),
    Benchmark(
        name="gpqa-diamond",
        title="GPQA-Diamond",
        group="ood",
        reward_function="choice",
        prompt=CHOICES,
        published={198: "the diamond subset"},
        globs=("*gpqa_diamond*",),
    ),
    Benchmark(
        name="gsm8k",
        title="GSM8K",
        group="gsm8k",
        file="gsm8k/test.parquet",
        published={1319: "the test split"},
    ),
    *_mini("validation", "mini"),
    *_mini("test", "mini-test"),
]

BENCHMARKS: dict[str, Benchmark] = {row.name: row for row in ROWS}
GROUPS: dict[str, list[str]] = {
    group: [row.name for row in ROWS if row.group == group]
    for group in dict.fromkeys(row.group for row in ROWS)
    if group not in BENCHMARKS
}


def expand(names: list[str]) -> list[str]:
    """Names of rows and groups as names of rows, each once, in the order given.

    Raises UserError for a name that is neither.
    """
    rows: list[str] = []
    for name in names:
        if name not in BENCHMARKS and name not in GROUPS:
            near = difflib.get_close_matches(name, [*GROUPS, *BENCHMARKS], n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            single = [row.name for row in ROWS if not row.group.startswith("mini")]
            raise UserError(
                f"benchmarks: `{name}` is no benchmark.{hint} There are: {', '.join(single)}; the groups "
                f"{', '.join(GROUPS)}; and mini-FAMILY. Files of your own go into `sets`."
            )
        rows += GROUPS.get(name, [name])
    return list(dict.fromkeys(rows))
