"""Classifier-free guidance as a denoiser around a denoiser, so that no objective branches on it.

Symbols
    kappa    guidance scale (kappa1..kappa4 in SiD-LSG)      T, D   tokens, width of an embedding
    f        whatever is predicted: x_0, epsilon or v        null   the empty prompt's embedding
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.types import Condition, Denoiser, Level, Prediction, Want

AFFINE = Want.X0 | Want.RAW  # what guidance changes


@dataclass(frozen=True)
class Guided:
    """f_kappa = f(null) + kappa * (f(text) - f(null)) (arXiv:2207.12598; SiD-LSG).

    x_0 is affine in epsilon and v at a given x_t, and the weights sum to one: guiding x_0 and
    guiding the raw prediction are the same thing, so this needs to know no family.

    Both halves run in one doubled batch; scale 1 is the text alone, scale 0 the empty prompt
    alone. Logits and logvar are those of the text half, whatever the scale.

    Args:
        denoiser: conditioned on ``cond.text``.
        scale: kappa; below 1 leans towards the empty prompt, below 0 away from the text.
        null_text: [T, D], the empty prompt's embedding.
        zero_keeps_text: scale 0 is the text, told a scale of 0: compat official on networks that
            are told it (SiD-DiT on FLUX).
    """

    denoiser: Denoiser
    scale: float
    null_text: Tensor
    zero_keeps_text: bool = False

    def __call__(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        if self.scale == 1 or not want & AFFINE:
            return self.denoiser(x_t, level, cond, want)
        if self.scale == 0 and self.zero_keeps_text:
            return self.denoiser(x_t, level, self._told(cond, x_t), want)
        null = self.null_text.to(x_t.device).expand(len(x_t), -1, -1)
        if self.scale == 0 and not want & ~AFFINE:
            return self.denoiser(x_t, level, self._told(cond, x_t)._replace(text=null), want)
        without, with_text = self.halves(x_t, level, cond, want)
        return self.mix(without, with_text, self.scale)

    def halves(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want
    ) -> tuple[Prediction, Prediction]:
        """(prediction for the empty prompt, prediction for the text) of one doubled batch."""
        if cond.text is None:
            raise ValueError(f"guidance with scale {self.scale} needs cond.text, got None")
        null = self.null_text.to(cond.text).expand(len(x_t), -1, -1)
        both = Condition(*(_twice(value) for value in self._told(cond, x_t)))
        both = both._replace(text=torch.cat([null, cond.text]))
        double_level = Level(*(torch.cat([value, value]) for value in level))
        out = self.denoiser(torch.cat([x_t, x_t]), double_level, both, want)
        pairs = [(None, None) if value is None else value.chunk(2) for value in out]
        without, with_text = zip(*pairs, strict=True)
        return Prediction(*without), Prediction(*with_text)

    def _told(self, cond: Condition, like: Tensor) -> Condition:
        """With the scale, for networks that are told it: both halves are, as published (SiD-DiT on
        FLUX).
        """
        wide = torch.promote_types(like.dtype, torch.float32)
        scale = torch.full((len(like),), self.scale, dtype=wide, device=like.device)
        return cond._replace(guidance=scale)

    @staticmethod
    def mix(without: Prediction, with_text: Prediction, scale: float) -> Prediction:
        """f(null) + scale * (f(text) - f(null)); logits and logvar are the text's."""

        def mixed(null: Tensor | None, text: Tensor | None) -> Tensor | None:
            return None if null is None or text is None else null + scale * (text - null)

        return with_text._replace(
            x0=mixed(without.x0, with_text.x0), raw=mixed(without.raw, with_text.raw)
        )


def _twice(value: Tensor | None) -> Tensor | None:
    return None if value is None else torch.cat([value, value])
