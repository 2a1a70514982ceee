"""What happens to gradients and weights around an update: by objective, family and compat.

EDM2's forced weight normalisation is where the published code and ours differ most, and where the
published code differs between its objectives. One table has all of it (NORMALISED). It says nothing
of EDM and Stable Diffusion, whose weights have no such rule, published or here.

The published layers normalise their stored weights within a forward pass in training mode:

    Without a discriminator they always do, and do not read --force_normalization. So both trained
    networks are normalised at the start of each forward pass of their own phase.
    With one they do it in a hook, and only where --force_normalization is 1. The hook of the fake
    score stays bound to the network that it was copied from, which is never in training mode: the
    fake score is never normalised.

Here both are normalised after each update: under ZeRO a forward pass would change working weights
that the masters overwrite, and a network that is evaluated should not change.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from sid_ray.denoisers.family import leave_weight
from sid_ray.denoisers.registry import family_of
from sid_ray.distributed.roles import UpdateRules

When = Literal["never", "before each pass", "after each update"]


class Normalised(NamedTuple):
    """When the weights of each trained network are normalised."""

    fake_score: When
    generator: When


# (objective.compat, whether there is a discriminator, training.normalize_weights)
NORMALISED: dict[tuple[str, bool, bool], Normalised] = {
    ("none", False, True): Normalised("after each update", "after each update"),
    ("none", True, True): Normalised("after each update", "after each update"),
    ("none", False, False): Normalised("never", "never"),
    ("none", True, False): Normalised("never", "never"),
    ("official", False, True): Normalised("before each pass", "before each pass"),
    ("official", False, False): Normalised("before each pass", "before each pass"),  # flag not read
    ("official", True, True): Normalised("never", "before each pass"),  # hook bound elsewhere
    ("official", True, False): Normalised("never", "never"),
}


def update_rules(
    discriminator: bool, family: str, compat: str, normalize_weights: bool, clip_value: float = 0.0
) -> dict[str, UpdateRules]:
    """The rules of ``fake_score`` and ``generator``; ``discriminator``: the objective has one.

    Of the published runs SiDA on EDM alone clips, and the fake score alone: its recipes say so
    (``training.clip_value``), whatever compat is. Replacing gradients that are not finite is
    published for all objectives and families, in both networks, before any clipping.
    """
    official = compat == "official"
    constrain = family_of(family).constrain
    when = NORMALISED[compat, discriminator, normalize_weights]
    return {
        role: UpdateRules(
            leave_weight if moment == "never" else constrain,
            constrain_first=moment == "before each pass",
            clip_value=clip_value if role == "fake_score" else 0.0,
            replace_nonfinite=official,
        )
        for role, moment in when._asdict().items()
    }
