"""The data card: its numbers, what is refused, what is warned of, and how it is shown.

`../shared/cases/first_contact/data` is read where it is there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_material import NASTY, make_run, saved_of
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from hpt_ray.algorithms.gates import GATES
from hpt_ray.algorithms.trial import may_ask
from hpt_ray.config.checks import check_config
from hpt_ray.config.load import load_config
from hpt_ray.driver.data_card import lengths_of, make_card, shorten_middle
from hpt_ray.driver.setup import prepare
from hpt_ray.errors import UserError
from hpt_ray.main import main
from hpt_ray.observe.data_card import DataCard, card_tables, warning_panel
from hpt_ray.observe.run_folder import RunFolder, write_json
from hpt_ray.tools.report.__main__ import main as report

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases" / "first_contact" / "data"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases beside the repository")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINS_ON_DEMONSTRATIONS = ("hpt", "luffy", "srft", "sft")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few weights whose tokenizer has a token for every byte, and ChatML as its template."""
    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({text: i for i, text in enumerate([*SPECIAL, *letters])}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token=SPECIAL[0], additional_special_tokens=[*SPECIAL[1:]]
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(
        vocab_size=len(SPECIAL) + 256, num_key_value_heads=1, max_position_embeddings=8192, **shape
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path / "cache"))


def words_of(model: Path, data: str | Path, *words: str) -> list[str]:
    return [
        f"model.path={model}", f"data.train=[{data}]", "data.max_prompt_tokens=100", "data.max_response_tokens=256",
        "max_tokens_per_micro_batch=4096", "prompts_per_step=8", "reward.function=boxed", "cluster.address=local",
        *words,
    ]  # fmt: skip


def card_of(model: Path, data: str | Path, *words: str) -> DataCard:
    config = load_config(None, words_of(model, data, *words))
    check_config(config)
    return make_card(config, prepare(config, str(model)))


Plan = Callable[..., tuple[int, str]]


@pytest.fixture
def plan(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Plan:
    """Exit code of a dry run and all that it says, in one line."""
    monkeypatch.setenv("COLUMNS", "200")
    empty = tmp_path / "empty.yaml"
    empty.write_text("{}")

    def run(data: str | Path, *words: str) -> tuple[int, str]:
        code = main(["--dry-run", "--config", str(empty), *words_of(model, data, *words)])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).replace("┃", " ").split())

    return run


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(i: int, right: bool = True, length: int = 0, **more: object) -> dict:
    return {
        "prompt": f"What is {i} + 1?",
        "completion": "Think. " * length + f"It is \\boxed{{{i + 1 if right else i}}}.",
        "answer": str(i + 1),
        **more,
    }


# -- the numbers ---------------------------------------------------------------------------------------


def test_the_numbers_of_a_mixed_file(model: Path, tmp_path: Path) -> None:
    """10 usable, 2 of them wrong; 6 demonstrations too long; 1 without; a prompt too long, empty, and a duplicate."""
    rows = [row(i, right=i > 1) for i in range(10)] + [row(i, length=50) for i in range(10, 16)]
    rows += [row(16, completion=None), row(17, prompt="x" * 101), row(18, prompt=""), row(19, answer=None)]
    file = write(tmp_path / "a.jsonl", rows)
    (one,) = card_of(model, file, "data.columns={}").training
    assert (one.rows, one.kept) == (20, 17)
    assert one.dropped == {"prompt_too_long": 1, "empty_prompt": 1, "no_ground_truth": 1}
    assert one.demonstrations == 10
    assert one.demonstrations_dropped == {"demonstration_too_long": 6}
    assert one.read_as == (
        "a.jsonl: read as TRL prompt/completion: prompt ← prompt, demonstration ← completion, ground truth ← answer",
    )
    assert one.prompt_tokens.limit == 100
    assert one.demonstration_tokens is not None
    # A token for every byte, and the one that ends the turn.
    lengths = [len(r["completion"]) + 1 for r in rows[:10]]
    assert (one.demonstration_tokens.min, one.demonstration_tokens.max) == (min(lengths), max(lengths))
    assert one.example.prompt == "<|im_start|>user\nWhat is 0 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert one.example.demonstration == "It is \\boxed{0}.<|im_end|>"
    assert one.reward_check is not None
    assert (one.reward_check.num_graded, one.reward_check.num_accepted) == (10, 8)
    assert one.reward_check.refused is not None
    assert (
        one.reward_check.refused.reference,
        one.reward_check.refused.extracted,
        one.reward_check.refused.result,
    ) == (
        "1",
        "0",
        "wrong",
    )
    assert one.warnings == ()


