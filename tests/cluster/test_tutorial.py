"""docs/tutorial.md is true: its files and commands, in its order, end with a model that solves what it never saw."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.cluster, pytest.mark.long]


@pytest.mark.timeout(900)
def test_the_tutorial_ends_with_a_model_that_solves_the_task(tmp_path: Path) -> None:
    for file in re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / file.partition("\n")[0].removeprefix("# ")).write_text(file, encoding="utf-8")
    commands = "".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL))
    commands = commands.replace("hpt_ray ", "python -m hpt_ray ")  # the package of this checkout
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-euc", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "the model says 7777" in finished.stdout
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert "held_out" in json.dumps(results)
    lines = [json.loads(line) for line in (tmp_path / "runs/latest/metrics.jsonl").read_text().splitlines()]
    assert lines[1]["selection/demo_share"] > 0.9
    assert lines[-1]["selection/demo_share"] < 0.1
    assert lines[-1]["eval/held_out/mean"] > 0.8
    assert (tmp_path / "runs/latest/report/index.html").is_file()
