"""What ``import sid_ray`` offers, for scripts and notebooks.

    result = sid_ray.distill("digits-sid", images=30_000, run="first")
    images = result.generator(range(16))  # uint8 [16, C, H, W]

Nothing here prints, ends the process, or changes what is the caller's: a run's driver is a process
of its own (commands/driver.py).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from sid_ray.commands.driver import run_driver
from sid_ray.commands.result import BATCH, Generator, Result
from sid_ray.config.distill_config import (
    DistillConfig,
    flatten,
    known_fields,
    replace,
    unknown_field,
)
from sid_ray.errors import RunFailedError, UserError
from sid_ray.recipes.registry import RECIPES, check_supplied, recipe_entry
from sid_ray.run_folder import runs_folder

__all__ = [
    "DistillConfig",
    "Generator",
    "Result",
    "RunFailedError",
    "UserError",
    "distill",
    "load_generator",
    "recipe",
    "recipe_names",
]


def distill(
    config_or_recipe: DistillConfig | str,
    /,
    progress: Callable[[str], object] | Literal[True] | None = None,
    **overrides: Any,
) -> Result:
    """Distils, or goes on with a run of the same name, and waits for its end.

        sid_ray.distill("digits-sid", run="first", images=30_000, alpha=1.2)
        sid_ray.distill("digits-sid", training__batch_size=128, output__folder="/data/runs")
        sid_ray.distill("digits-sid", **{"training.batch_size": 128})
        sid_ray.distill("digits-sid", training={"batch_size": 128, "group_size": 16})

    The run's driver is a process of its own, which inherits this one's environment (RAY_ADDRESS
    names the cluster to join), so that this one keeps its signal handlers, file descriptors,
    environment, Ray and MLflow as they are. Ctrl-C has the workers save their state before
    KeyboardInterrupt is raised; also where this process is killed, they save.

    Args:
        config_or_recipe: a DistillConfig, or the name of a recipe (``recipe_names()``).
        progress: None for silence; True shows what the command shows; or what takes its lines.
        overrides: fields of the config: SECTION__FIELD, "SECTION.FIELD", a section with a mapping
            of its fields, or FIELD alone where one section has it.

    Raises:
        UserError: before anything starts, for what is the caller's to mend.
        RunFailedError: a UserError, for a run that began and failed; the same call goes on.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    config = config_from(config_or_recipe, overrides)
    check_supplied(config.check())
    config = replace(config, output__folder=runs_folder(config.output.folder))
    if progress is not True:
        return run_driver(config, progress or None)
    out = sys.stdout
    # A live line needs the terminal itself; a notebook's output has none.
    if out is sys.__stdout__ and out is not None and out.isatty():
        out.flush()
        return run_driver(config, None, on_terminal=True)
    return run_driver(config, lambda line: print(line, flush=True))


def recipe(name: str, /, **overrides: Any) -> DistillConfig:
    """A recipe's config, with fields replaced as by ``distill``.

    Raises UserError for an unknown name, with the nearest ones.
    """
    return config_from(name, overrides)


def recipe_names() -> list[str]:
    """Those that `sid-ray recipes` lists."""
    return list(RECIPES)


def load_generator(
    source: str | os.PathLike[str],
    device: str = "",
    batch: int = BATCH,
    text_encoder: str | os.PathLike[str] = "",
    vae: str | os.PathLike[str] = "",
) -> Generator:
    """The generator of a run's folder, a checkpoint, RUN/best, or any source of weights.

    It is loaded when it first makes images, and raises UserError then where there is none.
    """
    return Generator(os.fspath(source), device, batch, os.fspath(text_encoder), os.fspath(vae))


# What is replaced in a config ---------------------------------------------------------------------


def config_from(
    config_or_recipe: DistillConfig | str, overrides: Mapping[str, Any]
) -> DistillConfig:
    """The config with fields replaced. Raises UserError for a field or a value that is wrong."""
    if isinstance(config_or_recipe, str):
        config = recipe_entry(config_or_recipe).config
    elif isinstance(config_or_recipe, DistillConfig):
        config = config_or_recipe
    else:
        raise UserError(
            f"expected a DistillConfig or a recipe's name, found {config_or_recipe!r:.60}"
        )
    named: dict[str, Any] = {}
    for name, value in overrides.items():
        named |= fields_of(name, value)
    if "objective.name" in named:  # its section has the fields of that objective
        config = replace(config, objective__name=named["objective.name"])
    for name in named:
        if name not in flatten(config):
            raise UserError(f"{name} is no field of objective {config.objective.name!r}")
    config = replace(config, **{name.replace(".", "__"): value for name, value in named.items()})
    try:
        return TypeAdapter(DistillConfig).validate_python(dataclasses.asdict(config))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # one of our own
            raise UserError(str(first["ctx"]["error"])) from None
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} is {first.get('input')!r:.60}: {first['msg'].lower()}") from None


def fields_of(name: str, value: Any) -> dict[str, Any]:
    """The dotted fields, with their values, that an override means. Raises UserError."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    known = known_fields()
    dotted = name.replace("__", ".")
    if dotted in known:
        return {dotted: value}
    section = {known_name for known_name in known if known_name.startswith(f"{dotted}.")}
    if section:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is a section: give a mapping of its fields")
        found: dict[str, Any] = {}
        for field, each in value.items():
            found |= fields_of(f"{dotted}.{field}", each)
        return found
    alone = [known_name for known_name in known if known_name.rpartition(".")[2] == dotted]
    if len(alone) > 1:  # "alpha" has been objective.alpha since before there were adapters
        alone = [known_name for known_name in alone if not known_name.startswith("adapter.")]
    if len(alone) == 1:
        return {alone[0]: value}
    if alone:
        raise UserError(f"{name} may be {' or '.join(alone)}: give one of these names")
    raise unknown_field(dotted)
