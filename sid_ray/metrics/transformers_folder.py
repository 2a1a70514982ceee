"""Networks of features in Transformers' layout: a folder, or an address that it is fetched from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from sid_ray.denoisers.text_identity import weights_sha256
from sid_ray.errors import UserError
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path
from sid_ray.tensor_files.tensors import read_component
from sid_ray.weights.sources import resolve_component

STEMS = ("model", "pytorch_model")
POSITIONS = "position_ids"  # older files hold the numbers of the places, too


class Loaded(NamedTuple):
    """A network in float32, and the sha256 of its weights."""

    network: Any
    sha256: str


def folder_at(place: str) -> Path:
    """The folder of a network that lies at a path, hf://OWNER/REPO or s3://; what lies elsewhere is
    fetched once. Raises UserError.
    """
    return expanded(place) if is_path(place) else resolve_component(place, "network")


def load_network(folder: Path, kind: str, class_name: str, what: str) -> Loaded:
    """The network of a folder whose config says that it is of this kind.

    ``what`` needs it, for the message. Nothing in its files is run. Raises UserError for another
    kind, for weights that are missing or do not fit, and without the package.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError:
        raise UserError(f"{what} needs transformers: pip install 'sid_ray[diffusers]'") from None
    logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        line = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{folder} holds no network for {what} ({line})") from None
    if config.model_type != kind:
        found = config.model_type
        raise UserError(f"{folder} holds a {found} network, expected {kind}: give another folder")
    read, _ = read_component(folder, STEMS)
    tensors = {name: value for name, value in read.items() if not name.endswith(POSITIONS)}
    network, found = getattr(transformers, class_name).from_pretrained(
        None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
    )
    for lacking in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, found[lacking])):
            raise UserError(
                f"{folder} does not fit the network that its config.json describes: "
                f"{len(names)} tensors are {lacking.partition('_')[0]}, the first is {names[0]}"
            )
    return Loaded(network, weights_sha256(folder))
