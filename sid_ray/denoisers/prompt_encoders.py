"""The text encoders of one family of pipelines, from folders to packed prompts on disk.

A family's file says which parts there are, how to check them and how to make a prompt of them; what
loads them when they are needed, keeps what they make and lets them go, stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from sid_ray.denoisers.component import tokenizer_part
from sid_ray.denoisers.prompt_layout import PromptLayout
from sid_ray.denoisers.stored_text import EncodePrompts, PromptFolder, StoredEmbeddings
from sid_ray.denoisers.text import TextEmbeddings
from sid_ray.denoisers.text_identity import fingerprint_of_encoders

MEMORY_BYTES = 256 * 2**20  # of rows beside the encoders' device
BATCH = 8  # prompts an encoder call: part of what an embedding's bits depend on
MAKING = 1  # counts up when the same encoders' rows change


class PromptEncoders(ABC):
    """Attributes:
    classes: part of a pipeline's folder -> the text encoder's classes there.
    """

    classes: ClassVar[Mapping[str, tuple[str, ...]]]

    @property
    def parts(self) -> tuple[str, ...]:
        """A family's ``text_parts``: the encoders, and the tokenizer of each."""
        return (*self.classes, *map(tokenizer_part, self.classes))

    @abstractmethod
    def layout_of(self, folder: Path) -> PromptLayout:
        """Of the prompts of published networks with the encoders in a folder; of these only the
        configs are read. Raises UserError.
        """

    @abstractmethod
    def check(self, folder: Path, layout: PromptLayout) -> None:
        """Raises UserError, in one line, where ``open`` would (but for damaged numbers), or where
        embeddings are of other widths than the network reads.
        """

    @abstractmethod
    def open(
        self, folder: Path, device: torch.device | str, dtype: torch.dtype, layout: PromptLayout
    ) -> EncodePrompts:
        """Loads the encoders: from prompts to packed rows [B, T, D] of a layout, float32."""

    def told(self) -> str:
        """What else prompts are told, beside what stands in the folder: part of their rows'
        identity.
        """
        return ""

    def load_text(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        precision: str = "float32",
        layout: PromptLayout | None = None,
    ) -> TextEmbeddings:
        """No weights are read before the first prompt. ``precision`` float16 means bfloat16: T5's
        and Gemma's states leave float16's range. Without a ``layout``, layout_of.
        """
        layout = layout or self.layout_of(folder)
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        rows, width = layout.shape
        return StoredEmbeddings(
            lambda: self.open(folder, device, dtype, layout),
            lambda: PromptFolder(self.making(folder, device, dtype, layout), layout.shape, dtype),
            device,
            max(MEMORY_BYTES // (4 * rows * width), 1),
            BATCH,
        )

    def making(
        self, folder: Path, device: torch.device | str, dtype: torch.dtype, layout: PromptLayout
    ) -> str:
        """All that the bits of a prompt's row depend on but for the prompt."""
        import transformers

        kind = device_kind(torch.device(device))
        versions = torch.__version__, transformers.__version__
        encoders = fingerprint_of_encoders(folder, self.parts)
        return repr(
            (MAKING, type(self).__name__, encoders, layout, dtype, kind, versions, self.told())
        )


def device_kind(device: torch.device) -> str:
    """On which bits depend: a GPU's name, or the CPU's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
