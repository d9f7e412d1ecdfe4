"""How a checkpoint of the ranks is cut up, and how it is cut anew for another number of them.

DeepSpeed writes one file a rank. For other ranks rank 0 turns them into DeepSpeed's universal form (one
folder a parameter with its float32 value and AdamW's two moments), which all ranks read their parts of; it
lies inside the checkpoint while it is needed. That form joins ZeRO 1 and 2; between them, 0 and 3 there is
no way.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hpt_ray.errors import UserError

LAYOUT = "layout.json"
UNIVERSAL = "universal"


@dataclass(frozen=True)
class Layout:
    """Over how many ranks, and by which ZeRO stage, the state is cut."""

    num_ranks: int
    zero_stage: int

    def write(self, folder: Path) -> None:
        (folder / LAYOUT).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Layout:
        return cls(**json.loads((folder / LAYOUT).read_text(encoding="utf-8")))

    def needs_conversion(self, saved: Layout, folder: Path) -> bool:
        """Whether ranks of this layout must have the state in `folder` cut anew.

        Raises `UserError` where that cannot be done.
        """
        if self == saved:
            return False
        if _family(self) != _family(saved):
            raise UserError(
                f"{folder} was written with ZeRO {saved.zero_stage} and cannot be continued with "
                f"learner.zero_stage={self.zero_stage}: set learner.zero_stage={saved.zero_stage}. The number "
                "of ranks may change."
            )
        return self.zero_stage > 0  # without ZeRO every rank reads the same file


def _family(layout: Layout) -> int:
    """Equal for layouts that have a universal form in common: ZeRO 1 and 2 do."""
    return min(layout.zero_stage, 1) if layout.zero_stage < 3 else 3


@contextmanager
def converted(folder: Path) -> Iterator[Path]:
    """The checkpoint in `folder` in universal form while the context lasts. Collective."""
    import torch.distributed as dist
    from deepspeed.checkpoint import ds_to_universal

    universal, is_first = folder / UNIVERSAL, dist.get_rank() == 0
    if is_first:
        shutil.rmtree(universal, ignore_errors=True)  # of an interrupted load
        ds_to_universal.main(
            Namespace(
                input_folder=str(folder / "state"),
                output_folder=str(universal / "state"),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # what only DeepSpeed's own training loops leave in a checkpoint
            )
        )
    dist.barrier()
    yield universal
    dist.barrier()
    if is_first:
        shutil.rmtree(universal)