def test_quantiles_are_lengths_that_occur() -> None:
    lengths = lengths_of(np.arange(1, 101), 128)
    assert (lengths.min, lengths.median, lengths.p90, lengths.p99, lengths.max) == (1, 50, 90, 99, 100)
    assert set(asdict(lengths_of(np.array([7, 40]), 64)).values()) == {7, 40, 64}


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = " " + "a" * 1000 + "<|im_end|>\n"
    shown = shorten_middle(text)
    assert shown.startswith(" aaa")
    assert shown.endswith("aaa<|im_end|>\n")
    assert "[… 412 characters …]" in shown
    assert shorten_middle("  short\n") == "  short\n"


def test_the_sample_is_spread_and_holds_every_data_source(model: Path, tmp_path: Path) -> None:
    rows = [row(i, data_source="big") for i in range(300)]
    rows[150] |= {"data_source": "rare", "completion": None}
    rows[7] |= {"completion": None}
    config = load_config(None, words_of(model, write(tmp_path / "a.jsonl", rows)))
    prompts = prepare(config, str(model)).phases[0].prompts
    sample = prompts.sample(64)
    assert len(sample) == len({prompt.id for prompt in sample}) == 64
    assert [prompt.data_source for prompt in sample].count("rare") == 1
    assert sum(prompt.demonstration is None for prompt in sample) == 1, "only the first of the rare source"
    numbers = [int(prompt.ground_truth) for prompt in sample]
    assert numbers == sorted(numbers)
    assert max(np.diff(numbers)) < 12
    assert len(prompts.sample(1000)) == 299
    assert len(prompts.sample(1)) == 1


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINS_ON_DEMONSTRATIONS)
def test_without_demonstrations_nothing_trains_on_them(name: str, plan: Plan, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(24)])
    code, said = plan(file, f"algorithm.name={name}")
    assert code == 2
    assert "Rows without a demonstration: 24." in said
    assert "data.columns={target: COLUMN}. a.jsonl: read as prompt: prompt ← prompt" in said
    code, said = plan(file, "algorithm.name=grpo")
    assert code == 0, said
    assert "demonstrations not used" in said
    assert "boxed works on rows of this set" in said


@pytest.mark.parametrize("name", TRAINS_ON_DEMONSTRATIONS)
def test_demonstrations_that_are_too_long_are_named_with_the_limit_that_takes_them(
    name: str, plan: Plan, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.jsonl", [row(i, length=40 + i % 3) for i in range(24)])
    longest = max(len(row(i, length=40 + i % 3)["completion"]) for i in range(24)) + 1
    code, said = plan(file, f"algorithm.name={name}")
    assert code == 2
    advice = f"Raise it to {longest}, the longest has {longest} tokens"
    assert f"Demonstrations dropped for length at data.max_response_tokens=256: 24. {advice}" in said
    code, said = plan(file, f"algorithm.name={name}", f"data.max_response_tokens={longest}")
    assert code == 0, said
    assert "boxed accepts 24 of 24 demonstrations" in said


def test_a_user_s_algorithm_is_asked_too(plan: Plan, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import replace\nfrom hpt_ray.algorithms import ALGORITHMS\n"
        "ALGORITHMS['mine'] = replace(ALGORITHMS['luffy'], name='mine')\n"
    )
    file = write(tmp_path / "a.jsonl", [{"prompt": f"{i} + 1?", "answer": "1"} for i in range(8)])
    code, said = plan(file, "algorithm.name=mine", f"run.plugins=[{plugin}]")
    assert code == 2
    assert "algorithm.name=mine with gate both trains on demonstrations" in said


def test_which_gates_may_ask_for_a_demonstration() -> None:
    assert {name for name in GATES if not may_ask(name, 0.25, 8)} == {"rollouts"}
    assert not may_ask("switch", -1, 8)
    assert may_ask("demonstrations", 0, 0)


def test_a_switch_that_never_asks_needs_no_demonstrations(plan: Plan, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"prompt": f"{i} + 1?", "answer": "1"} for i in range(8)])
    assert plan(file, "algorithm.name=hpt", "selection.gamma=-1")[0] == 0


def test_a_broken_reward_function_stops_the_dry_run(plan: Plan, tmp_path: Path) -> None:
    grader = tmp_path / "grader.py"
    grader.write_text("def grade(response, ground_truth):\n    return None\n")
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(8)])
    for algorithm in ("hpt", "grpo"):
        code, said = plan(file, f"reward.function=python:{grader}:grade", f"algorithm.name={algorithm}")
        assert code == 2
        assert "returned None" in said


