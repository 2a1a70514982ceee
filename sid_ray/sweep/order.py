"""What a sweep was asked to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sid_ray.config.distill_config import DistillConfig
from sid_ray.run_folder import own_folder
from sid_ray.storage.schemes import is_path
from sid_ray.sweep.space import Space


@dataclass(frozen=True)
class Order:
    """A sweep, checked.

    Args:
        name: its folder, and the beginning of its runs' names.
        space: with as many trials as were asked for; text: of its file.
        base: the recipe with what holds for all trials. output.folder is runs_folder's.
        concurrent: trials at once; each gets its share of the cluster's CPUs or GPUs.
    """

    name: str
    space: Space
    text: str
    base: DistillConfig
    concurrent: int

    @property
    def folder(self) -> Path:
        """Of the sweep: beside its runs, or for runs in S3 in the folder ``runs`` here."""
        runs = self.base.output.folder
        return (Path(runs) if is_path(runs) else own_folder()) / self.name
