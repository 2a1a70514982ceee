"""One component of a diffusers folder: its config.json and its weights, checked.

Knows diffusers and transformers only through the class it is given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError


def read_config(folder: Path, class_name: str) -> dict[str, Any]:
    """A component's config.json. Raises UserError when it is missing or of another class."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no {class_name} in {folder}: config.json is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a component's config: it holds no object")
    named = config.get("_class_name") or (config.get("architectures") or [class_name])[0]
    if named != class_name:
        raise UserError(f"{path} describes {named}, expected {class_name}")
    if "quantization_config" in config:
        raise UserError(f"{path}: quantised weights are not supported; take the float ones")
    return config


def load_module(cls: Any, folder: Path, *stems: str) -> Any:
    """A network of a folder, float32, eval, without gradients; nothing missing or left over.

    Safetensors where there are any; a ``.bin`` is read by torch's weights-only unpickler, which
    executes nothing. ``stems`` are the weight files' names without extension.
    """
    safe = [folder / f"{stem}.safetensors{end}" for stem in stems for end in ("", ".index.json")]
    pickled = [folder / f"{stem}.bin{end}" for stem in stems for end in ("", ".index.json")]
    use_safetensors = any(path.is_file() for path in safe)
    if not use_safetensors and not any(path.is_file() for path in pickled):
        raise UserError(f"no weights in {folder}: {safe[0].name} is missing")
    options = {"local_files_only": True, "output_loading_info": True, "low_cpu_mem_usage": False}
    try:
        model, info = cls.from_pretrained(folder, use_safetensors=use_safetensors, **options)
    except Exception as error:
        raise UserError(f"the weights in {folder} cannot be read: {first_line(error)}") from error
    for kind, what in (("missing_keys", "lacks"), ("unexpected_keys", "holds unknown")):
        names = sorted(info[kind])
        if names:
            raise UserError(f"{folder} {what} {len(names)} tensors, the first is {names[0]!r}")
    if info["mismatched_keys"]:
        raise UserError(f"{folder}: shapes do not fit: {sorted(info['mismatched_keys'])[0]}")
    return model.float().eval().requires_grad_(False)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
