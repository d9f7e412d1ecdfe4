"""From a model's own responses to training on them: an evaluation, `hpt_ray prepare responses`, a run."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from command import TINY, run_main, write_reward_function

from hpt_ray.data.mini import resolve
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
HPT_RAY = [sys.executable, "-m", "hpt_ray"]


def test_responses_of_an_evaluation_are_rehearsed_and_imitated(tmp_path):
    prompts, out = tmp_path / "prompts.parquet", tmp_path / "evaluation"
    pq.write_table(pq.read_table(resolve("mini:train")).slice(0, 12), prompts)
    reward = f"reward.function={write_reward_function(tmp_path)}"
    asked = [
        *("model=mini:t-fresh", f"sets.past={prompts}", f"out={out}", "keep_texts=true", reward),
        *("samples=4", "temperature=1", "top_p=1", "max_response_tokens=44", "cluster.address=local"),
        *("rollout.num_cpus=0.5", "rollout.kv_cache_gib=0.05", "data.template=plain", "data.add_bos=true"),
    ]
    for words in (["evaluate", *asked], ["prepare", "responses", "--source", str(out), "--out", str(out)]):
        done = run_main(words, command=HPT_RAY)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    ended = [line for line in lines if not line["truncated"]]
    answers, correct = (
        [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        for name in ("responses", "correct")
    )
    assert sorted(row["target"][0]["content"] for row in answers) == sorted(line["text"] for line in ended)
    solved = {line["id"] for line in ended if line["outcome"] == "correct"}
    assert len(correct) == len(solved) > 1
    done = run_main(
        [
            *(*TINY, "run.steps=2", f"run.dir={tmp_path}", reward, "algorithm.name=sft", "group_size=0"),
            *(f"data.train=[{out / 'correct.jsonl'}]", f"data.rehearsal=[{out / 'responses.jsonl'}]"),
            "data.rehearsal_per_step=4",
        ]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"{len(answers)} rows read, {len(answers)} kept; dropped: none; 4 of them in each step" in done.stdout
    )
    trained = RunFolder((tmp_path / "latest").resolve()).read_metrics()
    assert [line["step"] for line in trained] == [1, 2]
    assert all(line["learner/rehearsal_loss"] > 0 and line["learner/demo_loss"] > 0 for line in trained)
