"""What a person asks of ``sid-ray bench``, beside the config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from sid_ray.commands.arguments import OfRecipe


@dataclass(frozen=True)
class BenchOptions(OfRecipe):
    """Measures which settings are fastest on this machine, on random weights and noise: seconds of
    an iteration and peak memory of each, one change at a time from the best so far. Prints the
    table and the flags, and keeps them as a profile, which later runs of such a recipe on such a
    machine start with. What is set, by a flag or by the recipe, is not varied. Needs no Ray and
    downloads nothing.
    """

    minutes: Annotated[float, Gt(0)] = 5.0
    """About so long; what there was no time for is said."""
    json: Path | None = None
    """File for the table as JSON."""
    keep: bool = True
    """Keep the profile for later runs; --no-keep only prints."""
