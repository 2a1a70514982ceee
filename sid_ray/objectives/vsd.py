"""Variational score distillation, the baseline that SiD is compared with.

DMD (arXiv:2311.18828) without its regression loss and SwiftBrush (arXiv:2312.05239): the generator
follows the difference of the two scores alone; nothing is differentiated through them. Noise
levels, weights and the fake score's phase are SiD's, so that a comparison compares the losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sid_ray.diffusion.schedules import image_shape
from sid_ray.objectives.functional import vsd_generator_loss
from sid_ray.objectives.sid import Scored, SiD


@dataclass(frozen=True)
class VSD(SiD):
    """SiD with -Delta / w for the generator's gradient; alpha has no part in it."""

    through_scores: ClassVar[bool] = False

    def distillation_loss(self, seen: Scored) -> Tensor:
        loss = vsd_generator_loss(seen.y, seen.f_phi, seen.f_psi, seen.divisor)
        return (loss / image_shape(seen.u).exp()).sum()
