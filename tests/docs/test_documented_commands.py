"""Every command and every configuration in README and docs does what it is there for, as far as it can here.

Commands that train are dry-run; the others are read by their own readers, and carried out where they need no files.
What a page leaves to its reader is filled in from `PLACEHOLDERS`; what is not on this machine (data, models, GPUs)
a dry run names, and that is fine here. Commands in CONTRIBUTING.md have a test of their own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from hpt_ray.__main__ import COMMANDS
from hpt_ray.cli import explain, train
from hpt_ray.config.load import known_keys, load_config
from hpt_ray.data import prepare
from hpt_ray.evaluation.plan import load_evaluation
from hpt_ray.tools.deploy import __main__ as deploy
from hpt_ray.tools.plan import plan_run, survey
from hpt_ray.tools.plan.show import plan_summary
from hpt_ray.tools.suite.suite import load_suite
from hpt_ray.utils.arguments import READERS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = {  # as a page writes it → what it may be
    "FILE": "my_run.yaml",
    "/shared/my_run.yaml": "my_run.yaml",
    "SUITE.yaml": "configs/mini/small.yaml",
    "RUN": "runs/latest",
    "run.yaml": "my_run.yaml",
    "IMAGE": "registry/hpt_ray:gpu",
    "REGISTRY": "registry",
    "DIR": "folder",
    "K": "1",
    "N": "1",
    "URL": "http://127.0.0.1:8265",
    "COMMAND": "true",
}
NAMES = {module.removesuffix(".__main__"): name for name, (module, _) in COMMANDS.items() if name != "plan"}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
NOT_OURS = ({"scrape_configs"}, {"resources", "patches"})  # Prometheus, kustomize


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [body for language, body in found if language in languages]


def lines(page: Path) -> list[str]:
    """Lines of shell, continued ones joined; also those of blocks without a language, and commands in a sentence."""
    shell = "\n".join(blocks(page, "sh", "bash", "")).replace("\\\n", " ").splitlines()
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    inline = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text))
    return [*shell, *(code for code in inline if code.startswith(("hpt_ray ", "python -m hpt_ray")))]


def words_of(line: str) -> list[str]:
    """The words of one of our commands, `[name, …]`; none where the line holds no such command."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a line of a drawing
        return []
    words = words[: words.index("|")] if "|" in words else words  # what reads the output is no word of ours
    if words[:1] == ["hpt_ray"]:
        return words[1:]
    for i, word in enumerate(words):
        if word.endswith("hpt_ray.sbatch"):
            return ["train", *words[i + 1 :]]
        if word.startswith("hpt_ray") and words[i - 1] == "-m":
            return [NAMES.get(word, word), *words[i + 1 :]]
    return []


def filled(word: str) -> str:
    for placeholder, value in PLACEHOLDERS.items():
        word = re.sub(rf"(?<![\w/]){re.escape(placeholder)}(?![\w/])", value, word)
    return os.path.expandvars(word)


def commands() -> list[tuple[str, ...]]:
    """Each once. A name alone in a sentence stands for a command, and so does one with an ellipsis."""
    found = [words_of(line) for page in PAGES for line in lines(page)]
    return sorted({tuple(words) for words in found if words and "…" not in " ".join(words)})


def configurations() -> list[tuple[str, str]]:
    return [(page.name, block) for page in PAGES for block in blocks(page, "yaml")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader stands: the repository's files, and README's configuration and reward function."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("configs", "deploy"):
        (tmp_path / name).symlink_to(ROOT / name)
    for language, name in [("yaml", "my_run.yaml"), ("python", "my_reward.py")]:
        (content,) = blocks(ROOT / "README.md", language)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def dry_run(words: list[str]) -> list[str]:
    """What `hpt_ray plan` does but for the printing; the lines on what is not here."""
    config = train.configured(READERS["train"](words))
    found, absent = survey(config)
    plan_summary(plan_run(config, found))
    return absent


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_works_as_written(
    command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *words = (filled(word) for word in command)
    if name not in COMMANDS:
        assert importlib.util.find_spec(name), f"no module {name}"
        return
    if not words and name not in ("train", "plan", "explain"):
        return  # a name in a sentence
    match name:
        case _ if {"--keys", "--help"} & {*words}:
            with pytest.raises(SystemExit, match="0"):
                READERS[name](words)
        case "train" | "plan":
            dry_run(words)
        case "explain":
            assert explain.main(words) == 0
        case "evaluate" if words[0] != "compare":
            options = READERS["evaluate"](words)
            keys = [word for word in options.overrides if not word.startswith("model=")]
            asked = load_evaluation(options.config, [*keys, "model=mini:t-fresh"])
            assert asked.benchmarks or asked.sets
        case "suite":
            options = READERS["suite"](words)
            assert load_suite(options.suite, options.overrides).methods
        case "prepare":  # of files that are not here
            assert prepare.main(words) == 2
            assert words[words.index("--source") + 1] in capsys.readouterr().err
        case "deploy" if words[0] == "render":
            assert deploy.main(words) == 0
        case "deploy":
            with pytest.raises(SystemExit, match="0"):
                deploy.main([*words, "--help"])
        case _:
            READERS[name](words)


def test_the_commands_are_found() -> None:
    names = [command[0] for command in commands()]
    assert {*COMMANDS} <= {*names}
    assert names.count("train") > 8
    assert len(names) > 40


@pytest.mark.parametrize(("page", "block"), configurations(), ids=lambda text: text.split("\n")[0])
def test_a_configuration_can_be_read(page: str, block: str, place: Path) -> None:
    content = yaml.safe_load(block)
    if content.keys() in NOT_OURS:
        return
    file = place / "configs.yaml"
    file.write_text(block, encoding="utf-8")
    if "recipe" in content:
        for name in ("suite.yaml", "recipe.yaml"):
            (place / name).write_text((ROOT / "configs" / "mini" / name).read_text(), encoding="utf-8")
        assert load_suite(file).methods
    else:
        sections = {key.split(".")[0] for key in known_keys()}
        assert content.keys() <= sections, f"{page}: neither ours nor listed in NOT_OURS"
        load_config(file, [] if "model" in content else ["model.path=mini:t-fresh"])


def test_the_example_of_a_real_model_fits_the_cards_that_are_named(place: Path) -> None:
    """README's configuration as it stands, by the plan; only what no machine without them has is missing."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (before,) = re.findall(r"(eight|four|two|one) GPUs? of (\d+) GB", readme.split("```yaml")[0])
    config = train.configured(READERS["train"](["--config", "my_run.yaml"]))
    plan = plan_run(config, None)
    assert plan.num_gpus == {"eight": 8, "four": 4, "two": 2, "one": 1}[before[0]]
    assert plan.gpu_gib <= int(before[1])
    memories = [group.memory for group in plan.groups if group.gpus]
    assert memories
    assert all(memory is not None and memory.gib <= plan.gpu_gib for memory in memories)
    absent = dry_run(["--config", "my_run.yaml"])
    assert {line.split(":")[0] for line in absent} <= {"model.path", "data.train", "room"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_repository_that_commands_name_exist(page: Path) -> None:
    for line in "\n".join(blocks(page, "sh", "bash", "")).splitlines():
        for path in re.findall(r"(?<![\w/])(?:configs|deploy|requirements)/[\w./-]+\w", line):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", "\n".join(blocks(page, "sh", "bash")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{page.name}: make {target}"
