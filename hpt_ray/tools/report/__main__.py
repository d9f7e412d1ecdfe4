"""`python -m hpt_ray.tools.report RUN… [--out DIR]`

The page of `hpt_ray watch`, saved; of several runs with their comparison. RUN is a run folder, or the folder of a
finished evaluation of the model of one of them. Writes index.html, one file with everything in it. Exit code 0:
written. 2: the user must change something.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import yaml

from hpt_ray.errors import UserError, exit_code
from hpt_ray.observe.run_folder import write_atomic
from hpt_ray.tools.report.load import RunData, is_evaluation, load_run
from hpt_ray.tools.watch.save import saved_page
from hpt_ray.utils import arguments


def main(words: list[str] | None = None) -> int:
    """Write the report, and say where it is."""
    options = arguments.report(words)
    try:
        print(write_report(load_all(options.runs), options.out))
        return 0
    except Exception as error:
        return exit_code(error)


def load_all(paths: Sequence[Path]) -> list[RunData]:
    """The runs among `paths`, each with those evaluations among them that are of its model."""
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    evaluations = [path for path in folders if is_evaluation(path)]
    roots = [path for path in folders if path not in evaluations]
    if not roots:
        raise UserError("Only evaluations were given. Give the run folders of their models too.")
    of_run: defaultdict[Path, list[Path]] = defaultdict(list)
    for evaluation in evaluations:
        of_run[_run_of(evaluation, roots)].append(evaluation)
    return [load_run(root, of_run[root]) for root in roots]


def write_report(runs: Sequence[RunData], out: Path | None = None) -> Path:
    """Write index.html to `out`; returns it. Raises `UserError` where it cannot."""
    out = out or (runs[0].root if len(runs) == 1 else runs[0].root.parent) / "report"
    if len(runs) > 1 and not any(run.num_steps for run in runs):
        raise UserError("None of the runs has done a step yet.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "index.html", saved_page(runs))
    except OSError as error:
        raise UserError(f"{out}: the report cannot be written there: {error}.") from error
    return out / "index.html"


def _run_of(evaluation: Path, roots: Sequence[Path]) -> Path:
    """The run whose model an evaluation is of, by the path in its configuration."""
    try:
        config = yaml.safe_load((evaluation / "config.yaml").read_text(encoding="utf-8"))
        model = Path(config["model"]).resolve()
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(
            f"{evaluation}: its config.yaml does not say which model it is of: {error}"
        ) from error
    for root in roots:
        if root in (model, *model.parents):
            return root
    raise UserError(f"{evaluation}: an evaluation of {model}, which is in none of the runs given.")


if __name__ == "__main__":
    sys.exit(main())
