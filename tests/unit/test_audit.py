"""The audit says what it found and what it could not look up, which pip-audit itself counts as fine, and where it
knows no licence."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "requirements" / "audit.py"


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vulnerabilities_are_named_and_fail(audit, capsys):
    packages = [
        {"name": "good", "version": "1", "vulns": []},
        {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]},
    ]
    assert audit.tell("cpu.lock", packages) == 1
    said = capsys.readouterr().out
    assert "bad 2: PYSEC-1, fixed in 3" in said
    assert "2 packages audited, 1 vulnerabilities known" in said
    assert "NOT AUDITED" not in said


def test_what_could_not_be_looked_up_is_said_and_does_not_fail(audit, capsys):
    assert audit.tell("cpu.lock", [{"name": "unknown", "skip_reason": "not found"}]) == 0
    said = capsys.readouterr().out
    assert "0 packages audited" in said
    assert "1 NOT AUDITED" in said


def test_the_bill_has_licences_and_says_where_none_is_known(audit, tmp_path, capsys):
    bill = tmp_path / "sbom.json"
    names = ["pytest", "numpy", "no-such-package"]
    bill.write_text(json.dumps({"components": [{"name": name} for name in names]}), encoding="utf-8")
    audit.add_licences(bill)
    assert "3 packages, 1 WITHOUT A KNOWN LICENCE ['no-such-package']" in capsys.readouterr().out
    licences = {part["name"]: part.get("licenses") for part in json.loads(bill.read_text())["components"]}
    assert licences["pytest"] in ([{"expression": "MIT"}], [{"license": {"name": "MIT License"}}])
    assert "BSD" in json.dumps(licences["numpy"])
    assert licences["no-such-package"] is None
