"""A prompt as one tensor, whatever its encoders return: embeddings, a pooled embedding, a mask.

Everything between the text encoders and the network (caches, data sets, dropped prompts, guidance)
moves one tensor [T, D] a prompt and need not know what is in it. A family's encoders pack it, and
its denoiser unpacks it.

Symbols
    B, L, E   prompts, tokens, width of a token's embedding          P   width of the pooled one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Prompt(NamedTuple):
    """``tokens`` [B, L, E], ``pooled`` [B, P] or None, ``mask`` [B, L] of 0 and 1 or None."""

    tokens: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class PromptLayout:
    """Tokens in the first L rows, the mask in a column behind them, the pooled embedding in as many
    rows more as it fills.

    Args:
        tokens, width: L and E.
        pooled: P; 0 for none.
        masked: whether there is a mask.
    """

    tokens: int
    width: int
    pooled: int = 0
    masked: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(T, D) of a packed prompt."""
        columns = self.width + self.masked
        return self.tokens + -(-self.pooled // columns), columns

    def pack(self, prompt: Prompt) -> Tensor:
        """[B, T, D]. Raises ValueError for a prompt of another layout."""
        given = prompt.tokens.shape[1:], prompt.pooled is not None, prompt.mask is not None
        expected = (self.tokens, self.width), bool(self.pooled), self.masked
        if given != expected:
            raise ValueError(f"a prompt of (tokens, pooled, mask) {given}, expected {expected}")
        rows = prompt.tokens
        if prompt.mask is not None:
            rows = torch.cat([rows, prompt.mask[..., None].to(rows)], dim=2)
        if prompt.pooled is None:
            return rows
        count, columns = self.shape
        fill = (count - self.tokens) * columns - self.pooled
        more = pad(prompt.pooled.to(rows), (0, fill)).reshape(rows.shape[0], -1, columns)
        return torch.cat([rows, more], dim=1)

    def unpack(self, packed: Tensor) -> Prompt:
        """The inverse. Raises ValueError for a tensor of another shape."""
        if packed.shape[1:] != self.shape:
            raise ValueError(f"prompts {list(packed.shape)}, expected [B, *{list(self.shape)}]")
        tokens = packed[:, : self.tokens, : self.width]
        mask = packed[:, : self.tokens, self.width] if self.masked else None
        pooled = packed[:, self.tokens :].flatten(1)[:, : self.pooled] if self.pooled else None
        return Prompt(tokens, pooled, mask)
