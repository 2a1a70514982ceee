"""Pictures from a generator: one PNG per seed, and a grid of the first ones.

Pictures are made in batches and written as they come, each of them whole or not at all, so memory
does not grow with their number and an interrupted command goes on. OUT/generated.json says what
made them: pictures of two generators never lie in one folder unnoticed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sid_ray.commands.generate_options import GenerateOptions
from sid_ray.commands.held_device import held_device
from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.command import Meter, output_console
from sid_ray.data.pixels import is_whole_png
from sid_ray.denoisers.codecs import Codec
from sid_ray.denoisers.precondition import precision_beside
from sid_ray.denoisers.registry import family_of
from sid_ray.denoisers.text_identity import weights_sha256
from sid_ray.device.choice import on_gpu
from sid_ray.device.numerics import set_numerics
from sid_ray.errors import UserError
from sid_ray.evaluation.judge import codec_of
from sid_ray.evaluation.pictures import PictureWriter, pixel_scale, save_picture, tile
from sid_ray.evaluation.samplers import (
    Inputs,
    Sampler,
    generator_sampler,
    sample_in_batches,
    seeded_latents,
    seeded_noises,
    seeded_uniform,
)
from sid_ray.evaluation.scored_network import scored_on
from sid_ray.evaluation.subject import find_network, find_subject, network_sha256
from sid_ray.storage.durable import HeldError, lock, remove_parts, replace_file
from sid_ray.training.assemble import generation_of
from sid_ray.types import Condition
from sid_ray.weights.base import base_sha256
from sid_ray.weights.components import (
    Named,
    component_folder,
    find_components,
    text_encoder_sha256,
)
from sid_ray.weights.folder import ModelDescription, load_model
from sid_ray.weights.networks import describe
from sid_ray.weights.over_base import find_base, with_base

GRID, GRID_COLUMNS, GRID_IMAGES = "grid.png", 10, 100
RECORD, FORMAT = "generated.json", 1
LOCK = ".generated.lock"  # held while pictures are made; empty
PICTURE = re.compile(r"seed\d{6,}\.png")
STALE_S = 60.0  # age of a half-written picture whose writer is taken for dead
OWN = Named()  # the text encoder and the VAE are the network's own, or its teacher's
GOES_ON = "what is finished stays, the same command goes on"
Conditions = Callable[[Sequence[int]], Condition]
Tell = Callable[[int, int], None]  # done, of how many


class Made(NamedTuple):
    """What a command has done: how many pictures were there already, and by which network."""

    kept: int
    network: str


# What pictures are made of -----------------------------------------------------------------------


def choose_classes(seeds: Sequence[int], classes: Sequence[int] | None, label_dim: int) -> Tensor:
    """A class a seed [N]: dealt out by the seed's number, or drawn evenly by the seed."""
    if classes is None:
        return (seeded_uniform(seeds) * label_dim).long()
    return torch.tensor([classes[seed % len(classes)] for seed in seeds])


def conditions_of_seeds(
    load_text: Callable[[], Any],
    description: ModelDescription,
    classes: Sequence[int] | None,
    prompts: Sequence[str],
) -> Conditions:
    """From seeds to their classes or prompts, as the network reads them.

    Classes and prompts are dealt out by the seed's number; ``load_text`` brings the text encoder
    where one is needed. Raises UserError where the network reads the other kind or none, and for
    classes that it lacks.
    """
    family = family_of(description.family)
    label_dim = family.label_dim(description.network)
    if family.reads_text:
        if classes:
            raise UserError("--labels: this generator reads text, no classes; use --prompt")
        if not prompts:
            raise UserError("this generator reads text: give --prompt TEXT or --prompts FILE")
        text = load_text()
        text.prepare(prompts)
        return lambda seeds: Condition(text=text.embed([prompts[s % len(prompts)] for s in seeds]))
    if prompts:
        raise UserError("--prompt: this generator reads no text; use --labels")
    if classes and max(classes) >= label_dim:
        known = f"0-{label_dim - 1}" if label_dim else "no classes: leave --labels out"
        wrong = next(c for c in classes if c >= label_dim)
        raise UserError(f"--labels holds {wrong}; the network knows {known}")
    if not label_dim:
        return lambda seeds: Condition()
    one_hot = torch.nn.functional.one_hot
    return lambda seeds: Condition(
        one_hot(choose_classes(seeds, classes, label_dim), label_dim).float()
    )


