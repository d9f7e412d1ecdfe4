"""AdamW that can be held still for an update, and that can pull the weights back to where training began.

The pull is L2-SP (arXiv 1802.01483) in the form that weight decay has in AdamW (arXiv 1711.05101), decoupled from the
moments, and towards the base θ₀ instead of 0. After each update

    θ ← θ − lr·κ·(θ − θ₀)

In: the tensors that are stepped, float32 masters or a rank's shards of them, and what they hold before the first step.
Each is pulled where it lies, so ranks need not meet. θ₀ is in no checkpoint: a resumed run loads the base anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 24  # numbers that are pulled or measured at a time: the temporaries stay small


class AdamW(torch.optim.AdamW):
    """With `base_pull` κ > 0, `remember_base` must come before the first step that counts."""

    is_held = False  # while DeepSpeed goes through its step, which clears the gradient

    def __init__(self, parameters: Iterable[Tensor], *, base_pull: float, **options: Any):
        super().__init__(parameters, **options)
        self._base_pull = base_pull
        self._base: dict[Tensor, Tensor] = {}

    def remember_base(self, masters: Iterable[Tensor], dtype: torch.dtype) -> None:
        """θ₀ is what these tensors hold now, in the precision that the model was loaded in."""
        if self._base_pull:
            self._base = {master: master.detach().to(dtype, copy=True) for master in masters}

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if self.is_held:
            return None
        self._keep_kernel()
        loss = super().step(closure)
        if self._base:
            for group in self.param_groups:
                share = min(1.0, group["lr"] * self._base_pull)
                for master in group["params"]:
                    for now, base in self._pieces(master):
                        now.lerp_(base, share)
        return loss

    def _keep_kernel(self) -> None:
        """A checkpoint brings its machine's choice, and step counts in host memory, where no GPU reads them."""
        fused = self.defaults["fused"]
        for group in self.param_groups:
            group["fused"] = fused
            for state in (self.state.get(master) for master in group["params"] if fused):
                if state:
                    device = state["exp_avg"].device
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=device)

    def base_distance(self) -> tuple[float, float]:
        """‖θ − θ₀‖² and ‖θ₀‖² over the tensors of this rank; 0 and 0 without a pull."""
        moved = length = 0.0
        for master in self._base:
            for now, base in self._pieces(master):
                moved += float((now - base).square().sum(dtype=torch.float64))
                length += float(base.square().sum(dtype=torch.float64))
        return moved, length

    def follow_masters(self) -> None:
        """θ₀ to the devices that the masters are on now."""
        self._base = {master: base.to(master.device) for master, base in self._base.items()}

    def _pieces(self, master: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of a tensor and of its θ₀, side by side in the tensor's precision."""
        now, base = master.detach().view(-1), self._base[master].view(-1)
        for a, b in zip(now.split(PIECE), base.split(PIECE), strict=True):
            yield a, b.to(a)
