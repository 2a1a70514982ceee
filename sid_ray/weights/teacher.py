"""The teacher of a config on this machine's disk, with its LoRA merged into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.weights.address import check_sha256, parse_source, source_label
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.fused import Lora, find_lora, fused
from sid_ray.weights.sources import resolve_component, resolve_source
from sid_ray.weights.unpacked import EPSILON, SUFFIXES


def resolve_teacher(config: DistillConfig) -> Path:
    """Its file or folder, fetched, unpacked and merged where it is not here. Raises UserError."""
    chosen = config.teacher
    base = resolve_source(chosen.source, config.schedule.prediction_type)
    if not chosen.lora:
        return base
    return fused(base, find_lora(chosen.lora, chosen.lora_scale), source_label(chosen.source))


def is_made_here(config: DistillConfig, folder: str) -> bool:
    """Whether the teacher's folder is made of other files on each host's own disk."""
    is_file = config.teacher.source.partition("#")[0].endswith(SUFFIXES)
    return bool(config.teacher.lora) or (is_file and not folder.endswith(SUFFIXES))


def lora_fingerprint(config: DistillConfig) -> str:
    """What names the teacher's LoRA by its content; empty without one. Raises UserError."""
    return find_lora(config.teacher.lora).sha256 if config.teacher.lora else ""


def noted_teacher(description: ModelDescription, label: str) -> Path:
    """The network of the teacher that an adapter's notes name, with its LoRA merged into it.

    ``label`` names the adapter in messages. Raises UserError where it is not there.
    """
    if not description.notes.get("teacher"):
        raise UserError(f"{label} is an adapter and does not say of which base")
    try:
        return teacher_of_notes(description)
    except UserError as error:
        raise UserError(f"{label} is an adapter; its base: {error}") from None


def component_of_noted_teacher(description: ModelDescription, *parts: str) -> Path:
    """A part of the teacher that a generator's model.json notes, with its LoRA merged into it.

    Raises UserError where it is not there, or its LoRA is another one by now.
    """
    found = resolve_component(str(description.notes["teacher"]), *parts)
    return teacher_of_notes(description) if lora_of_notes(description) else found


def teacher_of_notes(description: ModelDescription) -> Path:
    """Raises UserError."""
    teacher = str(description.notes["teacher"])
    commit = description.notes.get("teacher_commit")
    parsed = parse_source(teacher)
    if commit and parsed.kind == "hf" and "@" not in parsed.location:
        teacher = f"{teacher}@{commit}"  # the branch may have moved on
    base, lora = resolve_source(teacher, predicts(description)), lora_of_notes(description)
    return base if lora is None else fused(base, lora, source_label(teacher))


def lora_of_notes(description: ModelDescription) -> Lora | None:
    """The LoRA of a noted teacher. Raises UserError where it is not there, or another by now."""
    noted = description.notes.get("lora")
    if not isinstance(noted, Mapping):
        return None
    try:
        source, scale, sha256 = str(noted["source"]), float(noted["scale"]), str(noted["sha256"])
    except (LookupError, TypeError, ValueError):
        raise UserError(f"what model.json notes of a LoRA is not whole: {noted!r:.80}") from None
    lora = find_lora(source, scale)
    check_sha256(lora.sha256, sha256, lora.source)
    return lora


def predicts(description: ModelDescription) -> str:
    """What a network predicts, for a file of a pipeline that does not say it."""
    return str(description.network.get("prediction_type", EPSILON))