class OneStepNetwork:
    """A generator, opened where it is: up to ``batch`` images at once on ``device``.

    Its parts are loaded when they are first needed. ``named`` are diffusers folders with the VAE
    that turns latents into images and with the text encoder; empty for the network's own, or its
    teacher's. ``base`` is the source of what an adapter is laid over; empty for its teacher. Raises
    UserError for a source without a generator, and where one of these is missing or does not fit.
    """

    def __init__(
        self,
        source: str | Path,
        batch: int,
        named: Named = OWN,
        device: torch.device | str = "cpu",
        base: str = "",
    ):
        self.folder = find_network(str(source))
        self.description = describe(self.folder)
        if self.description.one_step is None:
            raise UserError(
                f"{source} is not a one-step generator: its model.json has no one_step; "
                "sid-ray evaluate scores teachers"
            )
        self.base = find_base(self.description, str(source), base)
        if self.base is not None and base:
            self.description = with_base(self.description, base, self.base)
        self.batch, self.device = batch, torch.device(device)
        self.components = find_components(self.description, self.folder, named)
        self.family = family_of(self.description.family)
        self.shape = self.family.shape(self.description.network)
        self.label_dim = self.family.label_dim(self.description.network)
        # That of its run, whose evaluations these pictures are to agree with; on a CPU no part of
        # it matters.
        own = find_subject(str(source), base).config if self.device.type == "cuda" else None
        self.config = own or DistillConfig()
        self.precision = precision_beside(self.config.training.precision, self.device)

    @cached_property
    def text(self) -> Any:
        """Its text encoder."""
        return self.family.load_text(
            self.components.text, self.device, self.precision, self.description.network
        )

    @cached_property
    def codec(self) -> Codec:
        return codec_of(self.description, self.components.vae, self.device, self.precision)

    @cached_property
    def sampler(self) -> tuple[Sampler, int]:
        """What makes images of noise, and in how many steps."""
        net, _ = load_model(self.folder, base=self.base)
        schedule, num_steps = generation_of(self.description)
        net = scored_on(net, self.description, self.config, self.device)
        return generator_sampler(net, schedule, num_steps), num_steps

    def conditions(self, classes: Sequence[int] | None, prompts: Sequence[str]) -> Conditions:
        """Of seeds, by what they are dealt out of."""
        return conditions_of_seeds(lambda: self.text, self.description, classes, prompts)

    @torch.no_grad()
    def paint(self, seeds: Sequence[int], cond: Condition) -> Tensor:
        """Of up to ``batch`` seeds: uint8 [N, C, H, W], each a function of its seed and condition
        alone.
        """
        return self.paint_by(*self.sampler, seeds, cond, self.batch)

    @torch.no_grad()
    def paint_by(
        self, sampler: Sampler, num_steps: int, seeds: Sequence[int], cond: Condition, batch: int
    ) -> Tensor:
        """The same by another sampler of such images, padded to ``batch`` at once."""
        latents = seeded_latents(seeds, self.shape)
        inputs = Inputs(latents, cond, seeded_noises(seeds, self.shape, num_steps))
        made = sample_in_batches(sampler, inputs.to(self.device), batch, pad=True)
        return self.codec.decode_uint8(made)


class Painter(OneStepNetwork):
    """Makes the pictures of seeds, with classes or prompts that are dealt out to them.

    Raises UserError where these do not fit, before the network is loaded.
    """

    def __init__(
        self,
        source: str | Path,
        classes: Sequence[int] | None,
        prompts: Sequence[str],
        batch: int,
        named: Named = OWN,
        device: torch.device | str = "cpu",
        base: str = "",
    ):
        super().__init__(source, batch, named, device, base)
        self.classes, self.prompts = classes, prompts
        self._conditions = self.conditions(classes, prompts)
        _ = self.codec, self.sampler  # what is missing is found before a folder is touched

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    def images(self, seeds: Sequence[int]) -> Tensor:
        """Of up to ``batch`` seeds: uint8 [N, C, H, W] in CPU memory, each a function of its seed
        alone.
        """
        return self.paint(seeds, self._conditions(seeds)).cpu()

    def made_of(self) -> dict[str, Any]:
        """All that the pictures depend on beside their seeds. Raises UserError."""
        found: dict[str, Any] = {
            "weights_sha256": network_sha256(self.folder),
            "one_step": self.description.one_step,
            "labels": None if self.classes is None else list(self.classes),
            "prompts": list(self.prompts),
            "batch": self.batch,
            "torch": torch.__version__,
        }
        if self.base is not None:
            found["base_sha256"] = base_sha256(self.base)
        if self.device.type != "cpu":
            found["device"] = self.device.type  # rounds otherwise
        if self.precision != "float32":
            found["compute"] = self.precision
        if self.components.text is not None:
            found["text_encoder_sha256"] = text_encoder_sha256(
                self.components.text, self.description.family
            )
        if self.components.vae is not None:
            found["vae_sha256"] = weights_sha256(component_folder(self.components.vae, "vae"))
        return json.loads(json.dumps(found))  # as it is read back


