"""What a person asks of ``sid-ray export``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sid_ray.commands.arguments import is_address, number_list, typed_prompts, without_repeats
from sid_ray.data.options import MAX_CLASSES
from sid_ray.errors import UserError
from sid_ray.storage.places import check_folder

MOST_SEEDS = 64  # pictures of the sample, all of which are made twice


@dataclass(frozen=True, kw_only=True)
class ExportChoices:
    """A generator, and how its export is made; wherever that goes."""

    source: Annotated[str, Positional, arg(metavar="SOURCE")]
    """A run's folder, one of its checkpoints, RUN/best, or a generator's weights: a path, https://,
    s3:// or hf://OWNER/REPO/PATH."""
    format: Literal["native", "onnx"] = "native"
    """native writes what fits the network, as said above. onnx writes one graph, from noise (and
    classes, or embeddings of prompts) to pixels, for ONNX Runtime; an adapter is fused first."""
    prompt: str = "a photo of a cat"
    """Text of the sample pictures, and of the lines in the card; | stands between several."""
    labels: str = ""
    """Classes of the sample pictures, dealt out by the seed's number, like 0-9; empty draws one for
    each seed."""
    seeds: str = "0-3"
    """Seeds of the sample pictures, which are also compared."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the network's weights are stored in. The card says how far that moves the pictures."""
    variant: Literal["", "fp16", "bf16"] = ""
    """Stores the network a second time in half precision, for from_pretrained(variant=...)."""
    only_network: bool = False
    """Leaves out text encoders and VAE; the card says how to open the network with the base's."""
    fuse: bool = False
    """Of an adapter: write a whole network, the adapter added to its base, in place of a file for
    load_lora_weights."""
    vae: str = ""
    """Diffusers folder whose vae turns latents into images; empty for the network's own folder, or
    its teacher's."""
    text_encoder: str = ""
    """Diffusers folder with the text encoders and tokenizers; empty for the network's own folder,
    or its teacher's."""
    base: str = ""
    """Of an adapter: another base of the same network, like a fine-tune; empty for the teacher that
    it was distilled from."""
    compared: Annotated[bool, arg(name="check")] = True
    """Make the seeds from the folder and compare. It needs the memory of a second network."""

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is opened."""
        self.numbers()
        self.check_format()
        if not self.texts():
            raise UserError("--prompt is empty: the sample pictures need a text")

    def check_format(self) -> None:
        """Raises UserError for what a graph does not have."""
        if self.format != "onnx":
            return
        given = {"dtype": self.dtype != "float32", "variant": self.variant}
        given["only-network"] = self.only_network
        for flag in (name for name, said in given.items() if said):
            raise UserError(
                f"--{flag} is for --format native: a graph is float32 and whole, leave it out"
            )

    def numbers(self) -> tuple[Sequence[int], Sequence[int] | None]:
        """Seeds, and classes where some are named. Raises UserError."""
        classes = number_list(self.labels, "labels", MAX_CLASSES) if self.labels else None
        return list(without_repeats(number_list(self.seeds, "seeds", MOST_SEEDS))), classes

    def texts(self) -> Sequence[str]:
        return typed_prompts(self.prompt)

    def chosen(self) -> dict[str, str | bool]:
        """How the folder is to be other than by default: values by their flags."""
        fields = [each for each in dataclasses.fields(ExportChoices)[1:] if each.name != "compared"]
        return {
            f"--{each.name.replace('_', '-')}": getattr(self, each.name)
            for each in fields
            if getattr(self, each.name) != each.default
        }


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ExportChoices):
    """Writes a generator as a folder that opens without sid_ray.

    Text-to-image generators become a stock folder of diffusers, adapters a file for
    load_lora_weights, EDM and EDM2 a safetensors file with a short loader. The folder holds a model
    card with the lines that generate, and sample pictures. At the end the same seeds are made from
    the folder, by a process without sid_ray, and compared: where they differ by more than rounding,
    nothing is left. All is computed on the CPU.
    """

    folder: Annotated[Path, Positional, arg(metavar="DIR")]
    """The folder to write. It appears whole or not at all."""
    force: bool = False
    """Replace an earlier export in DIR."""

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is opened."""
        if is_address(self.folder):
            raise UserError(f"{self.folder}: an export goes to a folder on this machine's disk")
        check_folder(self.folder.absolute().parent, "the folder of DIR")
        super().check()
