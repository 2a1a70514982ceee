"""What a person asks of ``sid-ray weights inspect`` and ``sid-ray weights convert``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

Source = Annotated[str, Positional, arg(metavar="SRC")]


@dataclass(frozen=True)
class InspectOptions:
    """Shows what a weights file holds, and what unpickling it naively would have done."""

    source: Source
    """A path, builtin:NAME, https://, s3:// or hf://owner/repo/path[@revision]; #sha256=HEX behind
    it asks for exactly that file."""
    part: str | None = None
    """Which network of a training state: ema, G, fake_score or net."""


@dataclass(frozen=True)
class ConvertOptions:
    """Writes a network's weights as safetensors with its description."""

    source: Source
    """A path, builtin:NAME, https://, s3:// or hf://owner/repo/path[@revision]; #sha256=HEX behind
    it asks for exactly that file."""
    destination: Annotated[Path, Positional, arg(metavar="DST")]
    """NAME.safetensors (model.json comes beside it), or a name without a suffix for a folder."""
    part: str | None = None
    """Which network of a training state: ema, G, fake_score or net."""
    like: str | None = None
    """A source with the same network, where this one records none (SiDA's training states)."""
    force: bool = False
    """Replace what is there."""