# The folder --------------------------------------------------------------------------------------


def picture_path(out: Path, seed: int) -> Path:
    return out / f"seed{seed:06d}.png"


def is_whole(path: Path) -> bool:
    try:
        return is_whole_png(path.read_bytes())
    except FileNotFoundError:
        return False


def pictures_in(out: Path) -> Iterator[Path]:
    """Pictures of seeds that are in a folder, in no order."""
    return (path for path in out.iterdir() if PICTURE.fullmatch(path.name))


def check_pictures_folder(out: Path) -> None:
    """Raises UserError for a place that pictures cannot or should not be written to."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    for name in ("run.json", "model.json", "manifest.json"):
        if (out / name).exists():
            raise UserError(
                f"--out {out} holds {name}: it is no folder for pictures; name another, like "
                f"{out / 'samples'}"
            )


@contextlib.contextmanager
def claimed(out: Path, made_of: Mapping[str, Any], network: str, overwrite: bool) -> Iterator[None]:
    """The folder while its pictures are made: others may work on the same pictures, on no other.

    Raises UserError where another command makes, or has made, other pictures there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK).open("a")
    except OSError as error:
        raise UserError(
            f"--out {out}: {error.strerror or error}: name a folder that can be written"
        ) from None
    with file:
        try:
            lock(file.fileno(), patience_s=0)
        except HeldError:  # others are at work, or claim it right now
            lock(file.fileno(), shared=True)
            if read_pictures_record(out / RECORD) != made_of:
                raise UserError(
                    f"another command is writing pictures to {out}, by other settings: wait for "
                    "it, or name another --out"
                ) from None
        except OSError:  # a disk without locks
            claim_folder(out, made_of, network, overwrite)
        else:
            claim_folder(out, made_of, network, overwrite)
            lock(file.fileno(), shared=True)
        yield


def claim_folder(out: Path, made_of: Mapping[str, Any], network: str, overwrite: bool) -> None:
    """Records what makes the pictures of a folder. Raises UserError where another has made some.

    With ``overwrite`` those are removed first.
    """
    remove_parts(out, "*.png", STALE_S)
    record = out / RECORD
    earlier = read_pictures_record(record)
    if earlier == made_of:
        return
    if next(pictures_in(out), None) is not None:
        if not overwrite:
            raise UserError(
                f"{out} holds pictures {difference(earlier, made_of)}: name another --out, or "
                "give --overwrite to remove them first"
            )
        record.unlink(missing_ok=True)  # first: what is left by a crash has no maker
        for path in (*pictures_in(out), out / GRID):
            path.unlink(missing_ok=True)
    text = json.dumps({"format": FORMAT, "network": network, "made_of": made_of}, indent=1)
    replace_file(record, text + "\n")


