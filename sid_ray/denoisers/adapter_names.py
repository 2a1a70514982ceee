"""What the tensors of an adapter are called: in a network's tree, and in a file.

PEFT gives each adapter of a tree a name of its own, which its files, and diffusers', leave out:

    unet.mid_block.attn.to_q.lora_A.default.weight     in the tree
    unet.mid_block.attn.to_q.lora_A.weight             in a file
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

OWN = "default"  # PEFT's name of the one adapter of a tree
DOWN, UP = f".lora_A.{OWN}.weight", f".lora_B.{OWN}.weight"
IN_FILE = (".lora_A.weight", ".lora_B.weight")
Value = TypeVar("Value")


def is_adapters(name: str) -> bool:
    """Whether a tensor of a tree with an adapter is A or B, by its name."""
    return name.endswith((DOWN, UP))


def name_in_file(name: str) -> str:
    return name.replace(f".{OWN}.weight", ".weight") if is_adapters(name) else name


def name_in_tree(name: str) -> str:
    """The inverse of name_in_file."""
    return f"{name.removesuffix('weight')}{OWN}.weight" if name.endswith(IN_FILE) else name


def names_in_file(
    tensors: Iterable[tuple[str, Value]],
) -> Iterator[tuple[str, Value]]:
    """Tensors under the names of a file, which diffusers and PEFT read."""
    return ((name_in_file(name), value) for name, value in tensors)


def names_in_tree(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The inverse of names_in_file."""
    return {name_in_tree(name): value for name, value in tensors.items()}
