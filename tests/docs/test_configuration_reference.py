"""The generated tables in docs/ are those of the code, so that a changed key or metric shows in a review."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpt_ray.config.docs import DOCS, render_configuration, write_or_check
from hpt_ray.config.load import known_keys
from hpt_ray.observe.metrics import METRICS, render_metrics


@pytest.mark.parametrize("module", ["hpt_ray.config.docs", "hpt_ray.observe.metrics"])
def test_the_written_tables_are_up_to_date(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_each_key_and_metric_has_one_line() -> None:
    configuration, metrics = render_configuration().splitlines(), render_metrics().splitlines()
    for name in known_keys():
        assert sum(line.startswith(f"| `{name}` |") for line in configuration) == 1, name
    for metric in METRICS:
        assert sum(line.startswith(f"| `{metric.name}` |") for line in metrics) == 1, metric.name


def test_check_refuses_an_old_table_and_leaves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.md"
    assert write_or_check(path, "new\n", "make it", check=True) == 1
    path.write_text("old\n")
    assert write_or_check(path, "new\n", "make it", check=True) == 1
    assert path.read_text() == "old\n"
    assert "run `make it`" in capsys.readouterr().err
    assert write_or_check(path, "new\n", "make it", check=False) == 0
    assert write_or_check(path, "new\n", "make it", check=True) == 0
    assert DOCS.name == "docs"
