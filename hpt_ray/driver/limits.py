"""What ends a run that goes on without training on anything: rewards that fail, updates that come out as nothing."""

from __future__ import annotations

from pathlib import Path

from hpt_ray.checkpoint.state import RunState
from hpt_ray.config.schema import Config
from hpt_ray.driver.step_metrics import Pairs
from hpt_ray.errors import RewardsFailed, TrainingDiverged
from hpt_ray.observe.rollout_dump import write_rollouts


def reason_to_stop(config: Config, state: RunState, pairs: Pairs, folder: Path) -> RuntimeError | None:
    """The error that ends the run after the step of `pairs`, whose samples are then in `folder`; None to go on."""
    if failures := too_many_failures(pairs, config.reward.max_failure_share):
        dump = write_rollouts(folder, state.step, pairs)
        return RewardsFailed(
            f"{failures}. The responses of step {state.step} are in {dump}. The step is saved: once the reward "
            "function is mended, resume=auto goes on after it."
        )
    if state.skipped_in_a_row > config.learner.max_skipped_updates:
        dump = write_rollouts(folder, state.step, pairs)
        return TrainingDiverged(
            f"{state.skipped_in_a_row} updates in a row were skipped, more than "
            f"learner.max_skipped_updates={config.learner.max_skipped_updates}: their gradient was not finite, or "
            f"above learner.skip_grad_norm. The samples of the last step are in {dump}."
        )
    return None


def too_many_failures(pairs: Pairs, limit: float) -> str | None:
    """Where rewards failed for more than this share of the step's responses: how many, and why the last one did."""
    results = [result for group, _ in pairs for rollout, result in group.pairs if rollout.finish.is_response]
    failed = [result for result in results if result.outcome.is_failure]
    if len(failed) <= limit * len(results):
        return None
    return (
        f"no reward for {len(failed)} of {len(results)} responses, more than reward.max_failure_share={limit:g}; "
        f"the last failure: {failed[-1].detail}"
    )
