"""What a person asks of ``sid-ray generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval
from tyro.conf import Positional, arg

from sid_ray.commands.arguments import is_address, number_list, typed_prompts, without_repeats
from sid_ray.data.options import MAX_CLASSES
from sid_ray.device.choice import Device
from sid_ray.errors import UserError
from sid_ray.storage.places import check_folder


@dataclass(frozen=True)
class GenerateOptions:
    """Makes images with a one-step generator: one PNG per seed, and grid.png of the first ones.

    The files come as they are made; the same command goes on where it was interrupted.
    """

    source: Annotated[str, Positional, arg(metavar="SOURCE")]
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
    """File with prompts, instead of --prompt: a text file with one per line, a table (.csv,
    .parquet) with a column caption, or .jsonl with one per line, like GenEval's."""
    out: Path = Path("samples")
    """Folder for the pictures. Those that the same generator has made there by the same settings
    are kept."""
    batch: Annotated[int, Interval(ge=1, le=4096)] = 64
    """Images made at once."""
    device: Device = "auto"
    """auto: a GPU where there is one. A seed's noise is the same on every device, a picture may
    differ in its last bits."""
    vae: str = ""
    """Diffusers folder whose vae turns latents into images; empty for the network's own folder, or
    its teacher's."""
    text_encoder: str = ""
    """Diffusers folder with the text_encoder and tokenizer of a network that reads text; empty for
    the network's own folder, or its teacher's."""
    base: str = ""
    """Of an adapter: another base of the same network, like a fine-tune; empty for the teacher that
    it was distilled from."""
    overwrite: bool = False
    """Remove the pictures of another generator, or of other settings, that are in the folder."""

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is opened."""
        if self.prompt and self.prompts is not None:
            raise UserError("--prompt and --prompts both name texts: give one of them")
        if is_address(self.out):
            raise UserError(f"--out {self.out}: pictures go to a folder on this machine's disk")
        check_folder(self.out, "--out")
        self.numbers()

    def numbers(self) -> tuple[Sequence[int], Sequence[int] | None]:
        """Seeds, and classes where some are named. Raises UserError."""
        classes = number_list(self.labels, "labels", MAX_CLASSES) if self.labels else None
        return without_repeats(number_list(self.seeds, "seeds")), classes

    def texts(self) -> Sequence[str]:
        """Prompts, typed or read. Raises UserError."""
        if self.prompts is None:
            return typed_prompts(self.prompt)
        from sid_ray.data.prompts import read_prompts

        return read_prompts(str(self.prompts))
