"""What the evaluator does with some weights: loads them, makes images, scores these."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from sid_ray.actors.build import teacher_here
from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.adapters import laid_over
from sid_ray.denoisers.precondition import precision_beside
from sid_ray.denoisers.registry import family_of
from sid_ray.device.numerics import set_numerics
from sid_ray.evaluation.judge import Judge, codec_of, seed_blocks
from sid_ray.evaluation.pictures import pixel_scale, sheet_samples, tile
from sid_ray.evaluation.samplers import generator_sampler
from sid_ray.evaluation.scored_network import scored_on
from sid_ray.storage.cache import file_sha256
from sid_ray.training.adapter_settings import noted_base, run_adapter
from sid_ray.training.assemble import components_of, data_of, schedule_of, teacher_at_resolution
from sid_ray.weights.folder import ModelDescription, load_model, load_weights

if TYPE_CHECKING:
    from sid_ray.actors.evaluator_settings import EvaluatorSettings


class Examined(NamedTuple):
    """What came of a look at some weights: scores and what they mean, and a contact sheet (PNG)."""

    result: dict[str, Any]
    sheet: bytes


class Examiner:
    """Scores weights of a run's generator. Raises UserError where something it needs is missing."""

    def __init__(
        self, settings: EvaluatorSettings, device: torch.device, tell: Callable[[str], None]
    ):
        config = DistillConfig.from_json(settings.config)
        set_numerics(config.resources.deterministic)
        teacher = settings.teacher
        folder = Path(teacher_here(config, settings.teacher_folder))
        net = self._network(config, folder, teacher)
        precision = precision_beside(config.training.precision, device)
        self.net = scored_on(net, teacher, config, device, fixed=False)  # weights come and go
        num_steps = config.objective.num_steps
        self.sampler = generator_sampler(self.net, schedule_of(config), num_steps)
        components = components_of(config, teacher, folder, settings.components)
        source = data_of(config, teacher, components, device).source
        codec = codec_of(teacher, config.evaluation.vae or components.vae, device, precision)
        self.judge = Judge(config.evaluation, source, codec, num_steps, device, tell)

    @staticmethod
    def _network(config: DistillConfig, folder: Path, teacher: ModelDescription) -> nn.Module:
        """What weights are loaded into: whole ones, or an adapter's over the teacher."""
        adapter = run_adapter(config, teacher.family) if config.adapter.of("generator") else None
        if adapter is None:
            return family_of(teacher.family).build(teacher.network).eval().requires_grad_(False)
        base, _ = teacher_at_resolution(config, load_model(folder), folder)
        said = adapter.to_json() | {"base": noted_base(config, teacher.family)}
        return laid_over(base, said).eval()

    def examine(self, weights: Path, images_seen: int) -> Examined:
        """Looks at the weights of a file."""
        began = time.monotonic()
        load_weights(self.net, weights)
        looks = [self.judge.look(self.sampler, seeds) for seeds in seed_blocks(self.judge.seeds)]
        result = {
            "images_seen": images_seen,
            "weights_sha256": file_sha256(weights),
            "scores": self.judge.scores(looks),
            **self.judge.protocol(self.judge.seeds),
            "seconds": round(time.monotonic() - began, 1),
        }
        return Examined(result, self._sheet())

    def _sheet(self) -> bytes:
        columns, index = sheet_samples(self.judge.source, self.judge.resolution)
        images = self.judge.images(self.sampler, range(len(index)), index)
        held = io.BytesIO()
        tile(images, columns, pixel_scale(images.shape[-1])).save(held, "PNG")
        return held.getvalue()
