"""What is secret stays with the run: it is in no file, tracker or report, and grading processes do not have it."""

import dataclasses
import json
import pickle
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from hpt_ray.config.load import dump_config, load_config
from hpt_ray.config.phases import phases_of
from hpt_ray.config.references import public, written
from hpt_ray.config.schema import RewardConfig
from hpt_ray.errors import UserError
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.reward.service import check_reward_functions
from hpt_ray.text import redacted
from hpt_ray.tools.deploy.render import differences
from hpt_ray.tools.report.methods import shown
from hpt_ray.tools.suite.matrix import flat
from hpt_ray.types import Outcome

SECRET = "s3cret-value"
CONFIG = """
model: {path: "mini:t-fresh"}
data: {train: ["${oc.env:TOKEN}/train.jsonl"]}
run: {name: demo, dir: "/runs/${run.name}"}
reward:
  function: "http:http://judge:8000/grade/${oc.env:TOKEN}"
  headers: {Authorization: "Bearer ${oc.env:TOKEN}", X-Run: "${run.name}"}
checkpoint: {mirror: "s3://me:${oc.env:TOKEN}@store/runs"}
rollout: {engine: {served_model_name: "${oc.env:TOKEN}"}}
phases: [{steps: 2, data: {train: ["${oc.env:TOKEN}/other.jsonl"]}}]
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", SECRET)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return load_config(tmp_path / "run.yaml", [])


def test_a_value_from_the_environment_is_used_and_its_reference_is_written(config, tmp_path):
    path = tmp_path / "config.yaml"
    dump_config(config, path)
    assert config.reward.headers == {"Authorization": f"Bearer {SECRET}", "X-Run": "demo"}
    assert config.run.dir == "/runs/demo"
    text = path.read_text()
    assert SECRET not in text
    assert yaml.safe_load(text)["reward"]["headers"]["Authorization"] == "Bearer ${oc.env:TOKEN}"
    assert yaml.safe_load(text)["run"]["dir"] == "/runs/demo"  # a reference to a key is no secret
    assert load_config(path, []) == config
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_configuration_of_an_older_version_becomes_private_as_it_is_written_again(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("old")
    path.chmod(0o644)
    dump_config(config, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_copies_of_a_configuration_know_the_reference_too(config):
    (phase,) = phases_of(config)
    assert phase.config.data.train == [f"{SECRET}/other.jsonl"]
    copies = [phase.config, dataclasses.replace(config), pickle.loads(pickle.dumps(config))]
    for copy in copies:
        assert copy.reward.headers["Authorization"] == f"Bearer {SECRET}"
        assert SECRET not in json.dumps(written(copy))


def test_trackers_reports_suites_and_manifests_have_references(config):
    for view in (public(config), flat(config), differences(config)):
        assert SECRET not in json.dumps(view)
        assert "${oc.env:TOKEN}" in json.dumps(view)
    assert SECRET not in yaml.safe_dump({"model": config.rollout.engine["served_model_name"]})
    assert SECRET not in f"{config.rollout!r}"


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("http://me:key@judge:80/grade?token=x#end", "http://…@judge:80/grade?…#end"),
        ("mirror s3://key:pass@store/a, then", "mirror s3://…@store/a, then"),
        ("no answer from https://judge/v1?key=1 (refused)", "no answer from https://judge/v1?… (refused)"),
        ("http://judge/a@b", "http://judge/a@b"),
        ("me@host: what? nothing", "me@host: what? nothing"),
    ],
)
def test_addresses_are_shown_without_user_and_query(text, without):
    assert redacted(text) == without


def test_an_address_that_a_run_was_given_is_shown_without_its_password():
    assert public({"mirror": "s3://a:b@store/x"}) == {"mirror": "s3://…@store/x"}
    assert shown({"mirror": "s3://a:b@store/x"}) == '{"mirror": "s3://…@store/x"}'


@pytest.fixture
def judge():
    """A server that accepts a response with the right key; `/moved` leads there. Yields its address and what it saw."""
    seen: list[tuple[str, str | None]] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            seen.append((f"{self.command} {self.path}", self.headers["Authorization"]))
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/grade")
                self.end_headers()
                return
            if self.path.startswith("/fail"):
                self.send_error(400)
                return
            body = json.dumps(float(self.headers["Authorization"] == f"Bearer {SECRET}")).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_a_judge_gets_its_key_in_a_header(judge):
    url, seen = judge
    config = RewardConfig(function=f"{url}/grade", headers={"Authorization": f"Bearer {SECRET}"})
    with Pool.of(config) as pool:
        assert pool.grade([Task(config.function, "a", "a")])[0].outcome is Outcome.CORRECT
    assert seen == [("POST /grade", f"Bearer {SECRET}")]


def test_a_redirect_is_refused_and_takes_the_key_nowhere(judge):
    url, seen = judge
    with Pool(headers={"Authorization": f"Bearer {SECRET}"}) as pool:
        (result,) = pool.grade([Task(f"{url}/moved", "a", "a")])
    assert result.outcome is Outcome.ERROR
    assert "redirects (status 302)" in result.detail
    assert [path for path, _ in seen] == ["POST /moved"]


def test_a_key_in_the_address_is_in_no_detail(judge):
    url, _ = judge
    with Pool() as pool:
        details = [
            pool.grade([Task(function, "a", "a")])[0].detail
            for function in (
                url.replace("://", f"://me:{SECRET}@") + "/fail",
                f"http:http://127.0.0.1:9/x?token={SECRET}",
                f"{url}/fail?token={SECRET}",
            )
        ]
    assert "set `reward.headers` instead" in details[0]
    assert f"{url}/fail?…" in details[2] or "HTTP Error 400" in details[2]
    assert SECRET not in " ".join(details)


def test_a_grading_process_has_a_clean_environment(tmp_path, monkeypatch):
    file = tmp_path / "look.py"
    file.write_text(
        "import os\n"
        "def grade(response, truth):\n"
        "    return {'score': 1, 'detail': ' '.join(sorted(os.environ)), 'path': 'PATH' in os.environ}\n"
    )
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN_PATH", "JUDGE_KEY"):
        monkeypatch.setenv(name, SECRET)
    with Pool(environment=["JUDGE_KEY"]) as pool:
        (result,) = pool.grade([Task(f"python:{file}:grade", "a", "a")])
    names = set(result.detail.split())
    assert {"PATH", "JUDGE_KEY"} <= names
    assert not names & {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN_PATH"}


def test_a_reward_function_that_misses_a_variable_is_told_which_key_gives_it(tmp_path, monkeypatch):
    uses, loads = tmp_path / "uses.py", tmp_path / "loads.py"
    uses.write_text("import os\ndef grade(response, truth):\n    return len(os.environ['JUDGE_KEY'])\n")
    loads.write_text("import os\nKEY = os.environ['JUDGE_KEY']\ndef grade(response, truth):\n    return 1\n")
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    tasks = [Task(f"python:{file}:grade", "a", "a") for file in (uses, loads)]
    with Pool() as pool:
        details = [result.detail for result in pool.grade(tasks)]
    for detail in details:
        assert "KeyError" in detail
        assert "see no JUDGE_KEY of the environment unless reward.environment=[JUDGE_KEY]" in detail
    with Pool(environment=["JUDGE_KEY"]) as pool:
        assert [result.score for result in pool.grade(tasks)] == [len(SECRET), 1]


def test_a_variable_that_is_not_set_is_named_before_the_run(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match=r"reward\.environment names JUDGE_KEY, which is not set"):
        check_reward_functions(RewardConfig(environment=["JUDGE_KEY"]))


def test_what_a_reward_function_prints_cannot_steer_whoever_reads_the_log(tmp_path):
    file, log = tmp_path / "chatty.py", tmp_path / "verifier.log"
    file.write_text("def grade(response, truth):\n    print(response)\n    return 1\n")
    with Pool(output=str(log)) as pool:
        pool.grade([Task(f"python:{file}:grade", "a\x1b]52;c;ZXZpbA==\x07 \ud800", "a")])
    assert "a␛]52;c;ZXZpbA==␇" in Path(log).read_text(encoding="utf-8")
