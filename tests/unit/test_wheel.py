"""A wheel holds what the commands read beside their code: configurations, the bases of rendered manifests, and the
templates of the report and the live page. It is marked as typed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES, PAGE = "hpt_ray/tools/report/templates", "hpt_ray/tools/watch/page"
PARTS = {"configs": "hpt_ray/configs", "deploy/kuberay": "hpt_ray/tools/deploy/kuberay"}


def test_a_wheel_has_every_configuration_and_base(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("hpt_ray", *PARTS):
        shutil.copytree(
            ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as contents:
        names = set(contents.namelist())
    for folder, inside in PARTS.items():
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert len(files) > 20
        assert {f"{inside}/{file}" for file in files} <= names
    pages = [*(ROOT / TEMPLATES).iterdir(), *(ROOT / PAGE).rglob("*.*")]
    templates = {path.relative_to(ROOT).as_posix() for path in pages}
    assert len(templates) >= 10
    assert templates <= names
    assert "hpt_ray/py.typed" in names
    assert not [name for name in names if name.startswith(("configs", "deploy", "tests"))]
