"""Old names: refused with the new one wherever a person writes them, and read where version 0.1 wrote them."""

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpt_ray.algorithms.build import FAMILIES
from hpt_ray.config import renamed
from hpt_ray.config.checks import check_config
from hpt_ray.config.load import dump_config, known_keys, load_as, load_config, load_run_config
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError
from hpt_ray.evaluation.schema import EvaluateConfig
from hpt_ray.observe.metrics import METRICS

OLD_RUN = Path(__file__).resolve().parents[1] / "fixtures" / "run-0.1" / "config.yaml"
GOOD = ("model.path=m", "data.train=[a.parquet]")
# key as it is written, value, what the message must say
WRITTEN = [(old, "x", f"`{old}` was renamed to `{new}`.") for old, new in renamed.KEYS.items()] + [
    (key, old, f"`{key}` is {old!r}, which was renamed to `{new}`.")
    for key, values in renamed.VALUES.items()
    for old, new in values.items()
]


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of the schema's depth: what stands in a free-form dict is the value."""
    found = {}
    for name, value in content.items():
        if isinstance(value, dict) and not prefix:
            found |= flat(value, f"{name}.")
        else:
            found[prefix + name] = value
    return found


def refusal(path: Path | None, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        check_config(load_config(path, [*GOOD, *words]))
    return str(caught.value)


@pytest.mark.parametrize(("key", "value", "message"), WRITTEN)
def test_an_old_name_is_refused_with_the_new_one(key: str, value: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(nested(key, value)))
    assert refusal(None, f"{key}={value}") == f"command line: {message}"
    assert refusal(path) == f"{path}: {message}"
    path.write_text(yaml.safe_dump({"phases": [{"steps": 1}, {"steps": 1, **nested(key, value)}]}))
    assert refusal(path) == f"phase 2: {message}"
    phase = yaml.safe_dump({"steps": 1, **nested(key, value)}, default_flow_style=True, width=1000).strip()
    assert refusal(None, f"phases=[{phase}]") == f"phase 1: {message}"


def test_an_old_value_is_refused_where_another_key_refers_to_it() -> None:
    words = ("algorithm.rollout_clip=clip", "algorithm.demo_clip=${algorithm.rollout_clip}")
    assert refusal(None, *words).count("renamed to `ppo`") == 2


def test_other_programs_refuse_the_old_keys_of_shared_sections() -> None:
    with pytest.raises(UserError, match=r"`reward\.grader` was renamed to `reward\.function`"):
        load_as(EvaluateConfig, None, ["model=m", "reward.grader=math"])


def test_every_new_name_exists_and_no_old_one() -> None:
    assert set(renamed.KEYS.values()) <= set(known_keys())
    assert not set(renamed.KEYS) & set(known_keys())
    for key, values in renamed.VALUES.items():
        table = FAMILIES[key.partition("_")[2]]
        assert set(values.values()) <= set(table), key
        assert not set(values) & set(table), key


def test_every_key_of_an_old_run_arrives_under_its_new_name() -> None:
    old = flat(yaml.safe_load(OLD_RUN.read_text(encoding="utf-8")))
    assert set(renamed.KEYS) <= set(old)
    config = load_run_config(OLD_RUN)
    for name, value in old.items():
        key = renamed.KEYS.get(name, name)
        new = renamed.VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value
        assert attrgetter(key)(config) == new, name
    assert config.algorithm.rollout_clip == "ppo"
    assert config.algorithm.rollout_loss_aggregation == "seq-mean-token-mean"
    assert (config.prompts_per_step, config.group_size, config.max_tokens_per_micro_batch) == (4, 4, 1024)


def test_phases_of_an_old_run_are_read_too_and_written_under_new_names(tmp_path: Path) -> None:
    content = yaml.safe_load(OLD_RUN.read_text(encoding="utf-8"))
    content["phases"] = [{"steps": 4, "questions_per_step": 2, "algorithm": {"rollout_mask": "cap"}}]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    config = load_run_config(path)
    assert config.phases == [{"steps": 4, "prompts_per_step": 2, "algorithm": {"rollout_clip": "cispo"}}]
    dump_config(config, path)
    assert load_config(path, []) == load_as(Config, path, []) == config


def test_metrics_of_an_old_run_are_read_under_their_new_names() -> None:
    line = {"step": 3, "rollout/staleness_mean": 0.5, "rollout/staleness/1": 2, "learner/skipped_updates": 0}
    assert renamed.metrics(line | dict.fromkeys(renamed.METRICS, 1)) == {
        "step": 3,
        "rollout/off_policy_steps_mean": 0.5,
        "rollout/off_policy_steps/1": 2,
        "learner/skipped_updates": 0,
        **dict.fromkeys(renamed.METRICS.values(), 1),
    }
    known = [metric.name for metric in METRICS]
    assert all(any(name.startswith(new) for name in known) for new in renamed.METRICS.values())
