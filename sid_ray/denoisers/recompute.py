"""Activation checkpointing: blocks computed again in the backward pass instead of remembered.

What a block is given is kept, what is inside it is not. The numbers are the same to the bit:
dropout masks belong to the sample and the layer (dropout.py), no global random state is drawn from.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_around: Callable[[], AbstractContextManager[None]] = nullcontext


def set_recompute(module: nn.Module, on: bool) -> None:
    """Switches it for every block in module; what is no block is always remembered."""
    for layer in module.modules():
        if hasattr(layer, "recompute"):
            layer.recompute = on  # type: ignore[assignment]


def recompute_within(context: Callable[[], AbstractContextManager[None]]) -> None:
    """The context in which all blocks are computed again: for an engine that shards weights."""
    global _around
    _around = context


def run_block(block: nn.Module, *arguments: Any) -> Any:
    """block(*arguments), its inside remembered or not, as its ``recompute`` says."""
    if block.recompute and torch.is_grad_enabled():
        return recomputed(block, *arguments)
    return block(*arguments)


def recomputed(block: nn.Module, *arguments: Any) -> Any:
    """block(*arguments); its inside is computed again when a gradient asks for it."""
    # An engine's hooks come in pairs: where there are any, the second time must not end as soon as
    # the last tensor asked for is there.
    hooked = bool(block._forward_pre_hooks or block._forward_hooks)
    return checkpoint(
        block,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
        early_stop=not hooked,
        context_fn=lambda: (nullcontext(), _around()),
    )
