"""All families by name: built in, of entry points, and those registered by a call.

A package adds families by an entry point of the group ``sid_ray.families``: a ``Family`` object, or
a class that makes one without arguments. Every process looks entry points up by itself, once, when
it is first asked for a family, so that Ray's workers know them where the package is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from sid_ray.denoisers.family import Family
from sid_ray.denoisers.latents import LatentConvention
from sid_ray.denoisers.noise import Noise
from sid_ray.errors import UserError, nearest

GROUP = "sid_ray.families"
BUILT_IN = ("edm", "edm2", "stable_diffusion")  # files of families/, each with one FAMILY
_known: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Makes a family known to this process; returns it.

    Raises UserError where another family has its name.
    """
    taken = _known.get(family.name)
    if taken is not None and type(taken) is not type(family):
        raise UserError(
            f"two network families are called {family.name!r}: {type(taken).__module__} and "
            f"{type(family).__module__}"
        )
    _known[family.name] = family
    return family


@cache
def _load() -> None:
    """Registers what is built in and what entry points name. Raises UserError."""
    for name in BUILT_IN:
        register_family(import_module(f"sid_ray.denoisers.families.{name}").FAMILY)
    for entry in entry_points(group=GROUP):
        try:
            found = entry.load()
            family = found() if isinstance(found, type) else found
        except Exception as error:  # of another package's code, which may raise anything
            raise UserError(
                f"entry point {entry.name} ({entry.value}) of group {GROUP} cannot be loaded: "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from error
        if not isinstance(family, Family):
            raise UserError(f"entry point {entry.name} ({entry.value}) of {GROUP} is no Family")
        register_family(family)


def families() -> Mapping[str, Family]:
    """Every family by name."""
    _load()
    return _known


def family_of(name: str) -> Family:
    """A family by name. Raises UserError for an unknown one."""
    known = families()
    if name not in known:
        raise UserError(
            f"unknown network family {name!r}; known: {', '.join(known)}.{nearest(name, known)}"
        )
    return known[name]


def noises() -> dict[str, Noise]:
    """Every kind of noise levels by its name in schedule.kind."""
    return {family.noise.kind: family.noise for family in families().values()}


def noise_of(kind: str) -> Noise:
    """A kind of noise levels. Raises UserError for an unknown one."""
    known = noises()
    if kind not in known:
        raise UserError(
            f"schedule.kind is {kind!r}; known: {', '.join(known)}.{nearest(kind, known)}"
        )
    return known[kind]


def conventions() -> dict[str, LatentConvention]:
    """Every way to use an auto-encoder by its name."""
    found = [family.latents for family in families().values() if family.latents is not None]
    return {convention.name: convention for convention in found}


def convention_of(name: str) -> LatentConvention:
    """A way to use an auto-encoder. Raises UserError for an unknown one."""
    known = conventions()
    if name not in known:
        raise UserError(
            f"unknown convention of latents {name!r}; known: {', '.join(known)}."
            f"{nearest(name, known)}"
        )
    return known[name]


def network_folders() -> tuple[str, ...]:
    """The parts of pipelines' folders that hold networks."""
    return tuple(dict.fromkeys(f.folder for f in families().values() if f.folder))


def pipeline_parts() -> tuple[str, ...]:
    """The parts of pipelines' folders that are read, the networks first."""
    parts = [part for family in families().values() for part in family.parts]
    return tuple(dict.fromkeys((*network_folders(), *parts)))


def from_official(class_name: str, recorded: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(family, arguments) of a network that an official file records; nothing is built.

    ``class_name`` and ``recorded`` are the class and keyword arguments of the outermost network:
    EDMPrecond and the like. Every argument is in the result, also where the file left it to a
    default. Raises UserError that names a class or argument not known, or out of range.
    """
    known = {name: family for family in families().values() for name in family.official_classes}
    if class_name not in known:
        raise UserError(
            f"unknown network class {class_name!r}; known: {', '.join(known)}."
            f"{nearest(class_name, known)}"
        )
    family = known[class_name]
    return family.name, family.from_official(class_name, recorded)


def named_arguments(class_name: str, given: list, named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a file records by place under their names. Raises UserError for too many."""
    names: tuple[str, ...] = ()
    for family in families().values():
        names = names or family.by_place.get(class_name, ())
    if len(given) > len(names):
        raise UserError(f"{class_name} was made with arguments by place, which have no names here")
    return dict(zip(names, given, strict=False)) | dict(named)
