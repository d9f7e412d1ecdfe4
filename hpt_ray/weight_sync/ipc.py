"""A process group between processes that share a GPU or, on CPUs, a node: broadcasts lie in memory that all open.

In: buffers, as gloo's group takes them. Out: their bytes in the receivers' buffers, copied once and by no socket. gloo
carries a handle of the memory, and then the word that everybody has copied; so members meet, prove that they belong to
the run, wait and give up as in a group of gloo's.

On CPUs the memory is a file without a name, which the kernel opens to the same user alone and frees with the last
process that has it. On a GPU it is what CUDA IPC opens. Each handle of that kind is for one receiver, which must see
the sender's GPU. Of a sender that is killed there a file of torch's counters (80 kB) stays in /dev/shm; a receiver
that is killed in the middle of a copy leaves its bucket in the sender's memory.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

MESSAGE_BYTES = 16384  # a handle of CUDA's has some hundred; more with expandable segments


class IpcGroup(dist.ProcessGroupGloo):
    """One member. Everything but a broadcast is gloo's."""

    def broadcast(self, buffers: list[torch.Tensor], options: dist.BroadcastOptions) -> Any:
        """Done at the sender once nobody reads `buffers[0]` any more, at a receiver once its bytes are there."""
        (buffer,) = buffers
        sends = self.rank() == options.rootRank
        message = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
        if sends and self.size() > 1:  # what nobody opens CUDA would keep
            encoded = repr(_export(buffer)).encode()
            message[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        told = super().broadcast([message], options)  # type: ignore[misc]  # torch's stubs lack gloo's calls
        limit = dist.BarrierOptions()
        limit.timeout = options.timeout

        def say_copied() -> Any:
            return self.barrier(limit)  # type: ignore[attr-defined]

        if sends:
            return _Sent(told, say_copied(), buffer)
        return _Received(told, message, buffer, say_copied)


@dataclass
class _Sent:
    told: dist.Work
    copied: dist.Work
    buffer: torch.Tensor  # lives as long as it may be read

    def is_completed(self) -> bool:
        return self.told.is_completed() and self.copied.is_completed()

    def wait(self) -> None:
        self.told.wait()
        self.copied.wait()


@dataclass
class _Received:
    """Complete when there is something to copy, which `wait` does."""

    told: dist.Work
    message: torch.Tensor
    buffer: torch.Tensor
    say_copied: Callable[[], dist.Work]

    def is_completed(self) -> bool:
        return self.told.is_completed()

    def wait(self) -> None:
        self.told.wait()
        handle = ast.literal_eval(self.message.numpy().tobytes().rstrip(b"\0").decode())
        memory = _opened(handle, self.buffer.device)
        self.buffer.copy_(memory[: self.buffer.numel()])
        if self.buffer.is_cuda:
            torch.cuda.synchronize(self.buffer.device)  # the copy has ended, not only begun
        del memory  # the sender may free it once it is told
        self.say_copied()


def _export(buffer: torch.Tensor) -> tuple[Any, ...]:
    """What another process opens the storage of `buffer` by. On a CPU it moves to shared memory the first time."""
    storage = buffer.untyped_storage()
    if buffer.is_cuda:
        torch.cuda.synchronize(buffer.device)  # what was packed is there
        return storage._share_cuda_()
    descriptor, size = storage._share_fd_cpu_()
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    return path, os.readlink(path), size


def _opened(handle: tuple[Any, ...], device: torch.device) -> torch.Tensor:
    """The sender's memory, uint8. Raises `RuntimeError` where it is not there, or not on this node."""
    if device.type == "cuda":
        # The first place is the GPU's number at the sender; here it may have another.
        storage = torch.UntypedStorage._new_shared_cuda(device.index, *handle[1:])
        return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
    path, name, size = handle
    try:
        is_there = os.readlink(path) == name  # else it is of a process on this node that has the same number
    except OSError:
        is_there = False
    if not is_there:
        raise RuntimeError(f"the sender's memory ({path}) is not on this node, or the sender has ended")
    return torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
