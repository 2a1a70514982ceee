"""How good images are, by one protocol, whoever makes them: the evaluator beside the training, the
final report, sid-ray evaluate.

    judge = Judge(config.evaluation, source, codec)
    looks = [judge.look(sampler, seeds) for seeds in blocks(range(50_000))]   on any actors
    judge.scores(looks)

Images are made of seeds: latents, conditions drawn from the data set, and noise are functions of
the seed alone. They are truncated to 8 bits and looked at in blocks of 256, so that any number of
actors gives the same numbers.

Source: the protocol of EDM (arXiv:2206.00364) and SiD (arXiv:2404.04057): 50,000 images, labels of
the training set, statistics of the real images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from sid_ray.config.distill_config import asked_metrics
from sid_ray.config.sections import EvaluationConfig
from sid_ray.data.source import DataSource
from sid_ray.denoisers.codecs import Codec, IdentityCodec
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.evaluation.real_images import Real
from sid_ray.evaluation.samplers import Sampler, index_of, inputs_of_seeds, sample_in_batches
from sid_ray.metrics.extractors import Extractor, load_extractor
from sid_ray.metrics.scores import SeenBlocks, as_seen, combined, features_of
from sid_ray.metrics.spec import Evidence, Gauge, MetricSpec, Reads, metric_spec
from sid_ray.metrics.sums import BLOCK
from sid_ray.weights.address import parse_source
from sid_ray.weights.components import check_vae_suits, component_folder, open_vae
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.sources import resolve_source


class Look(NamedTuple):
    """Of one block of images: features [N, D], logits [N, classes] or None where no metric reads
    them, and by metric what it looked at itself [N, its D], all float32.
    """

    features: NDArray
    logits: NDArray | None
    own: Mapping[str, NDArray]


def seed_blocks(seeds: range) -> Iterator[range]:
    """Seeds in blocks of 256; the last one may be shorter."""
    return (seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK))


def open_extractor(chosen: EvaluationConfig, device: torch.device | str = "cpu") -> Extractor:
    """The config's feature space. Raises UserError."""
    named = chosen.feature_weights
    path = resolve_source(named) if named else None
    sha256 = parse_source(named).sha256 if named else None
    return load_extractor(chosen.feature_space, device, path, sha256 or "")