# -- what is warned of ---------------------------------------------------------------------------------


def test_few_demonstrations_left_are_a_warning(plan: Plan, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(i, length=0 if i < 9 else 60) for i in range(20)])
    code, said = plan(file)
    assert code == 0
    assert "demonstrations 9; dropped: 11 demonstration_too_long" in said
    warning = said.partition("Everything was checked.")[2]
    assert "Only 9 of 20 demonstrations are left. Demonstrations dropped for length at" in warning
    assert "Look at your data first" in warning
    half = write(tmp_path / "b.jsonl", [row(i, length=0 if i < 10 else 60) for i in range(20)])
    assert "Look at your data" not in plan(half)[1]


def test_few_rows_left_are_a_warning(model: Path, tmp_path: Path) -> None:
    rows = [row(i) if i < 4 else row(i, prompt="x" * 120 + str(i)) for i in range(10)]
    (warning,) = card_of(model, write(tmp_path / "a.jsonl", rows)).warnings
    assert warning.startswith(
        "Only 4 of 10 rows are kept. Prompts dropped for length at data.max_prompt_tokens=100: 6."
    )


def test_few_accepted_demonstrations_are_a_warning_with_one_that_is_refused(
    plan: Plan, tmp_path: Path
) -> None:
    code, said = plan(write(tmp_path / "a.jsonl", [row(i, right=i < 3) for i in range(8)]))
    assert code == 0
    warning = said.partition("Everything was checked.")[2]
    assert "The reward function boxed accepts 3 of 8 demonstrations." in warning
    assert (
        "its reference is “4”, “3” was read from it, the result is wrong. It ends: “It is \\boxed{3}.”"
        in warning
    )


def test_most_accepted_shows_one_that_is_refused_without_a_warning(plan: Plan, tmp_path: Path) -> None:
    code, said = plan(write(tmp_path / "a.jsonl", [row(i, right=i > 0) for i in range(8)]))
    assert code == 0
    assert "boxed accepts 7 of 8 demonstrations" in said
    assert "not accepted a:1" in said
    assert "Look at your data" not in said


def test_supervised_training_without_a_ground_truth_grades_nothing(plan: Plan, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} + 1?", "completion": f"{i + 1}"} for i in range(8)]
    code, said = plan(write(tmp_path / "a.jsonl", rows), "algorithm.name=sft")
    assert code == 0
    assert "reward function not run: no ground truth" in said


def test_each_phase_has_its_card(model: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [row(i, right=False) for i in range(8)])
    second = write(tmp_path / "b.jsonl", [row(i) for i in range(8)])
    words = f"phases=[{{steps: 2, algorithm: {{name: sft}}}}, {{steps: 2, data: {{train: [{second}]}}}}]"
    words = words.replace(f"data: {{train: [{second}]}}", f"data: {{train: ['{second}']}}")
    card = card_of(model, first, words, "evaluation.sets={held: " + str(second) + "}", "evaluation.every=1")
    assert [one.title for one in card.training] == ["Training data of phase 1", "Training data of phase 2"]
    assert [one.reward_check and one.reward_check.num_accepted for one in card.training] == [0, 8]
    assert [(one.name, one.rows, one.kept) for one in card.evaluation] == [("held", 8, 8)]
    assert len(card.warnings) == 1


def test_where_most_are_refused_the_reward_function_that_accepts_them_is_named(
    model: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"{i} + 1?", "answer": f"{i} + 1 is more.\n#### {i + 1}"} for i in range(8)]
    card = card_of(model, write(tmp_path / "a.jsonl", rows), "algorithm.name=sft")
    assert "boxed accepts 0 of 8 demonstrations, and reward.function=gsm8k accepts" in card.warnings[0]


# -- how it is shown -----------------------------------------------------------------------------------


def nasty_card(model: Path, folder: Path) -> DataCard:
    text = NASTY.replace("\ud800", "")
    rows = [row(i, prompt=f"{i} {text}", completion=f"[bold]{text} \\boxed{{0}}") for i in range(8)]
    return card_of(model, write(folder / "a.jsonl", rows), "data.max_prompt_tokens=300")


