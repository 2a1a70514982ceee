"""What a network's card says of its licence: on the hub, in a folder, or of one that ships."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sid_ray.weights.address import HubFile, parse_source
from sid_ray.weights.hub import card_at
from sid_ray.weights.sources import resolve_file

CARD = "README.md"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Licence:
    """As front matter names one: ``name`` and ``link`` say which where it is "other".
    ``attribution`` is what a licence asks to be said wherever the work goes; a field of ours.
    """

    licence: str = ""
    name: str = ""
    link: str = ""
    attribution: str = ""

    def lines(self) -> list[str]:
        """Of front matter."""
        said = {"license": self.licence, "license_name": self.name, "license_link": self.link}
        said["attribution"] = self.attribution
        return [f"{field}: {json.dumps(value)}" for field, value in said.items() if value]

    def __str__(self) -> str:
        return self.name or self.licence

    def told(self) -> str:
        """With its attribution."""
        return f"{self}{f' ({self.attribution})' if self.attribution else ''}"


def licence_of(source: str, place: Path | None) -> Licence:
    """Of the network that a source names; ``place`` is a folder where it lies, if there is one.

    Asks the hub for the card of a source there; nothing is known where it does not answer.
    """
    if repository := repository_of(source):
        return licence_in(card_at(source), repository)
    if source and parse_source(source).kind == "builtin":
        place = resolve_file(source)
    return licence_of_folder(place) if place is not None and place.is_dir() else Licence()


def repository_of(source: str) -> str:
    """OWNER/REPO of an address on the hub; empty for any other."""
    if not source or (parsed := parse_source(source)).kind != "hf":
        return ""
    return HubFile.parse(parsed.location).repo


def licence_of_folder(folder: Path) -> Licence:
    """What a folder's own card says of its licence."""
    try:
        return licence_in((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Licence()


def licence_in(card: str, repository: str = "") -> Licence:
    """What a card says; a link into its own repository on the hub becomes a whole address."""
    found = fields_in_front(card)
    said = [found.get(each) for each in ("license", "license_name", "license_link", "attribution")]
    licence, name, link, by = (
        " ".join(value.split())[:200] if isinstance(value, str) else "" for value in said
    )
    if link and "://" not in link:
        link = f"{HUB}/{repository}/blob/main/{link}" if repository else ""
    return Licence(licence, name, link, by) if licence else Licence()


def fields_in_front(card: str) -> dict[str, Any]:
    """A card's front matter; nothing where it is none."""
    if not card.startswith("---"):
        return {}
    try:
        found = yaml.safe_load(card[3:].partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
