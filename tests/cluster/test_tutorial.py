"""docs/tutorial.ipynb is true: its cells, from top to bottom, end with a model that solves what it never saw.

The notebook is written from docs/tutorial.md, so this holds of the page as well.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))

pytestmark = [pytest.mark.cluster, pytest.mark.long]


@pytest.mark.timeout(900)
def test_the_tutorial_ends_with_a_model_that_solves_the_task(tmp_path: Path) -> None:
    sources = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert sources[0].startswith(
        "import os\nimport sys\n"
    )  # where `hpt_ray` is found, which is said here by PATH
    script = []
    for cell in sources[1:]:
        magic, _, text = cell.partition("\n")
        command, *file = magic.split()
        assert command in ("%%writefile", "%%bash")
        script.append(f"cat > {file[0]} <<'THE_END'\n{text}\nTHE_END" if file else text)
    commands = "\n".join(script).replace("hpt_ray ", "python -m hpt_ray ")  # the package of this checkout
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
