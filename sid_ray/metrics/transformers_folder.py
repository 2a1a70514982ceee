"""Networks of features from a folder in Transformers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sid_ray.errors import UserError


def load_network(folder: Path, kind: str, class_name: str, what: str) -> Any:
    """The network of a folder whose config says that it is of this kind, in float32.

    ``what`` needs it, for the message. Raises UserError for another kind, or without the package.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"{what} needs transformers: pip install 'sid_ray[diffusers]'") from None
    found = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if found != kind:
        raise UserError(f"{folder} holds a {found} network, expected {kind}: give another folder")
    return getattr(transformers, class_name).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
