"""SiD-LSG: where long and short guidance enter the two losses (arXiv:2406.01561).

Symbols
    kappa1   guidance of the fake score in its own loss          (short, below 1)
    kappa2   guidance of the fake score within Delta             f_phi - f_psi
    kappa3   guidance of the fake score in the second factor     f_psi - y
    kappa4   guidance of the teacher                             (long, above 1)

Long: kappa4 > 1, the others 1. Short: kappa1 < 1, the others 1. Long-Short: all four alike, above
1. Zero-CFG (arXiv:2505.12674): kappa4 = 1, the others 0: the fake score never sees the text.
Anti-CFG: kappa4 = 1, the others negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.denoisers.guidance import Guided
from sid_ray.types import Batch, Condition, Denoiser, Draw, Level, Prediction, Want


@dataclass(frozen=True)
class Guidance:
    """Which score is guided by how much; with all scales 1 nothing is changed anywhere.

    Args:
        kappa1, kappa2, kappa3, kappa4: the scales, see above.
        text_dropout: share of prompts that the fake-score phase replaces by the empty one, where
            the fake score is guided at all.
        null_text: [T, D], the empty prompt's embedding; None for networks that read no text.
        told: whether networks are told the scale, so that each scale takes a pass of its own.
        zero_keeps_text: Guided's.
    """

    kappa1: float = 1.0
    kappa2: float = 1.0
    kappa3: float = 1.0
    kappa4: float = 1.0
    text_dropout: float = 0.1
    null_text: Tensor | None = None
    told: bool = False
    zero_keeps_text: bool = False

    @property
    def drops_text(self) -> bool:
        return (self.kappa1, self.kappa2, self.kappa3) != (1, 1, 1) and self.text_dropout > 0

    def drop_text(self, batch: Batch, draw: Draw) -> Batch:
        """The batch of a fake-score phase, some prompts empty."""
        if not self.drops_text:
            return batch
        assert batch.text is not None and draw.text_uniform is not None
        dropped = (draw.text_uniform < self.text_dropout)[:, None, None]
        return batch._replace(text=torch.where(dropped, self._null(batch.text), batch.text))

    def own(self, fake_score: Denoiser) -> Denoiser:
        """The fake score as its own loss sees it."""
        return self._guided(fake_score, self.kappa1)

    def teacher(self, teacher: Denoiser) -> Denoiser:
        return self._guided(teacher, self.kappa4)

    def frozen(
        self, fake_score: Denoiser, x_t: Tensor, level: Level, cond: Condition, want: Want
    ) -> tuple[Prediction, Tensor | None]:
        """The fake score in the generator's loss: (by kappa2, x_0 by kappa3 where it differs)."""
        guided = self._guided(fake_score, self.kappa2)
        if self.kappa2 == self.kappa3 or Want.X0 not in want:
            return guided(x_t, level, cond, want), None
        if self.told:
            second = self._guided(fake_score, self.kappa3)(x_t, level, cond, Want.X0).x0
            return guided(x_t, level, cond, want), second
        both = Guided(fake_score, self.kappa2, self._null()).halves(x_t, level, cond, want)
        return Guided.mix(*both, self.kappa2), Guided.mix(*both, self.kappa3).x0

    def _guided(self, denoiser: Denoiser, scale: float) -> Denoiser:
        if scale == 1:
            return denoiser
        return Guided(denoiser, scale, self._null(), self.zero_keeps_text)

    def _null(self, like: Tensor | None = None) -> Tensor:
        if self.null_text is None:
            raise ValueError("guidance needs the empty prompt's embedding, got None")
        return self.null_text if like is None else self.null_text.to(like)


PLAIN = Guidance()
