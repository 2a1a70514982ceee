"""What is known of the generators that are served, before any is loaded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sid_ray.checkpoint.best import ALIAS
from sid_ray.checkpoint.best import PREFIX as BEST_PREFIX
from sid_ray.checkpoint.manifest import EMA_FOLDER
from sid_ray.checkpoint.manifest import PREFIX as CHECKPOINT_PREFIX
from sid_ray.checkpoint.model_card import plain_label
from sid_ray.commands.export import scores_to_tell
from sid_ray.commands.generate import OneStepNetwork
from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.manifest import read_manifest
from sid_ray.data.source import is_prepared, open_source
from sid_ray.errors import UserError
from sid_ray.evaluation.subject import Subject, find_subject
from sid_ray.objectives.spec import objective_spec
from sid_ray.serving.contract import ConditionKind, ServedModel, Teacher
from sid_ray.serving.teachers import TeacherFound
from sid_ray.storage.errors import StoreError
from sid_ray.storage.places import expanded
from sid_ray.storage.store import Store
from sid_ray.training.assemble import generation_of
from sid_ray.weights.address import parse_source
from sid_ray.weights.licence import licence_of
from sid_ray.weights.resolution import factor_of
from sid_ray.weights.same import called

EXAMPLES = 6
NAMED = re.compile(r"([A-Za-z0-9][\w.-]{0,99})=(.+)", re.DOTALL)
INSIDE = (BEST_PREFIX, CHECKPOINT_PREFIX)  # of a run's folder, what holds its weights


@dataclass(frozen=True)
class Offer:
    """A generator and its name in a server."""

    name: str
    source: str


def offers_of(typed: Sequence[str]) -> list[Offer]:
    """RUN or NAME=RUN, each with a name of its own.

    Runs that are called alike get the name of the folder above before theirs, or else a number
    behind it. Raises UserError for one name given twice.
    """
    found: list[Offer] = []
    taken: set[str] = set()
    named = {each: match for each in typed if (match := name_given(each)) is not None}
    for match in named.values():
        if match[1] in taken:
            raise UserError(f"two runs are called {match[1]}: give each a name of its own")
        taken.add(match[1])
    for each in typed:
        if each in named:
            found.append(Offer(named[each][1], named[each][2]))
            continue
        check_no_name(each)
        name = next(name for name in possible_names(each) if name not in taken)
        taken.add(name)
        found.append(Offer(name, each))
    return found


def name_given(typed: str) -> re.Match[str] | None:
    """NAME=RUN taken apart; None for a run alone, whose path may hold = too."""
    return NAMED.fullmatch(typed)


def check_no_name(typed: str) -> None:
    """Raises UserError for NAME=RUN whose NAME is none, and not for a path that holds =."""
    before, sign, _ = typed.partition("=")
    if sign and "/" not in before and not expanded(typed).exists():
        raise UserError(
            f"{before!r:.60} before = is no name: letters, digits, _ . and - are taken, at most "
            "100, of which the first is a letter or a digit"
        )


def possible_names(source: str) -> Iterator[str]:
    """The run's, then its folder's and its, then with numbers."""
    words = words_of(source)
    yield words[-1]
    if len(words) > 1 and words[0] != "runs":
        yield "-".join(words[-2:])
    number = 2
    while True:
        yield f"{words[-1]}-{number}"
        number += 1


def words_of(source: str) -> list[str]:
    """The last folders of a run's address, fit to be names; at least one."""
    parts = PurePosixPath(parse_source(source).location.partition("://")[2] or source).parts
    kept = [part for part in parts if part not in (ALIAS, EMA_FOLDER, "/", ".", "..")]
    while len(kept) > 1 and kept[-1].startswith(INSIDE):
        kept.pop()
    fit = [re.sub(r"[^\w.-]+", "-", part).strip("-.") for part in kept[-2:]]
    return [word.removesuffix(".safetensors") for word in fit if word][-2:] or ["generator"]


def told_model(offer: Offer) -> ServedModel:
    """What is told of it. Raises UserError where it is no generator, or lacks a part.

    Its weights are fetched where they are not here, and not loaded.
    """
    opened = OneStepNetwork(offer.source, 1)
    subject = find_subject(offer.source)
    description, family = opened.description, opened.family
    condition: ConditionKind = "none"
    if family.reads_text:
        condition = "prompt"
    elif opened.label_dim:
        condition = "class"
    factor = factor_of(description, opened.components.vae)
    _, height, width = opened.shape
    config = subject.config
    place = opened.base or opened.components.text
    teacher = str(description.notes.get("teacher", ""))
    kind = called(description.family)
    label = f"{objective_spec(config.objective.name).label} of {kind}" if config else kind
    return ServedModel(
        name=offer.name,
        label=label,
        condition=condition,
        classes=class_names(config, opened.label_dim) if condition == "class" else (),
        examples=some_prompts(config, opened.shape) if condition == "prompt" else (),
        size=(height * factor, width * factor),
        steps=(generation_of(description)[1],),
        teacher=told_teacher(subject, offer.source),
        images_seen=subject.images_seen,
        scores=scores_to_tell(subject),
        base=plain_label(teacher),
        licence=licence_of(teacher, place).told(),
    )


def told_teacher(subject: Subject, source: str) -> Teacher | None:
    """None where it is not known, or has no sampler; whether its weights are there, its first use
    shows.
    """
    try:
        return TeacherFound.of(source, subject.description).told()
    except UserError:
        return None


def class_names(config: DistillConfig | None, count: int) -> list[str]:
    """Those of the data set where it names them; else numbers."""
    names: Sequence[str] = ()
    if config is not None and is_prepared(config.data):
        with contextlib.suppress(UserError, StoreError, OSError):
            names = read_manifest(Store.at(config.data.source)).class_names
    return [str(name) for name in names] if len(names) == count else [*map(str, range(count))]


def some_prompts(config: DistillConfig | None, shape: tuple[int, int, int]) -> list[str]:
    """Of the run's data set, evenly apart; none where it has none here."""
    if config is None or is_prepared(config.data):
        return []
    try:
        prompts = open_source(config.data, shape).prompts or ()
    except (UserError, StoreError, OSError):
        return []
    return list(prompts[:: max(1, len(prompts) // EXAMPLES)][:EXAMPLES])