@pytest.mark.parametrize("width", [80, 200])
def test_it_fits_a_terminal_and_obeys_nothing_in_the_data(width: int, model: Path, tmp_path: Path) -> None:
    card = nasty_card(model, tmp_path)
    written = io.StringIO()
    console = Console(file=written, width=width, record=True, force_terminal=True, color_system="truecolor")
    console.print(card_tables(card))
    console.print(warning_panel(card.warnings))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    assert "[bold]" in shown
    assert "<|im_end|>" in shown
    assert "\x1b[1;31m" in written.getvalue()


def summary_of(page: Path) -> list[dict[str, Any]]:
    (of_run,) = saved_of(page)["of"].values()
    return of_run["summary"]


def test_the_report_has_it_as_data(model: Path, tmp_path: Path) -> None:
    root = make_run(tmp_path, steps=2)
    write_json(RunFolder(root).data_card, asdict(nasty_card(model, tmp_path)))
    assert report([str(root), "--out", str(tmp_path / "out")]) == 0
    blocks = {block["title"]: block for block in summary_of(tmp_path / "out" / "index.html")}
    assert blocks["Overview"]["warnings"]
    data = str(blocks["Data"])
    assert "boxed accepts 0 of 8 demonstrations" in data
    assert "<|im_start|>user" in data
    assert "a.jsonl: read as TRL" in data


def test_a_card_with_its_keys_of_old_is_read(model: Path, tmp_path: Path) -> None:
    root = make_run(tmp_path, steps=2)
    card = asdict(nasty_card(model, tmp_path))
    for one in card["training"]:
        one["grader"] = one.pop("reward_check")
    write_json(RunFolder(root).data_card, card)
    assert report([str(root), "--out", str(tmp_path / "out")]) == 0
    assert "boxed accepts 0 of 8 demonstrations" in str(summary_of(tmp_path / "out" / "index.html"))


def test_a_run_without_a_card_has_a_report_without_one(tmp_path: Path) -> None:
    root = make_run(tmp_path, steps=2)
    assert report([str(root), "--out", str(tmp_path / "out")]) == 0
    blocks = {block["title"]: block for block in summary_of(tmp_path / "out" / "index.html")}
    assert "Data" not in blocks
    assert "warnings" not in blocks["Overview"]


# -- the cases -----------------------------------------------------------------------------------------


@needs_cases
@pytest.mark.parametrize("name", TRAINS_ON_DEMONSTRATIONS)
def test_cases_that_are_refused(name: str, plan: Plan) -> None:
    code, said = plan(CASES / "demonstrations_too_long.jsonl", f"algorithm.name={name}")
    assert code == 2
    assert "dropped for length at data.max_response_tokens=256: 24." in said
    for file in ("no_demonstrations.jsonl", "question_answer.jsonl"):
        code, said = plan(CASES / file, f"algorithm.name={name}")
        assert code == 2
        assert "Rows without a demonstration: 24" in said


@needs_cases
def test_cases_that_are_shown(plan: Plan) -> None:
    code, said = plan(CASES / "wrong_demonstrations.jsonl")
    assert code == 0
    assert (
        "The reward function boxed accepts 8 of 24 demonstrations."
        in said.partition("Everything was checked.")[2]
    )
    for file in ("no_demonstrations.jsonl", "question_answer.jsonl", "demonstrations_too_long.jsonl"):
        assert plan(CASES / file, "algorithm.name=grpo")[0] == 0
    code, said = plan(CASES / "sft_only.jsonl", "algorithm.name=sft")
    assert code == 0
    assert "reward function not run" in said
    code, said = plan(CASES / "trl_text.jsonl")
    assert code == 0
    assert "boxed accepts 24 of 24 demonstrations" in said
    assert "Look at your data" not in said


def test_a_set_whose_reward_function_fails_is_shown_before_it_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def grade(response, ground_truth):\n    return 1 / 0\n")
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(8)])
    code, said = plan(file, f"reward.function=python:{tmp_path / 'mine.py'}:grade")
    assert code == 2
    shown, _, refusal = said.partition("failed on each of the 8 rows")
    assert "8 read, 8 kept" in shown
    assert "the model sees" in shown
    assert "reward function failed" in shown
    assert "ZeroDivisionError" in refusal


def test_a_later_phase_is_looked_at_too(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"prompt": f"{i} + 1?", "answer": "1"} for i in range(8)])
    with pytest.raises(UserError, match="trains on demonstrations, and there is none left for the 8 prompts"):
        card_of(
            model, file, "phases=[{steps: 1, algorithm: {name: grpo}}, {steps: 1, algorithm: {name: srft}}]"
        )
