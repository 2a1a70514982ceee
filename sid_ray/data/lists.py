"""The lists of labels and captions in a source, wherever they lie above its samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sid_ray.data.annotations import FILES, Annotations, read_annotations
from sid_ray.data.listing import Listing
from sid_ray.data.names import folder_of_name, same_text, shown_name
from sid_ray.errors import UserError


@dataclass(frozen=True)
class Noted:
    """One file of labels or captions: its name, and what it says of files by their full names."""

    name: str
    said: Annotations

    @property
    def says_something(self) -> bool:
        """Not so of an empty table; a dataset.json without labels says that there are none."""
        has_rows = self.said.labels is not None or self.said.prompts is not None
        return has_rows or self.name.endswith("dataset.json")


def note_at(listing: Listing, name: str) -> tuple[str, bytes, str]:
    if name not in listing.files:
        raise UserError(f"{listing.source}: no labels in it ({name} is looked for)")
    return name.rsplit("/", 1)[-1], listing.read(name), f"{listing.source}/{shown_name(name)}"


def annotations_of(listing: Listing, others: Iterable[str], names: Sequence[str]) -> list[Noted]:
    """What files of labels and captions say, wherever they lie above a sample."""
    above = {""}
    for name in names:
        folder = folder_of_name(name)
        while folder and folder not in above:
            above.add(folder)
            folder = folder_of_name(folder[:-1])
    found = [
        Noted(name, read_annotations(*note_at(listing, name)))
        for base in FILES
        for name in others
        if name.rsplit("/", 1)[-1] == base and folder_of_name(name) in above
    ]
    for noted in found:
        if noted.said.unused:
            columns = ", ".join(shown_name(column, 40) for column in noted.said.unused[:8])
            listing.left_out.add(
                f"column of a list ({columns})", noted.name, len(noted.said.unused)
            )
    return found


def places_of(notes: Sequence[Noted], names: Iterable[str]) -> dict[str, str]:
    """Where each sample's label stands."""
    found: dict[str, str] = {}
    known = {same_text(name): name for name in names}
    for noted in notes:
        if noted.said.labels is None:
            continue
        for file in noted.said.labels:
            name = known.get(same_text(folder_of_name(noted.name) + file))
            if name is not None:
                found.setdefault(name, (noted.said.places or {})[file])
    return found


def column_of(
    notes: Sequence[Noted],
    what: str,
    names: Sequence[str],
    every: Iterable[str],
    listing: Listing,
) -> tuple[dict[str, Any], str] | None:
    """Labels or captions by sample, in order, and the lists they are from; None without one.

    Raises UserError for a sample without one, for one that is not there, and where two lists
    contradict each other.
    """
    if all(getattr(noted.said, what) is None for noted in notes):
        return None
    source = listing.source
    known: dict[str, str] = {same_text(name): name for name in every}
    found: dict[str, Any] = {}
    told_by: list[Noted] = []
    for noted in notes:
        values = getattr(noted.said, what)
        if values is None:
            continue
        told_by.append(noted)
        for file, value in values.items():
            full = folder_of_name(noted.name) + file
            name = full if full in listing.files else known.get(same_text(full))
            if name is None:
                raise UserError(f"{noted.said.where} lists {file!a:.200}, which is not in {source}")
            before = found.setdefault(name, value)
            if before is not value and before != value:
                raise UserError(
                    f"{noted.said.where} and {told_by[0].said.where} say different {what} of "
                    f"{shown_name(name)}: keep one of them"
                )
    for index, name in enumerate(names):
        if name not in found:
            raise UserError(
                f"{source}: {shown_name(name)} (sample {index}) is not listed in "
                f"{told_by[0].said.where}, though others are"
            )
    origin = ", ".join(shown_name(noted.name, 60) for noted in told_by[:4])
    more = f" and {len(told_by) - 4} more lists" if len(told_by) > 4 else ""
    return {name: found[name] for name in names}, origin + more
