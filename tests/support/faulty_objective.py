"""SiD whose loss fails on one rank, as a broken machine or too large a pass makes it fail.

What fails is said by the environment, which workers of a run's own Ray inherit:

    FAULT=raise:IMAGES:FILE   rank 1 raises once, when so many images were seen; FILE notes when
    FAULT=memory:SAMPLES      rank 1 runs out of memory in a pass of more samples
    FAULT_LIKE_NCCL=1         a process group is left in peace when what is pending in it ends
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from sid_ray.objectives.sid import SiD
from sid_ray.objectives.spec import ObjectiveSpec

FAULT, LIKE_NCCL = "FAULT", "FAULT_LIKE_NCCL"
PENDING_S = 120.0


def wait_for_what_is_pending(*_: Any) -> None:
    """As ncclCommFinalize, beside a collective whose other rank never comes."""
    time.sleep(PENDING_S)


class Faulty(SiD):
    """SiD, with the fault of this process."""

    def fake_loss(self, nets: Any, batch: Any, draw: Any, scope: Any) -> Any:
        kind, _, rest = os.environ.get(FAULT, "").partition(":")
        if kind and torch.distributed.get_rank() == 1:
            if os.environ.get(LIKE_NCCL):
                torch.distributed.destroy_process_group = wait_for_what_is_pending
            if kind == "memory" and len(draw.time) > int(rest):
                raise torch.OutOfMemoryError("CUDA out of memory, or so a test says")
            images, _, file = rest.partition(":")
            if kind == "raise" and scope.images_seen >= int(images) and not Path(file).exists():
                Path(file).write_text(str(time.time()))
                raise ValueError("this rank fails, or so a test says")
        elif kind and os.environ.get(LIKE_NCCL):
            torch.distributed.destroy_process_group = wait_for_what_is_pending
        return super().fake_loss(nets, batch, draw, scope)


FAULTY = ObjectiveSpec("faulty", "Faulty", "SiD on a faulty machine", Faulty.of)


def entry_point(folder: Path) -> Path:
    """A folder that, on PYTHONPATH, names the objective to every process."""
    info = folder / "faulty-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    target = "tests.support.faulty_objective:FAULTY"
    (info / "entry_points.txt").write_text(f"[sid_ray.objectives]\nfaulty = {target}\n")
    return folder


def flags(run: str, folder: Path) -> list[str]:
    """The command: two workers, ten iterations of four groups."""
    return [
        sys.executable, "-m", "sid_ray.cli", "distill", "digits-sid", "--run", run,
        "--output.folder", str(folder), "--objective.name", "faulty", "--images", "640",
        "--training.batch-size", "64", "--training.group-size", "16",
        "--output.checkpoint-every", "320", "--output.report-every", "128",
        "--evaluation.every", "0", "--evaluation.no-final-report",
    ]  # fmt: skip
