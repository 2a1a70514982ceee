"""What a run's gallery shows: the same seeds over images seen, grids by class or prompt, the
training images that made ones are nearest to, the best and the worst images.

Pictures are uint8 [C, H, W], each a function of its seed, its condition and the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sid_ray.config.sections import EvaluationConfig
from sid_ray.data.source import DataSource
from sid_ray.errors import UserError
from sid_ray.evaluation.blocks import Bench, Job
from sid_ray.evaluation.judge import Judge, Look
from sid_ray.evaluation.neighbours import find_neighbours, pictures_at
from sid_ray.evaluation.pictures import sheet_samples
from sid_ray.evaluation.samplers import (
    Sampler,
    generator_sampler,
    index_of,
    inputs_of_seeds,
    sample_in_batches,
)
from sid_ray.evaluation.scored_network import scored_on
from sid_ray.evaluation.subject import find_subject
from sid_ray.metrics.spec import metric_spec
from sid_ray.metrics.sums import BLOCK
from sid_ray.training.assemble import generation_of
from sid_ray.weights.folder import load_model

COPIES, NEAREST = 12, 3  # made images beside real ones, and as many of these for each
EXTREMES = 8  # best images, and worst
ROWS, COLUMNS = 10, 8  # of a grid: classes or prompts, seeds
OTHER_SPACE = "name another network with --feature-space"


class Picture(NamedTuple):
    """An image, and what is known of it in words."""

    image: Tensor
    words: str


@dataclass(frozen=True)
class PictureRow:
    """Images that belong together, like those of a class."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class NearImages:
    """Made images (the first of each row) beside the real ones that are nearest, nearest first.

    Attributes:
        usual: how far real images are from one another: median to the nearest.
        space: in whose features.
        trouble: why there are none.
    """

    rows: Sequence[PictureRow] = ()
    usual: float = 0.0
    space: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Ranking:
    """The best and the worst images by a score."""

    score: str
    best: Sequence[Picture]
    worst: Sequence[Picture]


@dataclass(frozen=True)
class Asked:
    """What a gallery is made of. ``images``: made ones that are compared and ranked, up to 256."""

    evaluation: EvaluationConfig
    images: int = BLOCK
    prompts: Sequence[str] = ()


