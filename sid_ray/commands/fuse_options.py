"""What a person asks of ``sid-ray weights fuse``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class FuseOptions:
    """Merges an adapter, or any LoRA, into a network's weights: W + scale * alpha / rank * B A.

    The result needs neither the adapter nor PEFT. A generator's adapter makes a generator.
    """

    base: Annotated[str, Positional, arg(metavar="BASE")]
    """The network: a path, builtin:NAME, https://, s3:// or hf://owner/repo/path[@revision]. The
    one that the adapter was distilled from, or another of the same architecture, as a fine-tune."""
    adapter: Annotated[str, Positional, arg(metavar="ADAPTER")]
    """A run, a checkpoint, RUN/best, RUN/model, or the file or folder of a LoRA, as --teacher.lora
    takes it."""
    destination: Annotated[Path, Positional, arg(metavar="DST")]
    """A name without a suffix for a folder, which has all parts of BASE where that is a diffusers
    folder; or NAME.safetensors (model.json comes beside it)."""
    scale: float = 1.0
    """Factor of the adapter; 1 is what it was trained for."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights that are written; they are summed in float64."""
    force: bool = False
    """Replace what is there."""
