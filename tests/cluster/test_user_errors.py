"""What the user must change ends with exit code 2 and one message that says what, and without a trace.

Whatever can be found before Ray starts is found there, so these runs are calls of `main` in this process.
"""

import http.server
import json
import socket
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import ROOT, TINY, run_main

from hpt_ray.data.mini.model import create_model
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.main import main
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

ROW = {
    "prompt": [{"role": "user", "content": "What is 1 + 2?"}],
    "reward_model": {"ground_truth": "3"},
    "data_source": "test",
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs with one run in it, which no mistake may touch."""
    folder = tmp_path / "runs"
    kept = folder / "run-20200101-000000"
    kept.mkdir(parents=True)
    (kept / "config.yaml").write_text("kept\n")
    (folder / "latest").symlink_to(kept.name)
    return folder


@pytest.fixture
def message(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`message(words…)`: what a run with these words says as it refuses. Checks all that holds for each."""
    monkeypatch.chdir(ROOT)

    def refuse(*words: str, config: tuple[str, ...] = tuple(TINY)) -> str:
        before = sorted(path.relative_to(runs) for path in runs.rglob("*"))
        code = main([*config, f"run.dir={runs}", *words])
        error = capsys.readouterr().err
        check_refused(code, error)
        assert sorted(path.relative_to(runs) for path in runs.rglob("*")) == before
        assert (runs / "latest" / "config.yaml").read_text() == "kept\n"
        return error

    return refuse


def check_refused(code: int, error: str) -> None:
    assert code == 2, error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert "File " not in error


def write_jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def model_with(folder: Path, *, weights: bool, tokenizer: bool) -> Path:
    model = create_model("t", seed=0)
    if weights:
        model.save_pretrained(folder)
    else:
        model.config.save_pretrained(folder)
    if tokenizer:
        build_tokenizer().save_pretrained(folder)
    return folder


# -- configuration ---------------------------------------------------------------------------------


def test_unknown_key_names_the_nearest_known_one(message):
    error = message("learner.learning_rte=0.1")
    assert "command line: unknown key `learner.learning_rte`" in error
    assert "`learner.learning_rate`" in error


def test_all_wrong_keys_are_named_at_once(message):
    error = message("run.step=1", "learner.zero_stag=2", "rollout.num_workers=many")
    assert all(word in error for word in ("`run.steps`", "`learner.zero_stage`", "`rollout.num_workers`"))


def test_missing_configuration_file(message, tmp_path):
    error = message(config=("--config", f"{tmp_path}/absent.yaml"))
    assert f"{tmp_path}/absent.yaml: no such configuration file" in error


def test_configuration_file_that_is_no_yaml(message, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("run:\n  steps: [1\n")
    assert f"{file}:" in message(config=("--config", str(file)))


def test_value_of_the_wrong_type(message):
    error = message("run.steps=some")
    assert "`run.steps` must be int" in error
    assert "'some'" in error


def test_sizes_that_do_not_divide(message):
    error = message("prompts_per_step=10", "updates_per_step=4")
    assert "`prompts_per_step` (10) must be a multiple of `updates_per_step` (4)" in error


def test_row_that_cannot_fit_into_a_micro_batch(message):
    assert "`max_tokens_per_micro_batch` (64)" in message("max_tokens_per_micro_batch=64")


def test_algorithm_with_a_typing_error(message):
    error = message("algorithm.name=gpro")
    assert "gpro" in error
    assert "grpo" in error


def test_algorithm_that_needs_rollouts_without_rollouts(message):
    assert "group_size=0" in message("group_size=0", "algorithm.name=grpo")


def test_unknown_reward_function_names_the_nearest_known_one(message):
    error = message("reward.function=boxd")
    assert "`boxd`" in error
    assert "`boxed`" in error


def test_reward_function_file_without_the_function(message, tmp_path):
    file = tmp_path / "reward_functions.py"
    file.write_text("def other(response, ground_truth):\n    return 1\n")
    error = message(f"reward.function=python:{file}:grade")
    assert f"{file} has no function grade (it has: other)" in error


def test_unknown_reward_term(message):
    error = message("reward.terms={fromat: 0.1}")
    assert "fromat" in error
    assert "format" in error


# -- data ------------------------------------------------------------------------------------------


def test_missing_data_file(message, tmp_path):
    assert f"{tmp_path}/absent.parquet: no such file" in message(f"data.train=[{tmp_path}/absent.parquet]")


def test_missing_column_in_parquet(message, tmp_path):
    file = tmp_path / "train.parquet"
    rows = [{name: value for name, value in ROW.items() if name != "prompt"}]
    pq.write_table(pa.Table.from_pylist(rows), file)
    error = message(f"data.train=[{file}]")
    assert f"{file}: its columns are of no known shape. Found: reward_model (object), data_source" in error


def test_wrong_type_names_file_row_and_column(message, tmp_path):
    file = write_jsonl(tmp_path / "train.jsonl", ROW, {**ROW, "prompt": 7})
    assert f"{file}, row 2: `prompt` should be" in message(f"data.train=[{file}]")


def test_file_that_is_no_parquet(message, tmp_path):
    file = tmp_path / "train.parquet"
    file.write_text("not parquet")
    assert f"{file}: not readable as parquet" in message(f"data.train=[{file}]")


def test_empty_set_after_filtering_counts_the_reasons(message):
    error = message("data.max_prompt_tokens=2")
    assert "mini:train: no prompt is left (600 prompt_too_long)" in error
    assert "data.max_prompt_tokens" in error


def test_no_ground_truth_in_any_row(message, tmp_path):
    file = write_jsonl(tmp_path / "train.jsonl", {**ROW, "reward_model": {"ground_truth": None}})
    assert f"{file}: no prompt is left (1 no_ground_truth)" in message(f"data.train=[{file}]")


def test_no_ground_truth_field(message, tmp_path):
    file = write_jsonl(tmp_path / "train.jsonl", {**ROW, "reward_model": {"style": "rule"}})
    assert f"{file}, row 1: `reward_model.ground_truth` is missing" in message(f"data.train=[{file}]")


def test_missing_held_out_file(message, tmp_path):
    error = message(f"evaluation.sets={{test: {tmp_path}/absent.parquet}}")
    assert f"{tmp_path}/absent.parquet: no such file" in error


def test_unknown_part_of_the_small_task(message):
    assert "Did you mean mini:train?" in message("data.train=[mini:trian]")


# -- model -----------------------------------------------------------------------------------------


def test_missing_model_folder(message, tmp_path):
    error = message(f"model.path={tmp_path}/absent")
    assert f"model.path={tmp_path}/absent: no such folder" in error


def test_model_folder_without_tokenizer(message, tmp_path, capsys):
    folder = model_with(tmp_path / "model", weights=True, tokenizer=False)
    capsys.readouterr()  # transformers draws a progress bar
    error = message(f"model.path={folder}")
    assert f"model.path={folder}: no tokenizer can be read there" in error
    assert "tokenizer.json" in error


def test_model_folder_without_weights(message, tmp_path):
    folder = model_with(tmp_path / "model", weights=False, tokenizer=True)
    error = message(f"model.path={folder}")
    assert f"model.path={folder}: no safetensors weights" in error
    assert "model.random_init=true" in error


class GatedHub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does where the terms of a model were not accepted."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *words: object) -> None:
        pass


def test_gated_model(tmp_path):
    """A process of its own: the address of the Hub is read as its client is imported."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), GatedHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        finished = run_main(
            [*TINY, f"run.dir={tmp_path}", "model.path=some/gated-model"],
            HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
            HF_HOME=str(tmp_path / "hub"),
        )
        hub.shutdown()
    check_refused(finished.returncode, finished.stderr)
    assert "model.path=some/gated-model: no tokenizer can be read there" in finished.stderr
    assert "gated repo" in finished.stderr
    assert "set HF_TOKEN" in finished.stderr


def test_chat_template_that_the_tokenizer_does_not_have(message):
    error = message("data.template=chat", "data.add_bos=false")
    assert "data.template is `chat`" in error
    assert "data.template=plain" in error


def test_unknown_size_of_the_small_task(message):
    assert "Did you mean mini:t?" in message("model.path=mini:tt")


# -- resume ----------------------------------------------------------------------------------------


def test_resume_of_a_folder_that_is_no_run(message, tmp_path):
    assert "not a run folder" in message(f"resume={tmp_path}")


# -- what is found only with Ray: processes of their own -------------------------------------------


def test_more_workers_than_the_machine_has_room_for(tmp_path):
    words = ("rollout.num_workers=2", "rollout.num_cpus=1000", "run.steps=1")
    finished = run_main([*TINY, f"run.dir={tmp_path}", *words])
    check_refused(finished.returncode, finished.stderr)
    assert "2 × rollout with 1000 CPU each" in finished.stderr
    assert "rollout.num_workers" in finished.stderr
    assert "CPU free" in finished.stderr


def test_weights_that_only_the_learner_finds_missing(tmp_path):
    """Raised inside a learner actor; it must arrive as the user's mistake that it is."""
    folder = model_with(tmp_path / "model", weights=False, tokenizer=True)
    (folder / "adapter_model.safetensors").touch()  # a file of weights, but not the model's
    finished = run_main([*TINY, f"run.dir={tmp_path}", f"model.path={folder}", "run.steps=1"])
    check_refused(finished.returncode, finished.stderr)
    assert f"model.path={folder}: no safetensors weights" in finished.stderr
    assert "model.random_init=true" in finished.stderr


def test_resume_of_a_run_without_checkpoint_erases_nothing(tmp_path):
    run = RunFolder.create(tmp_path, "run")
    run.config.write_text("run: {}\n")
    run.append_metrics({"step": 1})
    finished = run_main([*TINY, f"run.dir={tmp_path}", f"resume={run.root}", "run.steps=1"])
    check_refused(finished.returncode, finished.stderr)
    assert "would erase 1 lines of metrics" in finished.stderr
    assert len(run.read_metrics()) == 1


def test_address_where_no_cluster_answers(tmp_path):
    finished = run_main([*TINY, f"run.dir={tmp_path}", "cluster.address=127.0.0.1:1", "run.steps=1"])
    check_refused(finished.returncode, finished.stderr)
    assert "cluster.address=127.0.0.1:1: no Ray cluster answers there" in finished.stderr


def test_address_where_something_listens_and_says_nothing(tmp_path):
    """Ray itself would wait for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        finished = run_main([*TINY, f"run.dir={tmp_path}", f"cluster.address={address}", "run.steps=1"])
    check_refused(finished.returncode, finished.stderr)
    assert f"cluster.address={address}: no Ray cluster answers there" in finished.stderr
    assert "silent for 10 s" in finished.stderr


def test_a_broken_cache_is_named(message, tmp_path, monkeypatch):
    data = write_jsonl(tmp_path / "train.jsonl", {**ROW, "prompt": "What is 1 + 2"})
    model_with(tmp_path / "model", weights=False, tokenizer=True)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder is needed")
    monkeypatch.setenv("HPT_RAY_CACHE", str(blocked))
    error = message(f"data.train=[{data}]", f"model.path={tmp_path}/model", "model.random_init=true")
    assert "HPT_RAY_CACHE" in error