@dataclass
class Studio:
    """Makes the pictures of a run's generator.

    Args:
        address: of the run or one of its checkpoints.
        asked: what is shown.
        tell: told in a line what takes long.

    Raises UserError where weights, data set, VAE, text encoder or a metric's network are missing.
    """

    address: str
    asked: Asked
    device: torch.device
    tell: Callable[[str], None]
    bench: Bench = field(init=False)
    images_seen: int = field(init=False)

    def __post_init__(self) -> None:
        subject = find_subject(self.address)
        if subject.config is None:
            raise UserError(f"{self.address} is of no run: name a run's folder")
        config = dataclasses.replace(subject.config, evaluation=self.asked.evaluation)
        self.images_seen = subject.images_seen or 0
        network, _ = load_model(subject.network)
        self.bench = Bench(Job(subject, config), network, self.device, self.tell)

    @property
    def judge(self) -> Judge:
        return self.bench.judge

    @property
    def by(self) -> str:
        """What the rows of the grid differ in: class, prompt, or empty for nothing."""
        source = self.judge.source
        if self.asked.prompts or (source.has_prompts and not source.label_dim):
            return "prompt"
        return "class" if source.label_dim else ""

    def sheet(self, checkpoint: str) -> tuple[int, Tensor]:
        """(columns, images [N, C, H, W]) of the contact sheet, by another checkpoint's weights.

        The seeds and conditions are those of the run's own sheets. Raises UserError where the
        checkpoint is damaged.
        """
        subject = find_subject(checkpoint)
        network, _ = load_model(subject.network)
        net = scored_on(network, subject.description, self.bench.job.config, self.device)
        columns, index = sheet_samples(self.judge.source, self.judge.resolution)
        sampler = generator_sampler(net, *generation_of(subject.description))
        return columns, self.judge.images(sampler, range(len(index)), index)

    def grid(self) -> list[PictureRow]:
        """A row per class or prompt, a column per seed; one row where there are neither."""
        source, titles, index = conditions(self.judge.source, self.asked.prompts)
        seeds = range(COLUMNS)
        rows = []
        for title, chosen in zip(titles, index.tolist(), strict=True):
            same = torch.full((COLUMNS,), chosen)
            images = images_of(self.judge, self.bench.sampler, source, seeds, same)
            words = [f"{title}, seed {seed}" if title else f"seed {seed}" for seed in seeds]
            rows.append(PictureRow(title, list(map(Picture, images, words))))
        return rows

    def looked_at(self) -> tuple[Tensor, list[str], Look]:
        """Images of the evaluation's seeds, the words that each was made of, and what metrics see
        in them.
        """
        seeds, source = range(self.asked.images), self.judge.source
        index = index_of(source, seeds)
        captions = source.captions(index)
        images = self.judge.images(self.bench.sampler, seeds, index)
        look = self.judge.look_at(images, captions)
        words = captions or class_words(source, index)
        named = [f"{text}, seed {s}" if text else f"seed {s}" for s, text in enumerate(words)]
        return images, named, look

    def copies(self, images: Tensor, words: Sequence[str], look: Look) -> NearImages:
        """The made images that are nearest to a training image."""
        real, space = self.judge.real, self.judge.extractor.space
        try:
            features = real.seen.features
        except UserError as error:
            return NearImages(trouble=str(error))
        assert features is not None and real.source is not None
        found = find_neighbours(look.features, features.array(), NEAREST)
        first = np.argsort(found.distances[:, 0], kind="stable")[:COPIES].tolist()
        shown = pictures_at(real.source.pictures(self.tell), found.numbers[first].ravel().tolist())
        rows = []
        for made in first:
            beside = [
                Picture(shown[number], f"training image {number}, distance {distance:.3g}")
                for number, distance in zip(
                    found.numbers[made].tolist(), found.distances[made].tolist(), strict=True
                )
            ]
            rows.append(PictureRow(words[made], [Picture(images[made], words[made]), *beside]))
        return NearImages(rows, found.usual, space)

    def rankings(self, images: Tensor, words: Sequence[str], look: Look) -> list[Ranking]:
        """By every metric that scores single images, the best ones first."""
        found = []
        for name, values in look.own.items():
            spec = metric_spec(name)
            if not spec.by_image:
                continue
            score = spec.scores[0]
            order = np.argsort(values[:, 0], kind="stable").tolist()
            ordered = [
                Picture(images[i], f"{words[i]}: {values[i, 0]:.{score.digits}}") for i in order
            ]
            down = ordered[::-1] if score.larger_is_better else ordered
            found.append(Ranking(score.name, down[:EXTREMES], down[::-1][:EXTREMES]))
        return found


def images_of(
    judge: Judge, sampler: Sampler, source: DataSource, seeds: Sequence[int], index: Tensor
) -> Tensor:
    """As ``Judge.images``, with the conditions of another set's samples ``index`` [N]."""
    inputs = inputs_of_seeds(source, seeds, index, judge.num_steps).to(judge.device)
    made = sample_in_batches(sampler, inputs, judge.batch, pad=True)
    return judge.codec.decode_uint8(made).cpu()


def conditions(source: DataSource, prompts: Sequence[str]) -> tuple[DataSource, list[str], Tensor]:
    """Of a grid: the set that its conditions are of, a title for each of them, and their samples.

    Of many classes or prompts some are taken, evenly apart. Raises UserError for ``prompts`` that
    nothing reads.
    """
    if prompts:
        if source.embed is None:
            raise UserError("--prompt: this generator reads no text here; leave it out")
        own = DataSource(source.shape, prompts=prompts, embed=source.embed)
        return own, list(prompts), torch.arange(len(prompts))
    apart = torch.linspace(0, len(source) - 1, min(ROWS, len(source))).round().long()
    if source.label_dim:
        columns, index = sheet_samples(source, 1)
        return source, class_words(source, index[:columns]), index[:columns]
    texts = source.captions(apart)
    if texts is None:
        return source, [""], apart[:1]
    return source, texts, apart


def class_words(source: DataSource, index: Tensor) -> list[str]:
    """Each sample's class by its name, or as 'class 3'; empty where there are no classes."""
    if not source.label_dim:
        return [""] * len(index)
    names = source.class_names
    numbers = source.labels(index).tolist()
    return [names[number] if number < len(names) else f"class {number}" for number in numbers]


def by_image(metrics: Sequence[str]) -> list[str]:
    """Those metrics that score single images."""
    return [name for name in metrics if metric_spec(name).by_image]
