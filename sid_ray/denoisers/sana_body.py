"""Diffusers' SanaTransformer2DModel up to its last projection, and its linear attention.

Imports diffusers: this file is imported inside functions only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SanaTransformer2DModel
from torch import Tensor

from sid_ray.denoisers.flow_transformer import in_float32, run_layer


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


class LinearAttention:
    """relu(q) against relu(k) without a softmax, in float32 in every precision.

    As diffusers computes it, to the bit, but for autocast, which would have its sums over all
    tokens in half precision: they overflow float16, where the divisor's 1e-15 is zero, too.
    """

    def __call__(self, attn: Any, hidden_states: Tensor, *unused: Any, **others: Any) -> Tensor:
        """hidden_states [B, N, D] -> [B, N, D]; attention is within the image."""
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        with in_float32(hidden_states.device):
            heads = (value.transpose(1, 2).unflatten(1, (attn.heads, -1)) for value in (q, k, v))
            q, k, v = (value.float() for value in heads)  # [B, heads, d, N]
            v = F.pad(v, (0, 0, 0, 1), value=1.0)  # a row of ones: the divisor in the same product
            out = (v @ k.relu().transpose(2, 3)) @ q.relu()
            out = out[:, :, :-1] / (out[:, :, -1:] + 1e-15)
        out = attn.to_out[0](out.flatten(1, 2).transpose(1, 2).to(hidden_states.dtype))
        return out.clip(-65504, 65504) if out.dtype == torch.float16 else out