def codec_of(
    description: ModelDescription,
    vae: str | Path | None,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> Codec:
    """From the space of a denoiser to pixels, with the VAE of a folder.

    ``precision``: of the denoiser.

    Raises UserError where latents are to be decoded and there is no VAE, or that of others.
    """
    family = family_of(description.family)
    if not family.makes_latents(description.network):
        return IdentityCodec()
    if not vae:
        raise UserError(
            "images are judged as pixels, this network makes latents: name a diffusers folder with "
            "their vae (evaluation.vae or teacher.vae of a run, else --vae FOLDER)"
        )
    check_vae_suits(description, component_folder(vae, "vae"))
    return open_vae(str(vae), family.latent_convention().name, str(device), precision)


class Judge:
    """What every set of images is judged by.

    Args:
        chosen: metrics, feature space, reference, number of images, batch.
        source: the data set, whose labels or prompts images are made of.
        codec: from the denoiser's space to pixels.
        num_steps: evaluations of a generator an image; 1 for teachers.
        tell: told in a line what takes long.

    Raises UserError for an unknown metric, or networks that are missing.
    """

    def __init__(
        self,
        chosen: EvaluationConfig,
        source: DataSource,
        codec: Codec | None = None,
        num_steps: int = 1,
        device: torch.device | str = "cpu",
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.tell = tell
        self.chosen, self.source, self.num_steps = chosen, source, num_steps
        self.device = torch.device(device)
        self.codec: Codec = codec or IdentityCodec()
        self.metrics = asked_metrics(chosen.metrics)
        self.specs = [metric_spec(name) for name in self.metrics]
        self.extractor = open_extractor(chosen, self.device)
        self.gauges = self._gauges()

    def _gauges(self) -> dict[str, Gauge]:
        """By metric, of those that look at images themselves."""
        for spec in self.specs:
            spec.check(self.chosen)
        for name in self.that_read("prompts"):
            if not self.source.has_prompts:
                raise UserError(
                    f"metric {name} compares images with prompts; this data set has none"
                )
        opened = ((spec.name, spec.open) for spec in self.specs if spec.open is not None)
        return {name: open_gauge(self.chosen, self.device) for name, open_gauge in opened}

    def that_read(self, what: Reads) -> list[str]:
        """The asked metrics that read something, by name."""
        return [spec.name for spec in self.specs if what in spec.reads]

    @property
    def resolution(self) -> int:
        """Pixels a side of the pictures."""
        return self.codec.picture_shape(self.source.shape)[-1]

    def protocol(self, seeds: range) -> dict[str, Any]:
        """What the scores of these seeds mean: how they could be made again."""
        return {
            "metrics": list(self.metrics),
            "feature_space": self.extractor.name,
            "extractor": self.extractor.identity,
            "num_images": len(seeds),
            "seeds": f"{seeds.start}-{seeds.stop - 1}",
            "batch_size": self.batch,
            **self.real.description,
        }

    @property
    def batch(self) -> int:
        return min(self.chosen.batch_size, BLOCK)

    @property
    def seeds(self) -> range:
        """Of the images of an evaluation while training, and of the first trial."""
        return range(self.chosen.num_images)

    @property
    def primary(self) -> str:
        """The name of the score that the best weights are kept by."""
        return self.specs[0].scores[0].named_in(self.extractor.space)

    def images(self, sampler: Sampler, seeds: Sequence[int], index: Tensor | None = None) -> Tensor:
        """Pictures uint8 [N, C, H, W], on the CPU.

        Of the data set's samples ``index`` [N]; without it drawn from them by the seeds.
        """
        inputs = inputs_of_seeds(
            self.source,
            seeds,
            index_of(self.source, seeds) if index is None else index,
            self.num_steps,
        ).to(self.device)
        made = sample_in_batches(sampler, inputs, self.batch, pad=True)
        return self.codec.decode_uint8(made).cpu()

    def look(self, sampler: Sampler, seeds: Sequence[int]) -> Look:
        """What the metrics need of one block of images, up to 256."""
        texts = None
        if self.that_read("prompts"):
            texts = self.source.captions(index_of(self.source, seeds))
        return self.look_at(self.images(sampler, seeds), texts)

    def look_at(self, images: Tensor, texts: Sequence[str] | None = None) -> Look:
        """What the metrics need of one block of pictures uint8 [N, C, H, W], and their texts."""
        features, logits = features_of(self.extractor, images)
        own = {name: gauge.look(images, texts) for name, gauge in self.gauges.items()}
        return Look(features, logits if self.that_read("classes") else None, own)

    @cached_property
    def real(self) -> Real:
        """What the made images are compared with. Raises UserError where there is nothing."""
        return Real(self.chosen.reference, self.source, self.extractor, self.tell)

    def check(self) -> None:
        """Raises UserError where the reference or the feature space cannot serve the metrics,
        before images are made.
        """
        for name in self.that_read("classes"):
            if not self.extractor.classes:
                raise UserError(
                    f"metric {name} needs a classifier, {self.extractor.name} is none: choose "
                    "another feature space"
                )
        shape = self.codec.picture_shape(self.source.shape)
        features_of(self.extractor, torch.zeros(1, *shape, dtype=torch.uint8))
        if self.that_read("reference statistics"):
            self.real.check()
        if self.that_read("reference images"):
            self.real.check(samples=True)

    def scores(self, looks: Iterable[Look]) -> dict[str, float]:
        """Scores by name, of the blocks in the order of the seeds.

        Raises UserError for too few images.
        """
        held = list(looks)
        keep = bool(self.that_read("reference images"))
        made = combined(
            as_seen(each.features, each.logits, block, keep) for block, each in enumerate(held)
        )
        found: dict[str, float] = {}
        for spec in self.specs:
            own = [each.own[spec.name] for each in held if spec.name in each.own]
            found |= spec.scored(self._evidence(spec, made, own))
        return found

    def _evidence(self, spec: MetricSpec, made: SeenBlocks, own: Sequence[NDArray]) -> Evidence:
        """What a metric's scores are taken from."""

        def own_of_real() -> NDArray:
            return self.real.looked_at(self.gauges[spec.name])

        space, device = self.extractor.space, str(self.device)
        return Evidence(space, made, own, lambda: self.real, device, own_of_real)
