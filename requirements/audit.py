"""What the lock files install: a bill of materials, and what is known to be wrong with it.

    python requirements/audit.py          (needs the extra `audit`: cyclonedx-bom and pip-audit)

Writes build/sbom-cpu.json and build/sbom-gpu.json (CycloneDX) with the licences that installed packages state, and says
of how many none is known. Exit code 1 where a package has a known vulnerability.
Where the database of vulnerabilities cannot be asked, that is said and is no failure: nothing is known then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
LIMIT_S = 600.0


def main() -> int:
    BUILD.mkdir(exist_ok=True)
    return max([audit(lock) for lock in sorted((ROOT / "requirements").glob("*.lock"))])


def audit(lock: Path) -> int:
    sbom = BUILD / f"sbom-{lock.stem}.json"
    command = ["-m", "cyclonedx_py", "requirements", str(lock), "--output-format", "JSON"]
    subprocess.run([sys.executable, *command, "--output-file", str(sbom)], check=True, timeout=LIMIT_S)
    add_licences(sbom)
    command = [
        "-m",
        "pip_audit",
        "--requirement",
        str(lock),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
    ]
    command += ["--progress-spinner", "off"]
    try:
        finished = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"{lock.name}: NOT AUDITED, the database did not answer within {LIMIT_S:.0f} s")
        return 0
    if not finished.stdout.strip():
        print(f"{lock.name}: NOT AUDITED, the database cannot be asked:\n{finished.stderr.strip()[-500:]}")
        return 0
    return tell(lock.name, json.loads(finished.stdout)["dependencies"])


def add_licences(sbom: Path) -> None:
    """Put into the bill what is known of licences, and say of how many packages nothing is."""
    bill = json.loads(sbom.read_text())
    unknown = []
    for component in bill["components"]:
        if licences := licences_of(component["name"]):
            component["licenses"] = licences
        else:
            unknown.append(component["name"])
    sbom.write_text(json.dumps(bill, indent=2))
    print(
        f"{sbom.name}: {len(bill['components'])} packages, {len(unknown)} WITHOUT A KNOWN LICENCE {unknown[:8]}"
    )


def licences_of(package: str) -> list[dict]:
    """As CycloneDX has them: the package's SPDX expression, else the names in its classifiers, else its own word."""
    try:
        stated = metadata(package)
    except PackageNotFoundError:
        return []
    if expression := stated.get("License-Expression"):
        return [{"expression": expression}]
    classifiers = [line for line in stated.get_all("Classifier", []) if line.startswith("License ::")]
    names = [line.split(" :: ")[-1] for line in classifiers] or [stated.get("License", "").partition("\n")[0]]
    return [{"license": {"name": name.strip()}} for name in names if name.strip()]


def tell(name: str, packages: list[dict]) -> int:
    """Say what pip-audit found. It counts what it could not look up as fine; here it is said."""
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [(package, vulnerability) for package in packages for vulnerability in package.get("vulns", [])]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "none yet"
        print(f"  {package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    print(f"{name}: {len(packages) - len(skipped)} packages audited, {len(found)} vulnerabilities known")
    if skipped:
        print(
            f"{name}: {len(skipped)} NOT AUDITED, the database does not know them here: {', '.join(skipped[:8])} …"
        )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
