"""What a person asks of ``sid-ray data prepare``, and the bounds that every input is held to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sid_ray.denoisers.registry import convention_of
from sid_ray.errors import UserError

MIB = 1 << 20
MAX_SAMPLE_BYTES = 256 * MIB  # of one file of a source, packed or not
MAX_LIST_BYTES = 1024 * MIB  # of a file with labels, captions or prompts
MAX_PIXELS = 1 << 26  # of one picture, 8192 x 8192: a larger one is taken for a bomb
MAX_CLASSES = 100_000
MAX_PROMPT = 10_000  # characters

OFFLINE = ("digits", "emoji", "fashion-mnist")


@dataclass(frozen=True)
class PrepareOptions:
    """Makes a data set for training: Parquet files with a manifest, on a disk or in S3.

    The same command goes on where it was interrupted. Its files depend on the source and on the
    options alone, not on workers or machines.
    """

    source: Annotated[str, Positional, arg(metavar="SRC")]
    """A folder, zip or tar of images or latents, tar shards, Parquet with images, dataset.json with
    labels, a .txt with a prompt a line, digits, emoji or fashion-mnist[:FOLDER]; a path or s3://.
    """
    destination: Annotated[str, Positional, arg(metavar="DST")]
    """A new or empty folder, or s3://BUCKET/PREFIX."""
    kind: Literal["auto", "images", "latents", "labels", "prompts"] = "auto"
    """What the source holds, where its contents do not tell."""
    resolution: int = 0
    """Crop and resize images to this square size; 0 takes them as they are."""
    crop: Literal["center", "dhariwal", "none"] = "center"
    """Before a resize: the centre square (center), ADM's way of halving and cropping (dhariwal), or
    nothing cut, for square images only (none)."""
    grey: bool = False
    """Store one channel."""
    rgb: bool = False
    """Store three channels, grey images too."""
    encode: str = ""
    """Encode images with this diffusers folder's vae: latents are stored instead of pixels."""
    convention: str = "edm2"
    """Pixels for the encoder as the teacher's family wants them: in [0, 1] (edm2) or in [-1, 1]
    (sd)."""
    encode_text: str = ""
    """Encode prompts with this diffusers folder's text_encoder and tokenizer."""
    caption_column: str = "caption"
    """Column with the prompts of a .csv or .parquet file."""
    split: str = ""
    """Which part of a source that is split: train, val, test, a folder's own name, or all. Must be
    said where there are folders or shards of several; of fashion-mnist train is the default."""
    labels: Literal["auto", "folders", "none"] = "auto"
    """Lists and files beside the samples, else class folders (auto); the folders whatever else says
    (folders); or no classes (none)."""
    captions: Literal["auto", "none"] = "auto"
    """Lists, or a .txt, .caption or .json beside each sample (auto); or no captions (none)."""
    max_images: int = 0
    """Take only so many samples, drawn with --seed; 0 takes all."""
    shuffle: bool = True
    """Store samples in an order of their own, not the source's, which often goes class by class:
    training reads some row groups at a time.
    """
    seed: int = 0
    """Of --max-images and --shuffle."""
    row_group_mib: int = 16
    """Size of a row group, which is read, cached and shuffled as one."""
    workers: int = -1
    """Processes of Ray Data; 0 works in this process; -1 chooses: 0 for small sources."""
    gpus: int = 0
    """GPUs for the encoders; 0 encodes on CPUs."""
    force: bool = False
    """Replace a prepared or half-prepared set that is in the destination."""
    endpoint_url: str = ""
    """Server of s3:// addresses, where it is not Amazon's."""
    region: str = ""
    """Its region."""

    def check(self) -> None:
        """Raises UserError for options that contradict each other or are out of range."""
        wrong = {
            "--grey and --rgb contradict each other: give one": self.grey and self.rgb,
            "--grey: a VAE encodes three channels; leave it out": self.grey and bool(self.encode),
            f"--resolution {self.resolution}: 1 to 8192": not 0 <= self.resolution <= 8192,
            f"--max-images {self.max_images}: 0 or more": self.max_images < 0,
            f"--row-group-mib {self.row_group_mib}: 1 to 1024": not 1 <= self.row_group_mib <= 1024,
            f"--workers {self.workers}: -1, 0 or more": self.workers < -1,
            f"--gpus {self.gpus}: 0 or more": self.gpus < 0,
            "--gpus is for --encode and --encode-text: name one of them": self.gpus > 0
            and not (self.encode or self.encode_text),
            "--gpus needs Ray's workers: leave --workers 0 out": self.gpus > 0
            and self.workers == 0,
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise UserError(what)
        convention_of(self.convention)


@dataclass(frozen=True)
class ShowOptions:
    """Shows what a prepared data set holds."""

    place: Annotated[str, Positional, arg(metavar="DST")]
    """Its folder, or s3://BUCKET/PREFIX."""
    out: Path | None = None
    """Draw samples on this PNG, with labels and captions."""
    verify: bool = False
    """Read everything and compare it with the manifest; exit code 1 where it differs."""
    decode: str = ""
    """Diffusers folder whose vae decodes latents for --out; without it three channels are shown."""
    endpoint_url: str = ""
    """Server of s3:// addresses, where it is not Amazon's."""
    region: str = ""
    """Its region."""
