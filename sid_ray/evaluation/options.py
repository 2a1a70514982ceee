"""What a person asks of ``sid-ray evaluate``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sid_ray.device.choice import Device
from sid_ray.errors import UserError
from sid_ray.storage.places import check_file

PUBLISHED_IMAGES = 50_000
MOST_AT_ONCE = {"batch_size": 4096, "steps": 10_000, "trials": 1000, "resolution": 8192}
MOST = 10**9  # of any number here; a batch has another limit
FEWEST = 65  # images: more than the dimensions of the smallest feature space


def with_own_flags(text: str) -> str:
    """A message about fields of a run's config, with this command's own flags for them."""
    flags = {each.name: f"--{each.name.replace('_', '-')}" for each in fields(EvaluateOptions)}
    return re.sub(r"\bevaluation\.([a-z_]+)", lambda found: flags.get(found[1], found[0]), text)


@dataclass(frozen=True)
class EvaluateOptions:
    """Scores the images of a generator or a teacher, or those of a folder, in parallel; the same
    command goes on where it was interrupted. The scores do not depend on how many processes work on
    them.
    """

    source: Annotated[str, Positional, arg(metavar="SOURCE")]
    """A run's folder, one of its checkpoints, RUN/best, or any network: a path, https://, s3://,
    hf://OWNER/REPO/PATH or builtin:NAME; or images: a folder, a .zip or s3://."""
    metrics: str = ""
    """What is measured, a comma between: fd (Frechet distance), kid (kernel distance), is
    (Inception Score), pr (precision and recall), clip (fit of image and prompt), pickscore, hpsv2
    (preference of people), cmmd (kernel distance of CLIP embeddings), or one of an installed
    package. Empty for the run's, or fd."""
    feature_space: str = ""
    """Network whose features are compared: digits-cnn, emoji-cnn, lite0, lite0-320, inception (then
    the Frechet distance is the FID) or dinov2. Empty for the run's; without a run digits-cnn for
    1x8x8, emoji-cnn for 3x16x16 and lite0 for other images."""
    feature_weights: str = ""
    """inception: NVIDIA's inception-2015-12-05.pt, with #sha256=HEX behind it; dinov2: a folder in
    Transformers' layout. Empty for the run's."""
    clip_weights: str = ""
    """clip: a CLIP network in Transformers' layout, a folder or hf://OWNER/REPO. Empty for the
    run's."""
    metric_weights: str = ""
    """Networks of other metrics, as METRIC=PLACE with a comma between: pickscore, hpsv2 and cmmd
    read CLIP networks of the same layout. Empty for the run's."""
    reference: str = ""
    """Real images to compare with: a prepared data set, or statistics (NVIDIA's .npz or .pkl; for
    fd alone). Empty for the run's, or the images of --data; digits-cnn and emoji-cnn know theirs.
    """
    vae: str = ""
    """Diffusers folder whose vae turns latents into images; empty for the network's own folder, or
    the teacher's."""
    text_encoder: str = ""
    """Diffusers folder with the text_encoder and tokenizer of a network that reads text; empty for
    the network's own folder, or the teacher's."""
    base: str = ""
    """Of an adapter: another base of the same network, like a fine-tune; empty for the teacher that
    it was distilled from."""
    num_images: int | None = None
    """Generated images a trial: published scores are of 50,000, which is the default. Of a folder
    of images: that many of them, drawn evenly; all without it."""
    trials: int = 1
    """How often, each time with other seeds; papers give the mean and the deviation over some."""
    first_seed: int = 0
    """Seed of the first image; trial k has the seeds from FIRST_SEED + k * NUM_IMAGES on."""
    batch_size: int = 64
    """Images made at once."""
    actors: int = 0
    """Processes at work, at most; 0 for as many as there are GPUs, or CPUs without them, and more
    when nodes come to the cluster of RAY_ADDRESS. 1 without a cluster: this process alone."""
    device: Device = "auto"
    """auto: one GPU a process where this machine has GPUs; cuda: also those of the cluster of
    RAY_ADDRESS alone."""
    use_gpu: bool = False
    """The same as --device cuda."""
    steps: int = 0
    """Of a teacher: steps of Heun's method (EDM, EDM2) or of DDIM (Stable Diffusion). 0 for 18
    (EDM), 32 (EDM2), 50, or what is usual for a flow-matching teacher (Euler's method)."""
    guidance: float | None = None
    """Of a teacher that reads text: guidance scale, 1 for none. Left out for what is usual for its
    kind, which the printed line says: none for Stable Diffusion."""
    data: str = ""
    """Data set whose labels or prompts images are made of, as data.name in a run's config. Empty
    for the run's; without a run classes are drawn evenly."""
    data_source: str = ""
    """Where that data set lies, as data.source in a run's config."""
    resolution: int = 0
    """Of a folder of images: crop their middle and resize them to this square size; 0 takes them as
    they are, all of one size."""
    prompts: Path | None = None
    """Of a folder of images: text file with a prompt for each of them, a line each in the order of
    their names. Without it the .txt beside each image, or what sid-ray generate has recorded."""
    out: Path = Path("evaluation.json")
    """The result, for programs."""
    fresh: bool = False
    """Make all images anew, also those that an earlier command has left in the cache."""

    def check(self) -> None:
        """Raises UserError for numbers that make no sense."""
        least = {"num_images": FEWEST, "trials": 1, "first_seed": 0, "batch_size": 1}
        for name, minimum in (least | {"actors": 0, "steps": 0, "resolution": 0}).items():
            value, flag = getattr(self, name), name.replace("_", "-")
            if value is not None and value < minimum:
                raise UserError(f"--{flag} {value}: at least {minimum}")
            most = MOST_AT_ONCE.get(name, MOST)
            if value is not None and value > most:
                raise UserError(f"--{flag} {value}: at most {most:,}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise UserError(f"--guidance {self.guidance}: expected a finite number")
        if self.use_gpu and self.device == "cpu":
            raise UserError("--use-gpu and --device cpu: give one of them")
        if self.data_source and not self.data:
            raise UserError("--data-source needs --data: prepared, prompts, or a data set's name")
        if re.match(r"[a-z0-9]+:/", str(self.out)):
            raise UserError(f"--out {self.out}: the result is a file on this machine's disk")
        check_file(self.out, "--out")

    def check_for_pictures(self) -> None:
        """Raises UserError for what only a network has a use for."""
        asked = {
            "--steps": self.steps,
            "--guidance": self.guidance is not None,
            "--data": self.data,
            "--vae": self.vae,
            "--base": self.base,
            "--trials": self.trials > 1,
            "--first-seed": self.first_seed,
        }
        for flag, given in asked.items():
            if given:
                raise UserError(f"{flag} is for networks; {self.source} holds images already")
