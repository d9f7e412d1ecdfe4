"""Loading of configurations: what wins, what is refused, and how the message reads."""

import re
from pathlib import Path
from typing import Any

import pytest

from hpt_ray.config.load import dump_config, known_keys, load_as, load_config, nearest_key
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError
from hpt_ray.evaluation.schema import EvaluateConfig
from hpt_ray.tools.suite.suite import MethodKeys, ModelKeys, SuiteKeys

ROOT = Path(__file__).resolve().parents[2]

MODEL = "model.path=some/model"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, list(words))
    return str(caught.value)


def test_without_a_file_the_schema_gives_the_values() -> None:
    expected = Config()
    expected.model.path = "some/model"
    config = load_config(None, [MODEL])
    assert isinstance(config, Config)
    assert config == expected


def test_later_sources_win(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "run: {steps: 1, seed: 1, name: base}\nmodel: {path: base}\n")
    write(tmp_path / "more.yaml", "run: {seed: 2, name: more}\n")
    path = write(tmp_path / "run.yaml", "defaults: [base.yaml, more.yaml]\nrun: {name: mine}\n")
    config = load_config(path, ["prompts_per_step=4"])
    run = config.run
    assert (run.steps, run.seed, run.name, config.prompts_per_step) == (1, 2, "mine", 4)
    assert load_config(path, ["run.name=last"]).run.name == "last"


def test_defaults_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "base.yaml", "model: {path: base}\n")
    write(tmp_path / "inner" / "a.yaml", "defaults: [../base.yaml]\n")
    path = write(tmp_path / "run.yaml", "defaults: [inner/a.yaml]\n")
    assert load_config(path, []).model.path == "base"


def test_dicts_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.yaml",
        "model: {path: m}\nlearner: {betas: [0.5, 0.6]}\nrollout: {engine: {seed: 3, swap_space: 1}}\n",
    )
    config = load_config(path, ["learner.betas=[0.7, 0.8]", "rollout.engine.seed=4"])
    assert config.learner.betas == [0.7, 0.8]
    assert config.rollout.engine == {"seed": 4, "swap_space": 1}


def test_an_empty_dict_empties_what_came_before(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.yaml",
        "model: {path: m}\nevaluation: {sets: {a: a.parquet}}\nrollout: {engine: {seed: 3}}\n",
    )
    config = load_config(path, ["evaluation.sets={}", "rollout.engine={}", "rollout.engine.swap_space=1"])
    assert (config.evaluation.sets, config.rollout.engine) == ({}, {"swap_space": 1})


def test_free_form_keys_may_hold_dots_and_slashes(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.yaml",
        "model: {path: m}\n"
        "reward: {functions: {openai/gsm8k: gsm8k, a.b: math}}\n"
        "learner: {deepspeed: {zero.x: {y/z: [1, 2]}}}\n",
    )
    config = load_config(path, ["reward.functions.lighteval/MATH=math"])
    assert config.reward.functions == {"openai/gsm8k": "gsm8k", "a.b": "math", "lighteval/MATH": "math"}
    assert config.learner.deepspeed == {"zero.x": {"y/z": [1, 2]}}


def test_a_section_whose_keys_are_all_commented_out_sets_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "rollout:\n  # temperature: 1\nmodel: {path: m}\n")
    assert load_config(path, []).rollout == Config().rollout


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.template={prompt} Answer: yes", "{prompt} Answer: yes"),
        ('data.template="{prompt}\\nAnswer:"', "{prompt}\nAnswer:"),
        ("data.template=", ""),
        ("data.template=007", "007"),
        ("data.template=a=b", "a=b"),
    ],
)
def test_text_on_the_command_line_is_taken_as_written(word: str, value: str) -> None:
    assert load_config(None, [MODEL, word]).data.template == value


def test_null_empties_an_optional_text_and_only_that() -> None:
    assert load_config(None, [MODEL, "data.end_token=null"]).data.end_token is None
    assert load_config(None, [MODEL, "data.system_prompt="]).data.system_prompt == ""
    assert "`run.name` must be str, but is None (null)" in refusal(None, MODEL, "run.name=null")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("run.stesp", "run.steps"),
        ("learning_rate", "learner.learning_rate"),
        ("rollout.learning_rate", "learner.learning_rate"),
        ("learning_rte", "learner.learning_rate"),
        ("rollout.temprature", "rollout.temperature"),
        ("evaluation.temprature", "evaluation.temperature"),
        ("lerner", "learner"),
        ("prompt_per_step", "prompts_per_step"),
    ],
)
def test_the_nearest_key_is_the_one_that_was_meant(typo: str, meant: str) -> None:
    assert nearest_key(typo) == meant
    said = refusal(None, MODEL, f"{typo}=1")
    assert f"unknown key `{typo}`. " in said
    assert f"`{meant}`" in said


