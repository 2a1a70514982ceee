"""The samples of a source before they are prepared: what each is called and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from sid_ray.data.names import shown_name
from sid_ray.data.options import MAX_CLASSES, MAX_PROMPT
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError


class SampleReader(Protocol):
    """Opens samples in whatever process it is unpickled in; may be shared by threads."""

    def read(self, name: str, place: Any) -> bytes | np.ndarray:
        """A file's bytes, or pixels [H, W, C] uint8. Raises UserError, StoreError."""
        ...


@dataclass(frozen=True)
class Samples:
    """A source's samples in their order; a column each, and None where it has none.

    Args:
        kind: images, latents, labels or prompts.
        source: the address, as the person wrote it.
        count: samples.
        reader: opens images and latents by ``names`` and ``places``.
        names: [count], or empty where samples have none of their own.
        places: [count] what ``reader`` needs; part of the plan's fingerprint.
        labels, prompts: [count].
        label_dim, class_names: of the whole source.
        numbers: [count] of each in its source, for messages; empty for 0, 1, 2 ...
        remote: reading waits for a network.
        notes: for the manifest's ``source``.
        account: how the source was understood and what was left out, for the manifest and people;
            no part of the plan.
        run: samples at most that stay together in a mixed order, as they are read together.
    """

    kind: str
    source: str
    count: int
    reader: SampleReader | None = None
    names: Sequence[str] = ()
    places: Sequence[Any] = ()
    labels: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    label_dim: int = 0
    class_names: tuple[str, ...] = ()
    numbers: Sequence[int] = ()
    remote: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    account: dict[str, Any] = field(default_factory=dict)
    run: int = 16

    def take(self, chosen: Sequence[int]) -> Samples:
        """Some of them, in the order given."""

        def column(values: Sequence[Any]) -> list[Any]:
            return [values[index] for index in chosen] if len(values) else []

        return replace(
            self,
            count=len(chosen),
            names=column(self.names),
            places=column(self.places),
            labels=None if self.labels is None else column(self.labels),
            prompts=None if self.prompts is None else column(self.prompts),
            numbers=column(self.numbers) or list(chosen),
        )

    def part(self, start: int, stop: int) -> Samples:
        return self.take(range(start, stop))

    def read(self, index: int) -> bytes | np.ndarray:
        """A sample's file or pixels. Raises UserError that names it."""
        assert self.reader is not None
        try:
            return self.reader.read(self.name(index), self.places[index])
        except UserError as error:
            raise self.wrong(index, str(error)) from None
        except FileNotFoundError:
            raise self.wrong(index, "is gone since the source was listed") from None
        except PermissionError:
            raise self.wrong(index, "may not be read: change its permissions") from None
        except StoreError:
            raise
        except OSError as error:  # of the source's disk, which may work again
            raise StoreError(str(self.wrong(index, error.strerror or short_error(error)))) from None

    def name(self, index: int) -> str:
        return self.names[index] if len(self.names) else ""

    def number(self, index: int) -> int:
        return self.numbers[index] if len(self.numbers) else index

    def wrong(self, index: int, what: str) -> UserError:
        """An error that names the source, the file and the sample's number."""
        named = f": {shown_name(self.name(index), 300)}" if self.name(index) else ""
        return UserError(f"{self.source}{named} (sample {self.number(index)}): {what}")


def short_error(error: Exception, length: int = 120) -> str:
    """What a library says, in one short line."""
    return shown_name(" ".join(str(error).split()), length) or type(error).__name__


def checked_label(value: Any, where: str) -> int:
    """A class number. Raises UserError for anything else, with ``where`` it stands."""
    if isinstance(value, list):
        raise UserError(
            f"{where}: the label is a list of {len(value)} numbers; classes are expected, whole "
            "numbers from 0"
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where}: label {value!a:.40} is not a whole number from 0")
    if not 0 <= value < MAX_CLASSES:
        raise UserError(f"{where}: label {value!s:.40} is not in 0 to {MAX_CLASSES - 1}")
    return value


def checked_prompt(value: Any, where: str) -> str:
    """A prompt. Raises UserError where it is no text or too long."""
    if not isinstance(value, str):
        raise UserError(f"{where}: expected a text, found {value!a:.40}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{where}: half of a character (a lone surrogate): write the text again")
    if len(value) > MAX_PROMPT:
        raise UserError(f"{where}: {len(value):,} characters, at most {MAX_PROMPT:,} are taken")
    return value