def read_pictures_record(path: Path) -> dict[str, Any] | None:
    """What made the pictures beside a record; None where it does not say."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found["made_of"]) if found["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def difference(earlier: Mapping[str, Any] | None, made_of: Mapping[str, Any]) -> str:
    """'made with batch 8, now 64', for a person."""
    if earlier is None:
        return f"of an unknown generator ({RECORD} does not say which)"
    names = [name for name in made_of if earlier.get(name) != made_of[name]]
    names += [name for name in earlier if name not in made_of]
    if "weights_sha256" in names:
        return "of another generator (its weights differ)"
    if "base_sha256" in names:
        return "of the same adapter over another base"
    name = names[0]
    before, now = (short_value(each.get(name)) for each in (earlier, made_of))
    return f"made with {name} {before}, now {now}"


def short_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def count_kept(out: Path, seeds: Sequence[int]) -> int:
    """How many of the seeds have a picture, whole or not."""
    numbers = (int(path.stem.removeprefix("seed")) for path in pictures_in(out))
    return sum(number in seeds for number in numbers)


# The command -------------------------------------------------------------------------------------


def generate(options: GenerateOptions) -> int:
    """Makes the pictures, with its progress on the output. Returns the exit code.

    Raises UserError: before pictures are made for wrong input, later for a disk that fails.
    """
    (seeds, classes), prompts = options.numbers(), options.texts()
    set_numerics()
    console = output_console()
    on_a_gpu = on_gpu(options.device)
    try:
        with (
            Meter(console, "generating", "images", "opening the generator") as meter,
            held_device(options.device, meter.say) as device,
        ):
            made = generate_pictures(
                options.source, seeds, classes, prompts, options.out, options.batch,
                Named(options.text_encoder, options.vae), options.overwrite, meter.tell, device,
                options.base,
            )  # fmt: skip
    except BrokenPipeError:  # nobody reads the output
        raise
    except OSError as error:
        where = error.filename or options.out
        raise UserError(f"{where}: {error.strerror or error}; {GOES_ON}") from None
    except (MemoryError, torch.OutOfMemoryError):
        raise UserError(
            f"not enough memory for {options.batch} images at once: give a smaller --batch"
            f"{', or --device cpu' * on_a_gpu}"
        ) from None
    except KeyboardInterrupt:
        console.print(f"interrupted: {GOES_ON}")
        raise
    kept = f", {made.kept:,} of them made before," if made.kept else ""
    console.print(f"{len(seeds)} images{kept} and {GRID} in {options.out} ({made.network})")
    return 0


def generate_pictures(
    source: str | Path,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    prompts: Sequence[str],
    out: Path,
    batch: int,
    named: Named = OWN,
    overwrite: bool = False,
    tell: Tell = lambda done, total: None,
    device: torch.device | str = "cpu",
    base: str = "",
) -> Made:
    """Writes out/seed000000.png ... as they are made, and out/grid.png of the first 100.

    Whole pictures that the same generator has made there by the same settings are kept. Raises
    UserError before any is made, OSError for a disk that fails.
    """
    check_pictures_folder(out)
    painter = Painter(source, classes, prompts, batch, named, device, base)
    with claimed(out, painter.made_of(), painter.name, overwrite):
        return make_missing(painter, seeds, out, tell)


def make_missing(painter: Painter, seeds: Sequence[int], out: Path, tell: Tell) -> Made:
    """The pictures that are not whole yet, and the grid."""
    done = count_kept(out, seeds)
    made, looked_at, has_grid = 0, 0, False

    def missing() -> Iterator[int]:
        nonlocal looked_at, done
        for seed in seeds:
            looked_at += 1
            path = picture_path(out, seed)
            if not is_whole(path):
                done -= path.exists()
                yield seed

    tell(done, len(seeds))
    first, todo = seeds[:GRID_IMAGES], missing()
    beside = painter.device.type != "cpu"
    with PictureWriter(beside) as writer:
        while chunk := list(itertools.islice(todo, painter.batch)):
            paths = [picture_path(out, seed) for seed in chunk]
            writer.write(painter.images(chunk), paths)
            made += len(chunk)
            tell(min(done + writer.written, len(seeds)), len(seeds))
            if looked_at >= len(first) and not has_grid:
                writer.finish()
                save_grid(out, first)
                has_grid = True
    if beside and made:  # the last ones were on their way
        tell(min(done + made, len(seeds)), len(seeds))
    if not has_grid:
        save_grid(out, first)
    return Made(len(seeds) - made, painter.name)


def save_grid(out: Path, seeds: Sequence[int]) -> None:
    """Draws out/grid.png of pictures that are there."""
    images = []
    for seed in seeds:
        with Image.open(picture_path(out, seed)) as picture:
            pixels = np.asarray(picture)
        images.append(torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1))
    stacked = torch.stack(images)
    scale = pixel_scale(stacked.shape[-1])
    save_picture(tile(stacked, min(GRID_COLUMNS, len(images)), scale), out / GRID)
