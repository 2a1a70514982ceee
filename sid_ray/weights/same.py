"""Whether two descriptions are of one network, and in words what both are where they are not.

Weights of one can then take the place of the other's. What a file records beside that is left out:
how the network was trained (dropout), heads and inputs that no generator uses (log-variance,
augmentation labels), and another way of writing the same (a default that is left out or written
out, lists and tuples, one number for all levels).
"""

from __future__ import annotations

from typing import Any

from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.weights.description import ModelDescription

SHOWN = 3  # arguments that a line names


def unlike(
    one: ModelDescription, other: ModelDescription, as_trained: bool = False
) -> tuple[str, str] | None:
    """What each of two networks is, family first; None where they compute the same.

    ``as_trained``: with the heads and inputs that training alone uses, as a training state needs
    them. Raises UserError for arguments that make no network of a family.
    """
    if one.family != other.family:
        return called(one.family), called(other.family)
    if one.network == other.network:  # and no library of the family need be loaded
        return None
    family, own, theirs = family_of(one.family), written_out(one), written_out(other)
    passed = () if as_trained else family.training_only
    names = [n for n in own | theirs if own.get(n) != theirs.get(n) and n not in passed]
    if not names:
        return None
    return told_network(one.family, own, names), told_network(one.family, theirs, names)


def written_out(description: ModelDescription) -> dict[str, Any]:
    """The arguments of a network, each in one way of writing it. Raises UserError."""
    try:
        return family_of(description.family).written_out(description.network)
    except (TypeError, ValueError) as error:
        raise UserError(f"not the arguments of {called(description.family)}: {error}") from None


def called(family: str) -> str:
    return f"{'an' if family[0] in 'aeiou' else 'a'} {family} network"


def told_network(family: str, values: dict[str, Any], names: list[str]) -> str:
    """A family and the arguments in which two networks of it differ."""
    listed = ", ".join(f"{name} {values.get(name)!r}" for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{called(family)} with {listed}{more}"
