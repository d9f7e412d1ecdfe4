"""A stop at each moment of a step: what is done is reported and saved once, and the run goes on as the same run."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import write_reward_function
from identical import check_identical

from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import ClusterConfig
from hpt_ray.data.mini.base import fresh_model, parse_name, tokenizer_path
from hpt_ray.driver.batches import Batch
from hpt_ray.driver.driver import Driver
from hpt_ray.driver.setup import PreparedPhase, prepare
from hpt_ray.driver.step_metrics import Pairs
from hpt_ray.errors import Stopped
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.types import UpdateResult

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TINY = Path(__file__).with_name("tiny.yaml")
STOP, STEPS = 2, 3
# The moment → the last step that is done.
MOMENTS = {
    "begins": STOP - 1,
    "learns": STOP,
    "syncs": STOP,
    "sums up": STOP,
    "reports": STOP,
    "evaluates": STOP,
}
QUICK = ("begins", "sums up")  # of the others, `make test-all` tries each


class StoppedDriver(Driver):
    """Is asked to stop at one moment of step `STOP`."""

    moment, num_saved = "", 0
    _spans: Any = None
    _scores: Any = None

    async def _write_checkpoint(self) -> float:
        self.num_saved += 1
        return await super()._write_checkpoint()

    async def _reach(self, moment: str, step: int) -> None:
        if moment == self.moment and step == STOP:
            self.stopping.ask()
            await asyncio.sleep(0.1)  # the request is seen while the step waits for something

    def _set_phase(self, phase: PreparedPhase) -> None:
        super()._set_phase(phase)
        assert self.actors.engines is not None
        if self._spans is None:
            self._spans = self.actors.engines.spans
            self.actors.engines.spans = self._spans_in_time  # type: ignore[method-assign]
            self._scores = self.evaluator.scores
            self.evaluator.scores = self._scores_in_time  # type: ignore[method-assign]

    async def _spans_in_time(self) -> Any:
        await self._reach("sums up", self.step)
        return await self._spans()

    async def train_step(self, batch: Batch) -> tuple[dict[str, Any], Pairs]:
        await self._reach("begins", batch.step)
        return await super().train_step(batch)

    async def _update(self, number: int) -> UpdateResult:
        result = await super()._update(number)
        await self._reach("learns", self.step + 1)
        return result

    async def _sync(self) -> float:
        await self._reach("syncs", self.step + 1)
        return await super()._sync()

    async def _scores_in_time(self, *arguments: Any) -> dict[str, float]:
        await self._reach("evaluates", self.step)
        return await self._scores(*arguments)

    async def _report(self, step: int, *arguments: Any, **options: Any) -> None:
        await self._reach("reports", step)
        await super()._report(step, *arguments, **options)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    reward_function = write_reward_function(tmp_path_factory.mktemp("reward_function"))
    evaluation = ["evaluation.sets={chain: mini:validation/chain}", f"evaluation.every={STOP}"]
    best = ["checkpoint.best_of=chain", "checkpoint.every=1", "checkpoint.keep=0"]
    return [
        f"run.steps={STEPS}",
        "run.deterministic=true",
        f"reward.function={reward_function}",
        *evaluation,
        *best,
    ]


def train(
    runs: Path, words: list[str], moment: str = "", resume: RunFolder | None = None
) -> tuple[RunFolder, StoppedDriver]:
    config = load_config(TINY, [*words, f"run.dir={runs}"])
    prepared = prepare(config, tokenizer_path(config.model.path))
    prepared = replace(prepared, model_path=str(fresh_model(parse_name("mini:t-fresh"))))
    folder = resume or RunFolder.create(config.run.dir, config.run.name)
    end = (
        pytest.raises(Stopped, match=f"after step {MOMENTS[moment]} of {STEPS}, which is saved")
        if moment
        else nullcontext()
    )
    with Progress(STEPS) as progress, end:
        driver = StoppedDriver(config, prepared, folder, progress, quiet=True)
        driver.moment = moment
        asyncio.run(driver.run(Cluster.connect(ClusterConfig())))
    return folder, driver


@pytest.fixture(scope="module")
def whole(ray_cluster: Cluster, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tmp_path_factory.mktemp("whole"), words)[0]


@pytest.mark.parametrize(
    "moment", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in MOMENTS]
)
def test_a_stop_loses_nothing(moment: str, words: list[str], whole: RunFolder, tmp_path: Path) -> None:
    done = MOMENTS[moment]
    folder, driver = train(tmp_path, words, moment)
    assert driver.num_saved == done, "what is saved is not saved again"
    assert [line["step"] for line in folder.read_metrics()] == list(range(1, done + 1))
    assert (folder.checkpoints / f"step-{done:06d}").is_dir()
    assert "eval/chain/mean" not in folder.read_metrics()[-1], "there may be little time"
    train(tmp_path, words, resume=folder)
    check_identical(folder, whole, STEPS)
    best = [json.loads(run.summary.read_text())["best"] for run in (folder, whole)]
    assert best[0] == best[1] is not None
