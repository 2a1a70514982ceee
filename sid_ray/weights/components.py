"""What a network needs beside its weights: a text encoder with its tokenizer, and a VAE.

Where they lie, whether they can be loaded, and whether they suit the network: looked at before a
run starts, by the code that the run opens them with.

    found = find_components(description, folder, Named("", "", "--text-encoder", "--vae"))
    found.text, found.vae      folders on this machine's disk, or None
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sid_ray.denoisers.family import Family
from sid_ray.denoisers.precondition import precision_beside
from sid_ray.denoisers.registry import convention_of, family_of, family_of_text, text_parts
from sid_ray.denoisers.text import TextEmbeddings
from sid_ray.denoisers.text_identity import encoders_sha256, fingerprint_of_encoders
from sid_ray.errors import UserError
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path
from sid_ray.tensor_files.tensors import json_object
from sid_ray.weights.description import Components, ModelDescription
from sid_ray.weights.sources import resolve_component
from sid_ray.weights.teacher import component_of_noted_teacher
from sid_ray.weights.unpacked import with_tokenizers

BATCH = 8  # images that a VAE takes at once
VAE = ("vae",)


@dataclass(frozen=True)
class Named:
    """Addresses that a person gave, empty for the network's own, and the flags that take them."""

    text_encoder: str = ""
    vae: str = ""
    text_flag: str = "--text-encoder"
    vae_flag: str = "--vae"


def find_components(
    description: ModelDescription, network: Path, named: Named, teacher: str = ""
) -> Components:
    """The components of a network, fetched where they are not here, and looked at.

    What is named is taken before what lies in the network's own folder, that before what its
    model.json notes, and that before ``teacher``'s. Without a text encoder, and with a VAE named
    that cannot serve, UserError is raised; a VAE that is not there is not missed yet.
    """
    text = vae = None
    family = family_of(description.family)
    if family.reads_text:
        text = find_text(description, network, named, teacher)
    elif named.text_encoder:
        raise UserError(f"{named.text_flag} {named.text_encoder}: {network.name} reads no text")
    if family.makes_latents(description.network):
        if named.vae:
            vae = component_folder(named.vae, *VAE)
            check_vae_suits(description, vae)
            check_scale_is_said(vae, network, family.latent_convention().scale)
        else:
            places = places_of_component(description, network, "vae", teacher)
            vae = next((found for _, found, _ in places if found is not None), None)
    elif named.vae:
        raise UserError(f"{named.vae_flag} {named.vae}: {network.name} makes pixels, no latents")
    return Components(text, vae)


def find_text(description: ModelDescription, network: Path, named: Named, teacher: str) -> Path:
    """Raises UserError where there is no text encoder, or one of another pipeline."""
    family = family_of(description.family)
    tokenizers = [named.text_encoder] if named.text_encoder else []
    if named.text_encoder and not holds_tokenizer_only(named.text_encoder):
        folder = resolve_component(named.text_encoder, *family.text_parts)
        family.check_text(description.network, folder)
        return folder
    if noted := description.notes.get("text_encoder"):
        tokenizers.append(str(noted))
    tried: list[str] = []
    for address, found, trouble in places_of_component(
        description, network, family.text_parts[0], teacher
    ):
        if found is not None:
            found = with_tokenizers(found, family.text_parts, tokenizers, named.text_flag)
            family.check_text(description.network, found)
            return found
        tried.append(f"{address}: {trouble}" if trouble else address)
    where = f" ({tried[1]})" if len(tried) > 1 else ""
    raise UserError(
        f"{network.name} reads text and has no text encoder beside it{where}: give "
        f"{named.text_flag} FOLDER, a diffusers folder with the {' and '.join(family.text_parts)} "
        "that it was trained with"
    )


def holds_tokenizer_only(source: str) -> bool:
    """Whether a folder here has a tokenizer and no text encoder: for that of a pipeline's file."""
    if not is_path(source):
        return False
    folder = expanded(source)
    has_encoder = any((folder / n / "config.json").is_file() for n in ("text_encoder", ""))
    names = ("tokenizer_config.json", "vocab.json")
    return not has_encoder and any(
        (folder / part / name).is_file() for part in ("tokenizer", "") for name in names
    )


