"""Arguments of flow-matching transformers: which are known, which a denoiser here can be made of.

An argument is an option of diffusers' class, as config.json holds it, or one of ours beside them:
``latent_size`` (height and width of the latents that are distilled), ``text_tokens`` (of a prompt)
and what a family adds.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from sid_ray.denoisers.component import line_of_error
from sid_ray.errors import UserError, nearest

OURS = ("latent_size", "text_tokens")
MAX_LAYERS = 256  # twice as many as the deepest one published; more keep a constructor busy
NOT_OF_IMAGES = ("dropout",)  # of training alone


def options_of(
    network: Mapping[str, Any], class_name: str, known: Any, ours: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Those arguments that diffusers' class takes, written out: defaults filled in.

    ``known`` is the class. Raises UserError for another class, an unknown option, and a number of
    layers, of latents or of tokens that no network has.
    """
    named = network.get("_class_name", class_name)
    if named != class_name:
        raise UserError(f"expected a {class_name}, found {named!r}")
    defaults = defaults_of(known)
    for name in network:
        if name not in defaults and name not in (*OURS, *ours) and not name.startswith("_"):
            every = (*defaults, *OURS, *ours)
            raise UserError(f"not an option of {class_name}: {name!r}.{nearest(name, every)}")
    for name in OURS:
        check_count(name, network.get(name, 1))
    options = defaults | {name: network[name] for name in network if name in defaults}
    for name in ("num_layers", "num_single_layers"):
        check_count(name, options.get(name, 1), MAX_LAYERS, 0)
    return options


def defaults_of(known: Any) -> dict[str, Any]:
    """Options of diffusers' class and their defaults; none is without one."""
    options = inspect.signature(known.__init__).parameters
    return {name: of.default for name, of in options.items() if of.default is not of.empty}


def check_count(name: str, value: Any, most: int = 1 << 16, least: int = 1) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise UserError(
            f"option {name!r} = {json.dumps(value)} is not supported; expected a whole number, "
            f"{least} to {most}"
        )


def check_plain(options: Mapping[str, Any], class_name: str, expected: Mapping[str, Any]) -> None:
    """Raises UserError for an option that asks for what is not built here."""
    for name, value in expected.items():
        if options[name] != value:
            raise UserError(
                f"option {name!r} = {json.dumps(options[name])} of {class_name} is not supported; "
                f"expected {json.dumps(value)}"
            )


def check_channels(options: Mapping[str, Any], class_name: str) -> None:
    """Raises UserError for a network whose output is not of its input's kind."""
    into, out = options["in_channels"], options["out_channels"]
    if out not in (None, into):
        raise UserError(
            f"the {class_name} has {into} input and {out} output channels: inpainting and "
            "image-conditioned models are not supported"
        )


def check_latent_size(size: Any, patch: int, most: int | None = None) -> None:
    """Raises UserError for latents that do not split into patches, or into more than ``most`` a
    side.
    """
    check_count("latent_size", size)
    if size % patch:
        raise UserError(f"latents of {size}x{size} do not split into patches of {patch}x{patch}")
    if most is not None and size // patch > most:
        raise UserError(
            f"latents of {size}x{size} are {size // patch} patches a side; the network has "
            f"positions for {most}"
        )


def built_transformer(known: Any, options: Mapping[str, Any], class_name: str) -> nn.Module:
    """The network with random weights. Raises UserError for options that make none."""
    try:
        return known(**options)
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError, AssertionError) as e:
        raise UserError(f"not a {class_name}'s config: {line_of_error(e)}") from e


def arguments_written_out(options: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Options that say which network it is, and ours beside them, as JSON has them."""
    said = {name: value for name, value in options.items() if name not in NOT_OF_IMAGES}
    if said.get("out_channels") is None:
        said["out_channels"] = said["in_channels"]
    return json.loads(json.dumps(said | dict(ours)))
