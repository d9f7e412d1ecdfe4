"""From a decided group to the samples the learner trains on."""

from __future__ import annotations

import numpy as np

from hpt_ray.types import Decision, Group, Sample


def samples_of(group: Group, decision: Decision, *, index: int) -> list[Sample]:
    """The samples of one prompt: its rollouts where α > 0, its demonstration where β > 0.

    `index` is the prompt's number within the optimizer step. Lost and aborted rollouts carry no
    samples. A demonstration has reward 1: it is correct by the data's word.
    """
    prompt = group.prompt
    samples = []
    if decision.rollout_weight > 0:
        for rollout, result in zip(group.rollouts, group.results, strict=True):
            if not rollout.finish.is_response or not len(rollout.token_ids):
                continue
            samples.append(
                Sample(
                    prompt_id=prompt.id,
                    token_ids=np.concatenate([prompt.token_ids, rollout.token_ids]).astype(np.int32),
                    prompt_length=len(prompt.token_ids),
                    old_logprobs=rollout.logprobs,
                    is_demo=False,
                    reward=result.score,
                    group=index,
                    weight=decision.rollout_weight,
                )
            )
    if decision.demo_weight > 0:
        assert prompt.demonstration is not None, f"the gate asked for a demonstration of {prompt.id}"
        demo = prompt.demonstration.token_ids
        samples.append(
            Sample(
                prompt_id=prompt.id,
                token_ids=np.concatenate([prompt.token_ids, demo]).astype(np.int32),
                prompt_length=len(prompt.token_ids),
                old_logprobs=np.full(len(demo), np.nan, np.float32),
                is_demo=True,
                reward=1.0,
                group=index,
                weight=decision.demo_weight,
            )
        )
    return samples