def places_of_component(
    description: ModelDescription, network: Path, part: str, teacher: str
) -> Iterator[tuple[str, Path | None, str]]:
    """(address, folder, trouble) of places where a component may lie, best first; the folder is
    None where it is not there.
    """
    own = network if (network / part).is_dir() else None
    yield str(network), own, ""
    parts = VAE if part in VAE else family_of(description.family).text_parts
    notes = description.notes
    for address in (notes.get(part), notes.get("teacher"), teacher):
        if not address or str(address) == str(network):
            continue
        try:
            if address == notes.get("teacher") and part not in VAE:
                found = component_of_noted_teacher(description, *parts)
            else:
                found = resolve_component(str(address), *parts)
            alone = address == notes.get(part) and (found / "config.json").is_file()
            yield str(address), found if alone or (found / part).is_dir() else None, ""
        except UserError as error:
            yield str(address), None, str(error)


def check_vae_suits(description: ModelDescription, folder: Path) -> None:
    """Raises UserError where a VAE cannot be loaded, or is of other latents."""
    family = family_of(description.family)
    own = family.latent_convention().check(folder).latent_channels
    channels = family.shape(description.network)[0]
    if own != channels:
        raise UserError(
            f"the VAE in {folder} is of {own} latent channels, the network of {channels}: take the "
            "one that it was trained with"
        )


def check_scale_is_said(folder: Path, network: Path, unsaid: float | None) -> None:
    """Raises UserError where a VAE does not say how its latents are scaled, as one in a file by
    itself, and the network's own has another scale than the one ``unsaid`` that is taken then.
    """
    own, named = network / "vae" / "config.json", folder / "config.json"
    if unsaid is None or not own.is_file() or "scaling_factor" in json_object(named):
        return
    scale = json_object(own).get("scaling_factor", unsaid)
    if scale != unsaid:
        raise UserError(
            f"the VAE in {folder} does not say how its latents are scaled, and the network's own "
            f"are by {scale}: give a folder with its config.json, and scaling_factor in that"
        )


def fingerprint_of_text(components: Components, family: str) -> str:
    """What names a network's text encoders and their tokenizers by their content; empty without
    any.

    Numbers depend on them: a run goes on with the same ones, wherever they lie.
    """
    if components.text is None:
        return ""
    own = family_of(family)
    found = fingerprint_of_encoders(components.text, own.text_parts)
    rules = own.text_rules(components.text)
    return f"{found}, {rules}" if rules else found


def component_folder(source: str | Path, *parts: str) -> Path:
    """The folder of a component: SOURCE/part, or SOURCE where it is one itself.

    The first of ``parts``; the others are fetched with it. Raises UserError where there is none.
    """
    folder = resolve_component(str(source), *parts)
    return folder / parts[0] if (folder / parts[0]).is_dir() else folder


def text_encoder_sha256(pipeline: Path, family: str) -> str:
    """What names the text encoders of a pipeline's folder in a manifest, as a family reads them.

    Raises UserError.
    """
    return encoders_sha256(pipeline, family_of(family).text_parts)


@cache
def open_vae(source: str, convention: str, device: str, precision: str = "float32") -> Any:
    """The codec around a folder's VAE, loaded once a process. Raises UserError.

    ``precision``: of the networks beside it.
    """
    one_thread_on_cpu(device)
    chosen = convention_of(convention)
    vae = chosen.load(component_folder(source, "vae"))
    return chosen.codec(vae.to(device, chosen.dtype(precision, vae)), BATCH)


class FoundText(NamedTuple):
    """Text encoders of a folder, the family that reads them, and what names them."""

    folder: Path
    family: Family
    sha256: str


def text_at(source: str) -> FoundText:
    """The text encoders of a folder that may hold nothing else; none is loaded. Raises UserError.

    The family is the one that reads such encoders.
    """
    folder = resolve_component(source, *text_parts())
    family = family_of_text(folder)
    return FoundText(folder, family, encoders_sha256(folder, family.text_parts))


@cache
def open_text(source: str, device: str) -> TextEmbeddings:
    """text_at's encoders, loaded once a process. Raises UserError.

    Large ones compute as beside networks in half precision on a GPU.
    """
    one_thread_on_cpu(device)
    folder, family, _ = text_at(source)
    precision = "float32" if family.text_stays else precision_beside("bfloat16", device)
    return family.load_text(folder, device, precision)


def one_thread_on_cpu(device: str) -> None:
    """The same rounding in every process: results of matrix products depend on the threads."""
    if device == "cpu":
        torch.set_num_threads(1)
