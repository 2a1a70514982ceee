"""An evaluation of pictures that are there already: as blocks.py's, without a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.picture_sets import PictureSet
from sid_ray.data.source import DataSource
from sid_ray.device.numerics import set_numerics
from sid_ray.errors import UserError
from sid_ray.evaluation.blocks import FORMAT
from sid_ray.evaluation.judge import Judge, Look
from sid_ray.storage.s3 import set_endpoint


@dataclass(frozen=True)
class PictureJob:
    """Which pictures are measured, and how."""

    pictures: PictureSet
    config: DistillConfig

    def bench(
        self, weights: Any, device: torch.device | str, tell: Callable[[str], None]
    ) -> PictureBench:
        """``weights`` are of no network."""
        return PictureBench(self, device, tell)

    def about(self) -> dict[str, Any]:
        """Whose images they are, as a result records it."""
        found = self.pictures
        return {
            "source": found.samples.source,
            "run": None,
            "images_seen": None,
            "images_sha256": found.fingerprint,
            "shape": list(found.shape),
        }

    def how(self) -> dict[str, Any]:
        """What decides the images beside, as a result records it."""
        resolution = {"resolution": self.pictures.resolution} if self.pictures.resolution else {}
        return {"sampler": "the folder", **resolution, **self.pictures.notes}


class PictureBench:
    """Looks at blocks of pictures, in this process. Raises UserError."""

    def __init__(
        self,
        job: PictureJob,
        device: torch.device | str = "cpu",
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.job, self.pictures = job, job.pictures
        where = torch.device(device)
        if where.type == "cpu":
            torch.set_num_threads(1)  # the same rounding in every process
        set_numerics(job.config.resources.deterministic)
        set_endpoint(job.config.storage.endpoint_url, job.config.storage.region)
        source = DataSource(self.pictures.shape, prompts=self.pictures.captions)
        self.judge = Judge(job.config.evaluation, source, device=where, tell=tell)

    def look(self, seeds: range) -> Look:
        captions = self.pictures.captions
        texts = None if captions is None else [captions[index] for index in seeds]
        return self.judge.look_at(self.pictures.images(seeds), texts)

    def check(self) -> None:
        """Raises UserError for what could not be scored, before pictures are looked at."""
        self.judge.check()
        real = self.judge.real.source
        if real is not None and tuple(real.shape[-2:]) != self.pictures.shape[-2:]:
            (height, width), found = real.shape[-2:], self.pictures.shape
            raise UserError(
                f"{self.pictures.samples.source} holds images of {found[2]}x{found[1]} pixels, "
                f"--reference {self.judge.chosen.reference} of {width}x{height}: --resolution "
                f"{height} brings them to that size"
            )

    def key(self, device: str) -> str:
        """A digest of all that a block's numbers depend on but its place."""
        values = {
            "format": FORMAT,
            "pictures": self.pictures.fingerprint,
            "extractor": self.judge.extractor.identity,
            "device": device,
            "torch": torch.__version__,
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def protocol(self, seeds: range) -> dict[str, Any]:
        """What the scores mean; there are no seeds, and nothing is made in batches."""
        found = self.judge.protocol(seeds)
        return {name: found[name] for name in found if name not in ("seeds", "batch_size")}
