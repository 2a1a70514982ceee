"""What a person asks of ``sid-ray gallery``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval
from tyro.conf import Positional, arg

from sid_ray.commands.arguments import is_address
from sid_ray.device.choice import Device
from sid_ray.errors import UserError
from sid_ray.storage.places import check_file


@dataclass(frozen=True)
class GalleryOptions:
    """Writes a page with a run's pictures: the same seeds over images seen, grids by class or
    prompt, the training images that made ones are nearest to, the best and the worst by score.
    """

    run: Annotated[str, Positional, arg(metavar="RUN")]
    """A run's folder: a path or s3://."""
    out: Path = Path("gallery.html")
    """The page; nothing else belongs to it."""
    prompt: str = ""
    """Texts for the grid of a text-to-image generator, | between them; empty for some of its data
    set."""
    images: Annotated[int, Interval(ge=8, le=256)] = 256
    """Made images that are held against training images and ranked by score."""
    frames: Annotated[int, Interval(ge=1, le=200)] = 40
    """Contact sheets over images seen, at most; of more, some evenly apart."""
    metrics: str = ""
    """Scores to rank images by, a comma between: clip, pickscore, hpsv2, or one of an installed
    package that scores single images. Empty for those of the run that do."""
    clip_weights: str = ""
    """clip: a CLIP network, as evaluation.clip_weights. Empty for the run's."""
    metric_weights: str = ""
    """Networks of other metrics, as evaluation.metric_weights. Empty for the run's."""
    feature_space: str = ""
    """Network in whose features the nearest training images are found. Empty for the run's."""
    reference: str = ""
    """Prepared data set of those training images. Empty for the run's reference, or its own
    images."""
    device: Device = "auto"
    """auto: a GPU where there is one."""

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is opened."""
        if is_address(self.out):
            raise UserError(
                f"--out {self.out}: the page is a file on this machine's disk; name one"
            )
        check_file(self.out, "--out")
