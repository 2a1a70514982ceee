"""``MetricSpec``: all that the house asks of a metric, whoever wrote it.

A metric is one file with its spec; what it measures of images that no other metric needs, it looks
at itself:

    class Brightness:
        identity = "brightness"
        def look(self, images, texts): return images.float().mean((1, 2, 3))[:, None].numpy()

    def scored(evidence): return {"brightness": float(evidence.own_sums.mean[0])}

    TOY = MetricSpec(
        "brightness", "mean of all values", (Score("brightness", larger_is_better=True),), scored,
        open=lambda chosen, device: Brightness(),
    )

An entry point of the group sid_ray.metrics, or ``register_metric(TOY)``, makes it known. Every
block of images may be looked at by another process; scores are taken from the blocks in the order
of their samples. This file loads no torch; a spec that ships loads what it computes with when it
computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from sid_ray.config.registry import METRICS
from sid_ray.config.sections import EvaluationConfig
from sid_ray.errors import UserError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from sid_ray.metrics.reference import Statistics
    from sid_ray.metrics.scores import SeenBlocks
    from sid_ray.metrics.sums import FeatureSums

Reads = Literal["reference statistics", "reference images", "classes", "prompts"]


@dataclass(frozen=True)
class Score:
    """One of the numbers that a metric gives.

    Args:
        name: as tables and MLflow show it: FD, with the feature space behind it: FD-Lite0.
        larger_is_better: of two values.
        in_inception: what it is called where the features are those of FID's own network.
        of_space: whether it is taken in the feature space, and so is called after it.
        digits: as many are shown; 2 after the point for "2f".
        leads: whether it stands before the others, and in the line of a run's progress.
        beside: whether it says how far to trust the others, and is no score itself.
    """

    name: str
    larger_is_better: bool = False
    in_inception: str = ""
    of_space: bool = True
    digits: str = "4g"
    leads: bool = False
    beside: bool = False

    def __post_init__(self) -> None:
        if "-" in self.name:
            raise ValueError(f"score {self.name!r}: a - stands before the feature space only")

    def named_in(self, space: str) -> str:
        """FD-Lite0 in Lite0, FID in Inception."""
        if not self.of_space:
            return self.name
        if space == INCEPTION:
            return self.in_inception or self.name
        return f"{self.name}-{space}"


INCEPTION = "Inception"  # the space whose scores carry no name of a space: FID, KID, IS, ...


class Gauge(Protocol):
    """What a metric sees of made images by itself.

    Attributes:
        identity: of all that its numbers depend on beside the images, like a network's digest.
    """

    @property
    def identity(self) -> str: ...

    def look(self, images: Tensor, texts: Sequence[str] | None) -> NDArray:
        """Of up to 256 pictures uint8 [N, C, H, W] and their prompts: float32 [N, D].

        ``texts`` is None where the data set has no prompts.
        """
        ...


class RealImages(Protocol):
    """What made images are compared with. Both raise UserError where there is nothing."""

    @property
    def statistics(self) -> Statistics: ...

    @property
    def seen(self) -> SeenBlocks: ...


def nothing_real() -> NDArray:
    """``own_of_real`` where nobody has looked at real images. Raises UserError."""
    raise UserError("no real images were looked at: name a prepared data set as the reference")


@dataclass(frozen=True)
class Evidence:
    """All that a metric's scores are taken from.

    Args:
        space: of the feature network.
        made: sums of the made images' features; features and classes where some metric reads them.
        own: what the metric's Gauge saw, [N <= 256, D] block by block; empty without one.
        real: of the real images, opened by whoever asks.
        own_of_real: what the Gauge sees of the real images, [M, D]; raises UserError where there
            are none. For metrics that read reference images.
        device: on which images were looked at, for metrics that compare them one by one.
    """

    space: str
    made: SeenBlocks
    own: Sequence[NDArray]
    real: Callable[[], RealImages]
    device: str = "cpu"
    own_of_real: Callable[[], NDArray] = nothing_real

    @property
    def own_sums(self) -> FeatureSums:
        """Of what the Gauge saw, the same bits for any number of processes."""
        from sid_ray.metrics.sums import FeatureSums, merged

        return merged(FeatureSums.of_block(part, block) for block, part in enumerate(self.own))


def ready(chosen: EvaluationConfig) -> None:
    """``check`` of a metric that needs nothing of the config."""


@dataclass(frozen=True)
class MetricSpec:
    """A metric.

    Args:
        name: as evaluation.metrics has it.
        title: in --help, some words.
        scores: what it gives; the first stands for it where one number counts.
        scored: from what was seen to scores by name (``Score.named_in``). Raises UserError.
        reads: beside the made images and their features.
        open: (config's section, device) -> Gauge, for a metric that looks at images itself.
        check: raises UserError where the config lacks what it needs, before anything is opened.
        by_image: whether the first of the Gauge's numbers is the score of that image alone, so that
            images can be put in the order of their scores.
    """

    name: str
    title: str
    scores: tuple[Score, ...]
    scored: Callable[[Evidence], Mapping[str, float]]
    reads: frozenset[Reads] = frozenset()
    open: Callable[[EvaluationConfig, torch.device], Gauge] | None = None
    check: Callable[[EvaluationConfig], None] = ready
    by_image: bool = False


def metric_spec(name: str) -> MetricSpec:
    """The spec of a metric. Raises UserError for an unknown one."""
    return METRICS.get(name)


def metric_specs() -> tuple[MetricSpec, ...]:
    """All of them. Raises UserError where one cannot be loaded."""
    return METRICS.specs


def register_metric(spec: MetricSpec) -> None:
    """Makes a metric known in this process; for Ray's actors it takes an entry point.

    Raises UserError where another one has its name.
    """
    METRICS.register(spec)
