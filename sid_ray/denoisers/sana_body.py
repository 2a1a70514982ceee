"""Diffusers' SanaTransformer2DModel up to its last projection.

Imports diffusers: this file is imported inside functions only.
"""

from __future__ import annotations

from diffusers import SanaTransformer2DModel
from torch import Tensor

from sid_ray.denoisers.flow_transformer import run_layer


class SanaBody(SanaTransformer2DModel):
    """The network as it is, but for what a call returns: the states before ``proj_out``.

    A subclass, as the last modulation reads a parameter of the network itself, which an engine that
    shards weights gathers in a call of the network alone.
    """

    def forward(  # type: ignore[override,unused-ignore]
        self, x: Tensor, timestep: Tensor, text: Tensor, mask: Tensor
    ) -> Tensor:
        """x [B, C, H, W], timestep [B], text [B, L, E], mask [B, L] of 0 and 1 -> [B, N, D]."""
        patch = self.config.patch_size
        rows, columns = x.shape[2] // patch, x.shape[3] // patch
        bias = ((1 - mask) * -10000.0).unsqueeze(1)  # [B, 1, L], added to attention's scores
        tokens = self.patch_embed(x)
        modulation, emb = self.time_embed(timestep, hidden_dtype=x.dtype)
        text = self.caption_norm(self.caption_projection(text))
        for block in self.transformer_blocks:
            tokens = run_layer(self, block, tokens, None, text, bias, modulation, rows, columns)
        return self.norm_out(tokens, emb, self.scale_shift_table)
