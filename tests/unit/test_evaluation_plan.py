"""What an evaluation asks, from words on the command line: models, benchmarks, rewards, protocols, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.config.load import dump_config, known_keys
from hpt_ray.config.schema import Config
from hpt_ray.data.benchmarks import BENCHMARKS, GROUPS, PAPER, expand
from hpt_ray.data.mini.model import model_config
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.schema import make_row, write_rows
from hpt_ray.errors import UserError
from hpt_ray.evaluation.journal import Journal
from hpt_ray.evaluation.plan import load_evaluation, make_plan
from hpt_ray.evaluation.report import results_table, summarise, versions
from hpt_ray.evaluation.results import PromptResult
from hpt_ray.evaluation.schema import NOT_HERE, EvaluateConfig
from hpt_ray.reward import check_reward_function

MINI = ["model=mini:t-fresh", "benchmarks=[mini-geo]"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def plan(*words):
    return make_plan(load_evaluation(None, list(words)))


def write_prompts(path, answers, data_source="s", prompt="Compute 4*3-6."):
    rows = (make_row(prompt, None, a, data_source=data_source, extra_info={}) for a in answers)
    write_rows(path, rows, {"index": pa.int64()})
    return path


def make_run(folder, **reward):
    """A run folder with one committed checkpoint whose export has a tokenizer."""
    config = Config()
    config.model.path = "mini:t"
    config.model.dtype = "bfloat16"
    config.data.template, config.data.add_bos = "plain", True
    config.rollout.start_timeout_s = 1200.0
    for name, value in reward.items():
        setattr(config.reward, name, value)
    folder.mkdir()
    dump_config(config, folder / "config.yaml")
    store = CheckpointStore(folder / "checkpoints", keep=0)
    for step in (3, 7):
        export = store.begin(step) / "hf"
        build_tokenizer().save_pretrained(export)
        model_config("t", "qwen2").save_pretrained(export)
        (export / "model.safetensors").touch()
        store.commit(step, {"step": step})
    return folder


# -- going on with another reward function ----------------------------------------------------------


@pytest.mark.parametrize("edited", ["graded.py", "helper.py", "plugin.py", "elsewhere.py"])
def test_results_of_an_edited_reward_function_are_not_mixed_with_those_before(edited, tmp_path):
    files = {
        "graded.py": "from helper import equal\n\ndef grade(response, ground_truth):\n    return equal\n",
        "helper.py": "equal = 1.0\n",
        "plugin.py": "",
        "elsewhere.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    words = [*MINI, f"reward.function=python:{tmp_path}/graded.py:grade", f"plugins=[{tmp_path}/plugin.py]"]
    folder = tmp_path / "out"
    Journal(folder, plan(*words).identity("m"), {}).close()
    Journal(folder, plan(*words).identity("m"), {}).close()
    (tmp_path / edited).write_text(files[edited] + "# edited\n")
    if edited == "elsewhere.py":
        Journal(folder, plan(*words).identity("m"), {}).close()
    else:
        with pytest.raises(
            UserError, match=rf"(?s){'plugin' if 'plugin' in edited else 'graded'}\.py.* then, .* now"
        ):
            Journal(folder, plan(*words).identity("m"), {})


# -- a set of one's own ----------------------------------------------------------------------------


def test_a_set_in_a_shape_of_its_own(tmp_path):
    rows = {
        "own": {"aufgabe": "Compute 4*3-6.", "ergebnis": "6"},
        "other": {"question": "Compute 4*3-6.", "answer": "6"},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    sets = f"sets={{own: {tmp_path}/own.jsonl, other: {tmp_path}/other.jsonl}}"
    made = plan("model=mini:t-fresh", sets, "data.columns={prompt: aufgabe, answer: ergebnis}")
    assert [[prompt.ground_truth for prompt in task.prompts] for task in made.tasks] == [["6"], ["6"]]
    with pytest.raises(UserError, match=r"own\.jsonl: its columns are of no known shape"):
        plan("model=mini:t-fresh", sets)


# -- the table -------------------------------------------------------------------------------------


def test_the_table_has_the_paper_protocol():
    assert (PAPER.temperature, PAPER.top_p, PAPER.max_response_tokens) == (0.6, 0.95, 8192)
    assert GROUPS["math"] == ["aime24", "aime25", "amc", "math500", "minerva", "olympiad"]
    assert GROUPS["ood"] == ["arc-c", "gpqa-diamond"]
    samples = {name: BENCHMARKS[name].samples for name in GROUPS["math"] + GROUPS["ood"]}
    assert {name for name, n in samples.items() if n == 32} == {"aime24", "aime25", "amc"}
    assert {n for name, n in samples.items() if name not in ("aime24", "aime25", "amc")} == {1}
    assert all(BENCHMARKS[name].protocol == PAPER for name in samples)
    assert len(GROUPS["mini"]) == 6
    assert len(GROUPS["mini-ood"]) == 2
    for row in BENCHMARKS.values():
        if row.reward_function is not None:
            check_reward_function(row.reward_function)


def test_names_and_groups():
    assert expand(["gsm8k", "ood", "arc-c"]) == ["gsm8k", "arc-c", "gpqa-diamond"]
    with pytest.raises(UserError, match=r"`aime2024` is no benchmark. Did you mean `aime24`\?"):
        expand(["aime2024"])


# -- the plan --------------------------------------------------------------------------------------


def test_the_small_task_is_asked_as_its_models_were_trained():
    (task,) = plan(*MINI).tasks
    assert task.prompts[0].token_ids[0] == build_tokenizer().bos_token_id
    assert (len(task.prompts), task.num_samples, task.ks) == (48, 1, [1])
    assert (task.sampling.temperature, task.sampling.max_tokens) == (0.0, 64)
    assert set(task.reward_functions.values()) == {"boxed"}


def test_words_replace_the_protocol():
    made = plan(
        *MINI, "samples=6", "temperature=0.5", "top_p=0.9", "max_response_tokens=9", "rollout.top_k=5"
    )
    (task,) = made.tasks
    assert (task.num_samples, task.ks) == (6, [1, 2, 4])
    sampling = task.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.9, 5, 9)
    assert made.max_model_len == 9 + max(len(q.token_ids) for q in task.prompts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["samples=4", "temperature=1", "pass_k=[2, 8]"],
            "pass@8 needs at least 8 samples per prompt, and there are 4",
        ),
        (["samples=2"], "at temperature 0 all 2 samples of a prompt are the same"),
        (["data.train=[a]"], "`data.train` is a key of training"),
        (["rollout.temperature=0.6"], "set `temperature`"),
        (["reward.terms={format: 1.0}"], "counts correct responses only"),
        (["top_p=1.5"], "`top_p` \\(1.5\\) must be above 0"),
        (["reward.function=maths"], "Unknown reward function `maths`"),
        (["bechmarks=[math]"], "Did you mean `benchmarks`"),
        (["benchmarks=[]"], "Nothing to evaluate"),
        (
            ["benchmarks=[aime24]", "data_dir=nowhere"],
            "python -m hpt_ray.data.prepare aime24 --source FILE --out nowhere",
        ),
    ],
)
def test_what_the_user_must_change(words, message):
    with pytest.raises(UserError, match=message):
        plan(*MINI, *words)


def test_own_files_and_own_reward_functions(tmp_path):
    file = write_prompts(tmp_path / "q.parquet", ["6", "7"])
    (task,) = plan("model=mini:t-fresh", f"sets={{mine: {file}}}", "reward.functions={s: exact}").tasks
    assert (task.name, dict(task.reward_functions)) == ("mine", {"s": "exact"})
    assert task.sampling.temperature == 0.6
    (task,) = plan(
        "model=mini:t-fresh", "benchmarks=[arc-c]", f"sets={{arc-c: {file}}}", "reward.functions={s: exact}"
    ).tasks
    assert dict(task.reward_functions) == {"s": "exact"}  # the configuration comes before the row
    with pytest.raises(UserError, match=r"arc-c, prompt .*no label of a choice"):
        plan(
            "model=mini:t-fresh",
            "benchmarks=[arc-c]",
            f"sets={{arc-c: {write_prompts(tmp_path / 'r.parquet', ['12'])}}}",
        )


def test_no_prompt_is_left_out(tmp_path):
    rows = (
        make_row(p, None, "6", data_source="s", extra_info={}) for p in ("Compute 4*3-6.", "Compute 4." * 9)
    )
    write_rows(tmp_path / "q.parquet", rows, {"index": pa.int64()})
    with pytest.raises(UserError, match="1 prompt_too_long, and an evaluation leaves no prompt out"):
        plan("model=mini:t-fresh", f"sets={{mine: {tmp_path / 'q.parquet'}}}", "data.max_prompt_tokens=20")


def test_a_run_is_evaluated_as_it_was_trained(tmp_path):
    run = make_run(tmp_path / "run", function="exact", require_finished=False)
    made = plan(f"model={run}", "benchmarks=[mini-geo]")
    assert made.model.path == str(run / "checkpoints" / "step-000007" / "hf")
    assert made.model.name == "run-step-000007"
    assert made.config.dtype == "bfloat16"
    assert made.config.data.add_bos
    assert made.config.rollout.start_timeout_s == 1200.0
    assert not made.config.reward.require_finished
    assert made.reward_functions == made.training_reward_functions == {"mini/geo": "exact"}
    one = plan(
        f"model={run}/checkpoints/step-000003",
        "benchmarks=[mini-geo]",
        "reward.function=boxed",
        "dtype=float32",
    )
    assert one.model.name == "run-step-000003"
    assert one.config.dtype == "float32"
    assert (dict(one.reward_functions), one.training_reward_functions) == (
        {"mini/geo": "boxed"},
        {"mini/geo": "exact"},
    )


def test_responses_that_the_model_has_no_positions_for_are_refused(tmp_path):
    folder = make_run(tmp_path / "run", function="boxed")
    prompts = write_prompts(tmp_path / "own.parquet", ["6"])
    positions = model_config("t", "qwen2").max_position_embeddings
    words = [f"model={folder}", f"sets={{own: {prompts}}}"]
    with pytest.raises(
        UserError, match=rf"own: prompt and response may have (\d+) \+ 8192 .* {positions} positions"
    ):
        plan(*words, "max_response_tokens=8192")
    longest = plan(*words, "max_response_tokens=8").tasks[0].max_prompt_tokens
    plan(*words, f"max_response_tokens={positions - longest}")
    with pytest.raises(UserError, match=f"take max_response_tokens={positions - longest} or less"):
        plan(*words, f"max_response_tokens={positions - longest + 1}")


def test_an_override_that_nothing_reads_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"config_overrides\.rope_theta.*rope_parameters"):
        plan(f"model={run}", "benchmarks=[mini-geo]", "config_overrides={rope_theta: 40000}")


def test_a_damaged_newest_checkpoint_is_not_passed_over(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "checkpoints" / "step-000007" / "hf" / "config.json").write_text("{ }")
    with pytest.raises(UserError, match=r"newest checkpoint cannot be used .*config\.json"):
        plan(f"model={run}", "benchmarks=[mini-geo]")
    with pytest.raises(UserError, match=r"no config\.json"):
        plan(f"model={tmp_path}", "benchmarks=[mini-geo]")


# -- the report ------------------------------------------------------------------------------------


def results_for(made, correct):
    return [
        PromptResult(
            t.name,
            q.id,
            q.data_source,
            str(i % 2),
            "h",
            t.num_samples,
            correct(t, i),
            t.num_samples - correct(t, i),
            0,
            0,
            0,
            0,
            10.0,
            1,
        )
        for t in made.tasks
        for i, q in enumerate(t.prompts)
    ]


def test_results_say_what_graded_and_average_in_two_ways(tmp_path):
    small = write_prompts(tmp_path / "q.parquet", ["6"] * 3, data_source="own", prompt="Find 1+2.")
    write_rows(
        small,
        (
            make_row(f"Compute {i}*3-6.", None, "6", data_source="own", extra_info={"index": i})
            for i in range(3)
        ),
        {"index": pa.int64()},
    )
    run = make_run(tmp_path / "run", function="boxed")
    made = plan(
        f"model={run}",
        "max_response_tokens=64",
        "benchmarks=[mini-geo]",
        f"sets={{own: {small}}}",
        "samples=4",
        "temperature=1",
        "reward.functions={own: exact}",
    )
    summary = summarise(made, results_for(made, lambda task, i: 4 if task.name == "own" else 2 * (i % 2)))
    json.dumps(summary, allow_nan=False)
    geo, own = summary["benchmarks"]["mini-geo"], summary["benchmarks"]["own"]
    assert geo["reward_functions"] == {"mini/geo": {"reward_function": "boxed", "in_training": "boxed"}}
    assert own["reward_functions"] == {"own": {"reward_function": "exact", "in_training": "boxed"}}
    assert (geo["mean"]["value"], own["mean"]["value"]) == (0.25, 1.0)
    assert geo["pass_at_k"]["2"]["value"] == pytest.approx(0.5 * 5 / 6)
    assert geo["bootstrap_pass_at_k"]["2"] == pytest.approx(0.5 * 3 / 4)
    assert geo["by_level"]["1"]["mean"]["value"] == 0.5
    assert (geo["truncated_ratio"], geo["outcomes"]["correct"], geo["outcomes"]["wrong"]) == (0.25, 48, 144)
    average = summary["averages"]["all"]
    assert average["unweighted"]["value"] == pytest.approx(0.625)
    assert average["by_size"]["value"] == pytest.approx((48 * 0.25 + 3) / 51)
    assert not geo["as_published"]
    assert summary["versions"] == versions()
    assert all(versions().values())
    console = Console(width=100)
    with console.capture() as captured:
        console.print(results_table(summary))
    assert "training would grade by boxed: own" in captured.get()
    assert "Graded by boxed, as in training: mini-geo" in captured.get()


def test_the_page_says_every_key_and_benchmark():
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, known in known_keys(EvaluateConfig).items():
        assert "." in name or (f"| `{name}` |" in page and known.doc in page), name
    assert all(f"`{name}`" in page for name in (*NOT_HERE, *GROUPS))
    assert all(f"`{name}`" in page for name in BENCHMARKS if not name.startswith("mini"))
