"""What a person asks of ``sid-ray generate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sid_ray.errors import UserError

MOST_AT_ONCE = 4096  # images; every batch is filled up to its size


@dataclass(frozen=True)
class GenerateOptions:
    """Makes images with a one-step generator: one PNG per seed, and grid.png of the first ones.

    The files come as they are made; the same command goes on where it was interrupted.
    """

    source: str
    """A run's folder, one of its checkpoints, RUN/best, or a generator's weights: a path, https://,
    s3:// or hf://OWNER/REPO/PATH."""
    seeds: str = "0-63"
    """Seeds, like 0-63 or 1,5,10-19. A seed gives the same image in any call."""
    labels: str = ""
    """Classes dealt out by the seed's number, like 0-9; empty draws one for each seed."""
    prompt: str = ""
    """Text for a text-to-image generator; | stands between several, dealt out by the seed's number.
    """
    prompts: Path | None = None
    """Text file with a prompt a line, instead of --prompt."""
    out: Path = Path("samples")
    """Folder for the pictures. Those that the same generator has made there by the same settings
    are kept."""
    batch: int = 64
    """Images made at once."""
    vae: str = ""
    """Diffusers folder whose vae turns latents into images; empty for the network's own folder, or
    its teacher's."""
    text_encoder: str = ""
    """Diffusers folder with the text_encoder and tokenizer of a network that reads text; empty for
    the network's own folder, or its teacher's."""
    overwrite: bool = False
    """Remove the pictures of another generator, or of other settings, that are in the folder."""

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is opened."""
        if not 1 <= self.batch <= MOST_AT_ONCE:
            raise UserError(f"--batch {self.batch}: expected 1 to {MOST_AT_ONCE:,}")
        if self.prompt and self.prompts is not None:
            raise UserError("--prompt and --prompts both name texts: give one of them")
