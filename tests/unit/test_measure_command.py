"""`hpt_ray measure` on tiny models, from words to the page; no Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpt_ray.algorithms import ALGORITHMS
from hpt_ray.cli import measure
from hpt_ray.config.load import load_config
from hpt_ray.data.mini.model import create_model
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.driver.setup import asked_of, loader
from hpt_ray.tools.measure.methods import chosen
from hpt_ray.tools.measure.policy import Policy
from hpt_ray.tools.measure.run import Measurer, RewardFunctions, Sizes

REWARD = "def grade(response, ground_truth):\n    return float(len(response) % 2)\n"
SHORT = ("data.max_response_tokens=5", "data.max_prompt_tokens=40")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small measurement of two models that answer at random, where half of all responses are right."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.py").write_text(REWARD)
    lines = [{"prompt": f"{a}+{a}=", "solution": f"{2 * a}", "answer": f"{2 * a}"} for a in range(10)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for seed in (0, 1):
        create_model("t", seed=seed).save_pretrained(tmp_path / f"model-{seed}")
        build_tokenizer().save_pretrained(tmp_path / f"model-{seed}")
    return [
        *("--prompts", "8", "--draws", "1", "--reference", "32", "--dimensions", "2048"),
        *("data.train=[data.jsonl]", "data.template=plain", "reward.function=python:reward.py:grade", "group_size=4",
        "reward.require_finished=false"),
        *SHORT,
    ]  # fmt: skip


def test_a_measurement_of_two_models(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", "model-0", "--model", "model-1"]
    methods = ["--method", "rloo", "--method", "grpo,rollout_clip=none", "--method", "hpt", "--method", "sft"]
    assert measure.main([*models, *methods, *words, "--out", "found"]) == 0
    said = capsys.readouterr().out
    assert "found/index.html" in said
    assert "grpo,rollout_clip=none" in said
    result = json.loads((tmp_path / "found" / "measure.json").read_text())
    assert [found["name"] for found in result["models"]] == ["model-0", "model-1"]
    for found in result["models"]:
        everything = found["sets"]["all"]
        sizes = [found["sets"][name]["prompts"] for name in ("unsolved", "half-solved", "solved")]
        assert everything["prompts"] == sum(sizes) == 8
        assert 0 < everything["solve_rate"] < 1
        assert set(everything["methods"]) == {"rloo", "grpo,rollout_clip=none", "hpt", "sft"}
        variance = everything["methods"]["rloo"]["variance"]
        assert variance["low"] < variance["value"] < variance["high"]
        assert found["cost"]["rollouts"] == 8 * (16 + 32 + 4)
    assert (tmp_path / "found" / "index.html").read_text().count("<figure>") >= 1
    assert (tmp_path / "found" / "figures" / "plane-all.png").stat().st_size > 5000


def test_methods_that_continue_prefixes_draw_rollouts_of_their_own(words: list[str], tmp_path: Path) -> None:
    """UFT as many as all others, Prefix-RFT one, and BREAD none where some of the first are right: then it is GRPO."""
    config = load_config(None, ["model.path=model-0", *words[8:]])
    template, load = loader(config, "model-0")
    prompts = load(config.data.train, **asked_of(config, "both"))
    policy, rewards = Policy(config, "model-0", template), RewardFunctions(config)
    names = ["grpo", "prefix_rft", "uft", "bread"]
    measurer = Measurer(policy, policy, rewards, chosen(config, names, None), Sizes(4, 1, 32, 512), seed=0)
    found = [measurer.measure(prompt) for prompt in list(prompts)[:6]]
    rewards.close()
    costs = [each.costs for each in found]
    assert {cost["uft"].rollouts for cost in costs} == {4}
    again = [cost["bread"].rollouts > 4 for cost in costs]
    same = [np.array_equal(each.means["bread"], each.means["grpo"]) for each in found]
    assert same == [not more for more in again]
    assert any(same)
    for each in found:
        assert each.rollouts == 16 + 32 + 4 + 1 + 4 + (each.costs["bread"].rollouts - 4)
        assert np.isfinite(np.stack([each.means[name] for name in names])).all()
        assert each.squares["uft"] != each.squares["prefix_rft"]


def test_the_same_words_give_the_same_numbers(words: list[str], tmp_path: Path) -> None:
    numbers = []
    for out in ("one", "two"):
        assert measure.main(["--model", "model-0", "--method", "rloo", *words, "--out", out]) == 0
        found = json.loads((tmp_path / out / "measure.json").read_text())["models"][0]["sets"]["all"][
            "methods"
        ]["rloo"]
        numbers.append({name: value for name, value in found.items() if name != "snr_per_second"})
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "ppo"], "--method ppo: its gradient needs a critic"),
        (["--method", "iw_sft"], "needs a frozen policy"),
        (["--method", "grpp"], "grpo"),
        (["--method", "grpo,rollout_clp=none"], "rollout_clip"),
        (["--prompts", "2"], "--prompts is 2: give 4 or more"),
        (["--model", "nowhere"], "nowhere"),
        (["group_size=1"], "set 2 or more"),
    ],
)
def test_mistakes_are_told(
    words: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure.main(["--model", "model-0", *words, *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_whole_table_but_for_what_needs_another_model_is_measured(words: list[str]) -> None:
    config = load_config(None, ["model.path=model-0", *words[8:]])
    table = chosen(config, [], None)
    assert {*ALGORITHMS} - {*table} == {"ppo", "opd", "iw_sft"}
    parts = chosen(config, [], "grpo")
    assert {"grpo", "grpo,rollout_clip=none", "grpo,rollout_advantage=leave_one_out"} <= {*parts}
    assert all(name.startswith("grpo") for name in parts)
    assert "hpt,gate=linear" in chosen(config, [], "hpt")


def test_responses_come_as_often_as_the_policy_says(words: list[str]) -> None:
    """The sampler and the scorer are one policy; responses end with the first stop token and not before."""
    config = load_config(None, ["model.path=model-0", "rollout.temperature=0.7", *words[8:]])
    template, load = loader(config, "model-0")
    prompt = load(config.data.train, **asked_of(config, "both"))[0]
    policy = Policy(config, "model-0", template)
    rollouts = policy.sample(prompt, 3000, "test")
    firsts = np.array([rollout.token_ids[0] for rollout in rollouts])
    chances = {int(r.token_ids[0]): float(np.exp(r.logprobs[0])) for r in rollouts}
    for token, chance in sorted(chances.items(), key=lambda item: -item[1])[:5]:
        error = np.sqrt(chance * (1 - chance) / len(firsts))
        assert abs((firsts == token).mean() - chance) < 4 * error
    stops = np.array(template.stop_token_ids)
    assert not any(np.isin(rollout.token_ids[:-1], stops).any() for rollout in rollouts)
    assert {len(rollout.token_ids) for rollout in rollouts if rollout.truncated} <= {5}
    assert all(torch.isfinite(torch.from_numpy(rollout.logprobs)).all() for rollout in rollouts)
