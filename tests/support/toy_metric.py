"""A toy metric in one file, as a package beside sid_ray would bring it.

The mean of all values of the made pictures, 0 to 255. It looks at the pictures itself, block by
block, wherever they are made.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import NDArray
from torch import Tensor

from sid_ray.metrics.spec import Evidence, MetricSpec, Score

BRIGHTNESS = Score("brightness", larger_is_better=True, of_space=False, digits="1f")


class Gauge:
    identity = "mean-of-values"

    def look(self, images: Tensor, texts: Sequence[str] | None) -> NDArray:
        """Of pictures uint8 [N, C, H, W]: [N, 1]."""
        return images.float().mean((1, 2, 3))[:, None].numpy()


def scored(evidence: Evidence) -> dict[str, float]:
    return {BRIGHTNESS.name: float(evidence.own_sums.mean[0])}


TOY = MetricSpec(
    "toy",
    "mean of all values",
    (BRIGHTNESS,),
    scored,
    open=lambda chosen, device: Gauge(),
)