@pytest.mark.parametrize("root", [Config, EvaluateConfig, SuiteKeys, MethodKeys, ModelKeys])
def test_a_key_like_no_other_points_to_the_page_that_lists_them(root: Any) -> None:
    assert nearest_key("qqqqzzzz", root) is None
    with pytest.raises(UserError, match=re.escape(root.PAGE)):
        load_as(root, None, ["qqqqzzzz=1"])
    assert (ROOT / root.PAGE).is_file()


def test_an_unknown_key_names_its_file(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "run: {stesp: 1}\n")
    path = write(tmp_path / "run.yaml", "defaults: [base.yaml]\nmodel: {path: m}\n")
    assert refusal(path).startswith(f"{base}: unknown key `run.stesp`.")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "run: {nmae: x, steps: many}\nmodel: 3\n")
    lines = refusal(path, "model.dtype=float23", "data.train=a.parquet", "run.seed=1.5").splitlines()
    assert lines == [
        f"{path}: unknown key `run.nmae`. Did you mean `run.name`?",
        f"{path}: `model` is a section, not a value. Set a key in it, such as `model.path`.",
        f"{path}: `run.steps` must be int, but is 'many' (str).",
        "command line: `data.train` must be list[str], but is 'a.parquet' (str). "
        "Write it as a list: data.train=[a.parquet].",
        "command line: `run.seed` must be int, but is 1.5 (float).",
        "`model.path` is not set. Model folder, Hub name, or `mini:SIZE` for the small task's base "
        "(`mini:SIZE-s1`: another draw). "
        "Set it in the file or as model.path=… on the command line.",
        "command line: `model.dtype` is 'float23', but must be one of: float32, bfloat16. "
        "Did you mean `float32`?",
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("run.steps=-1", "`run.steps` is -1, but must be at least 0."),
        ("rollout.temperature=.nan", "`rollout.temperature` is nan, but must be at least 0."),
        ("model.random_init=perhaps", "`model.random_init` must be bool, but is 'perhaps' (str)."),
        ("run.steps=true", "`run.steps` must be int, but is True (bool)."),
        ("run.steps={a: 1}", "`run.steps` must be int, but is {'a': 1} (dict)."),
        ("rollout.engine=3", "`rollout.engine` must be dict[str, Any], but is 3 (int)."),
        ("reward.functions={a: {b: c}}", "`reward.functions.a` must be str, but is {'b': 'c'} (dict)."),
        ("rollout.engine.a=???", "`rollout.engine` is not set."),
        (
            "rollout.num_cpus=${nothing.here}",
            "`rollout.num_cpus`: Interpolation key 'nothing.here' not found.",
        ),
        ("data.train=[a", "the value in `data.train=[a` is not valid YAML"),
        ("run.steps", "`run.steps` is not of the form key=value"),
        ("=3", "`=3` is not of the form key=value"),
    ],
)
def test_a_wrong_value_is_refused_by_name(word: str, message: str) -> None:
    assert message in refusal(None, MODEL, word)


def test_away_from_the_repository_the_package_s_own_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = ROOT / "hpt_ray" / "configs" / "quickstart.yaml"
    assert refusal(Path("configs/quickstart.yaml")).endswith(f"Is {ours} meant?")
    assert load_config(ours, []).run.name == "quickstart"


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.yaml", "run:\n  steps: 1\n bad: [\n")
    twice = write(tmp_path / "twice.yaml", "run: {seed: 1}\nrun: {seed: 2}\n")
    a_list = write(tmp_path / "list.yaml", "- run\n")
    no_list = write(tmp_path / "no_list.yaml", "defaults: bad.yaml\n")
    gone = write(tmp_path / "gone.yaml", "defaults: [nowhere.yaml]\n")
    circle = write(tmp_path / "circle.yaml", "defaults: [circle.yaml]\n")
    assert refusal(tmp_path / "none.yaml").startswith(f"{tmp_path}/none.yaml: no such configuration file")
    assert refusal(tmp_path).startswith(f"{tmp_path}: no such configuration file")
    assert refusal(bad).startswith(f"{bad}:3: not valid YAML")
    assert refusal(twice).startswith(f"{twice}:2: not valid YAML")
    assert refusal(a_list).startswith(f"{a_list}: must hold `key: value` lines")
    assert refusal(no_list).startswith(f"{no_list}: `defaults` must be a list")
    assert f"named under `defaults` in {gone}" in refusal(gone)
    assert "which is built on this file" in refusal(circle)


def test_a_dumped_configuration_reads_back_the_same(tmp_path: Path) -> None:
    words = [
        MODEL,
        "data.template=Frage: {prompt}\nπ",
        "reward.functions={openai/gsm8k: gsm8k, a.b: math}",
        "learner.learning_rate=1e-6",
        "rollout.engine={nested: {deep: [1, null, x]}}",
    ]
    config = load_config(None, words)
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", []) == config


def test_every_key_says_what_it_does() -> None:
    assert all(known.doc.endswith(".") or known.doc.endswith(").") for known in known_keys().values())
