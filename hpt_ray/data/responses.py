"""The responses of an evaluation as rows to train on: `hpt_ray prepare responses --source EVALUATION --out DIR`.

In: `samples.jsonl` of an evaluation with `keep_texts=true`. Out: files in the verl shape of docs/data.md whose
demonstrations are the responses, tokenised anew when they are read. What was truncated is in neither: it has no end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpt_ray.errors import UserError

RESPONSES, CORRECT, CUT = "responses.jsonl", "correct.jsonl", "truncated, in neither"


def prepare_responses(source: Path, out_dir: Path) -> dict[str, int]:
    """`responses.jsonl`: all, for rehearsal or distillation. `correct.jsonl`: of each prompt the first that is correct,
    for rejection sampling or as the demonstrations of another model.

    Rows stand in the order of benchmark, prompt id and sample, whatever order the responses came in.
    """
    file = source / "samples.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file. --source is the folder of an evaluation.")
    counts = {RESPONSES: 0, CORRECT: 0, CUT: 0}
    partial = {name: out_dir / f".{name}.partial" for name in (RESPONSES, CORRECT)}
    with file.open("rb") as lines:
        places = []  # texts stay on disk
        while line := lines.readline():
            if not line.endswith(b"\n"):  # of an evaluation that is under way
                break
            found = json.loads(line)
            if "prompt" not in found:
                raise UserError(
                    f"{file} lacks prompts and responses: evaluate once more with keep_texts=true, into a new folder."
                )
            counts[CUT] += found["truncated"]
            if not found["truncated"]:
                key = found["benchmark"], found["id"], found["sample"]
                places.append((*key, lines.tell() - len(line)))
        out_dir.mkdir(parents=True, exist_ok=True)
        solved = set[tuple[str, str]]()
        with partial[RESPONSES].open("w") as responses, partial[CORRECT].open("w") as correct:
            for benchmark, prompt_id, _, place in sorted(places):
                lines.seek(place)
                found = json.loads(lines.readline())
                row = json.dumps(_row(found), ensure_ascii=False) + "\n"
                responses.write(row)
                counts[RESPONSES] += 1
                if found["outcome"] == "correct" and (benchmark, prompt_id) not in solved:
                    solved.add((benchmark, prompt_id))
                    correct.write(row)
                    counts[CORRECT] += 1
    for name, path in partial.items():
        path.replace(out_dir / name)
    return counts


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """A prompt's responses are rows of their own, so each has an id of its own."""
    index = found["id"].removeprefix(found["data_source"] + "/") + f"#{found['sample']}"
    row = {
        "prompt": found["prompt"],
        "target": [{"role": "assistant", "content": found["text"]}],
        "reward_model": {"ground_truth": found["ground_truth"]},
        "data_source": found["data_source"],
    }
    further = {name: value for name, value in found["extra"].items() if name not in row}
    return {**row, "extra_info": {**further, "split": "", "index": index}}
