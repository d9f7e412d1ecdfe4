"""The learning rate as a pure function of the update's number, so that a resumed run goes on with it."""

from __future__ import annotations

from math import cos, pi

from hpt_ray.config.phases import Phase
from hpt_ray.config.training import LearnerConfig
from hpt_ray.learner.critic import optimizer_of


def learning_rates(phase: Phase, step: int, update: int) -> tuple[float, float]:
    """The rates of policy and critic in update `update` (from 0) of the run's step `step` (from 1).

    Each phase has its own schedule, from warm-up to end.
    """
    config, per_step = phase.config, phase.config.updates_per_step
    position = (step - phase.before - 1) * per_step + update, config.run.steps * per_step
    return learning_rate(config.learner, *position), learning_rate(optimizer_of(config), *position)


def learning_rate(config: LearnerConfig, update: int, num_updates: int) -> float:
    """The rate of update `update` (from 0) of `num_updates`.

    Linear warm-up over `warmup_steps` updates, then constant, or down to `min_lr_ratio` of the peak at
    the last update, on a line or half a cosine.
    """
    peak = config.learning_rate
    if update < config.warmup_steps:
        return peak * (update + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    done = (update - config.warmup_steps) / max(1, num_updates - 1 - config.warmup_steps)
    fall = min(1.0, done) if config.schedule == "linear" else 0.5 * (1 - cos(pi * min(1.0, done)))
    return peak * (1 - (1 - config.min_lr_ratio) * fall)
