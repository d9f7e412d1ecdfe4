"""docs/reward.md is true: every example on it runs as written, accepts the right response and refuses a wrong one."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from hpt_ray.config.schema import RewardConfig
from hpt_ray.reward.functions.row import Row
from hpt_ray.reward.functions.table import REWARD_FUNCTIONS
from hpt_ray.reward.pool import Pool, Task
from hpt_ray.reward.trial import try_rewards
from hpt_ray.types import Demonstration, Outcome, Prompt

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reward.md").read_text(encoding="utf-8")
NO_IDS = np.zeros(0, np.int32)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


FILES = {block.partition("\n")[0].removeprefix("# "): block for block in blocks("python")}
CONFIGS = [yaml.safe_load(block)["reward"] for block in blocks("yaml")]


def row() -> Prompt:
    (line,) = map(json.loads, blocks("json"))
    worked, text, answer = line["completion"], line["prompt"], line["answer"]
    extra = {name: value for name, value in line.items() if name != "prompt"}
    return Prompt("set/0", NO_IDS, text, answer, "set", Demonstration(NO_IDS, worked), extra, text)


class Yes(BaseHTTPRequestHandler):
    """A language model with OpenAI's interface that says yes to the right answer of the page's row."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = "Yes." if "Answer: It is \\boxed{7}." in asked["messages"][0]["content"] else "No"
        reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page")
    for name, text in FILES.items():
        (path / name).write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def other_port(file: Path, port: int) -> Iterator[int]:
    """The file with a free port in the place of the one on the page."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    text = file.read_text(encoding="utf-8")
    assert str(port) in text
    file.write_text(text.replace(str(port), str(free)), encoding="utf-8")
    yield free


@pytest.fixture(scope="module")
def judge(folder) -> Iterator[int]:
    """The page's judge, started as the page says; its port."""
    with other_port(folder / "judge.py", 8000) as port:
        process = subprocess.Popen([sys.executable, "judge.py"], cwd=folder, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def model(folder) -> Iterator[None]:
    with other_port(folder / "llm_judge.py", 8001) as port:
        server = ThreadingHTTPServer(("127.0.0.1", port), Yes)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["function"].rpartition("/")[2])
def test_an_example_runs_as_written(config, folder, judge, model, monkeypatch):
    monkeypatch.chdir(folder)
    function = config["function"].replace("8000", str(judge))
    prompt = row()
    given = RewardConfig(**config | {"function": function, "num_processes": 1})
    [(_, result)] = try_rewards(given, [prompt], max_response_tokens=64)
    built_on = "math_and_brevity" in function  # says itself that a score below 1 is correct
    assert result.correct
    assert built_on or result.score >= 1
    with Pool() as pool:
        [wrong] = pool.grade([Task(function, "It is \\boxed{8}.", prompt.ground_truth, Row.of(prompt))])
    assert wrong.outcome is Outcome.WRONG


def test_every_file_is_used():
    used = {config["function"].split(":")[1] for config in CONFIGS if config["function"].startswith("python")}
    assert used | {"judge.py"} == set(FILES)


def test_every_reward_function_is_in_the_table():
    table = PAGE.split("| name |")[1].split("\n\n")[0]
    for kind in REWARD_FUNCTIONS.values():
        for usage in kind.usage.split(" or "):
            assert f"`{usage}`" in table
