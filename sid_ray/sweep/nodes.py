"""YAML with line numbers: nodes to plain values, and errors that say where.

Numbers are read as people write them: 1e-5 is a number (YAML 1.1 takes it for text), 010 is ten,
yes, no, on and off are texts. No tag is obeyed, so a file can only be data.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from sid_ray.errors import UserError, nearest

WHOLE = re.compile(r"[-+]?\d[\d_]*")
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


class Nodes:
    """The nodes of one file; every error names the file and a line."""

    def __init__(self, source: str):
        self.source = source

    def error(self, node: yaml.Node, text: str) -> UserError:
        return UserError(f"{self.source}:{line_of(node)}: {text}")

    def compose(self, text: str) -> yaml.MappingNode:
        """The root of a file. Raises UserError where it is no YAML, or no mapping."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UserError(f"{self.source}{line}: not YAML: {problem}") from None
        if not isinstance(root, yaml.MappingNode):
            line = f":{line_of(root)}" if root else ""
            raise UserError(f"{self.source}{line}: expected names with values, like metric: ...")
        return root

    def items(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Name -> (node of the name, node of the value), each name once."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what}: expected names with values")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name in found:
                first = line_of(found[name][0])
                raise self.error(key, f"{name} stands twice, first in line {first}")
            found[name] = key, value
        return found

    def known(
        self, node: yaml.Node, what: str, names: tuple[str, ...]
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """items(), of these names only."""
        found = self.items(node, what)
        for name, (key, _) in found.items():
            if name not in names:
                hint = nearest(name, names) or f" There are: {', '.join(names)}."
                raise self.error(key, f"{what} has no {name!r}.{hint}")
        return found

    def scalar(self, node: yaml.Node, what: str) -> Any:
        """A bool, int, float, str, or None for nothing."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, f"{what}: expected one value")
        text = node.value
        if node.style is not None:  # quoted
            return text
        if text.lower() in WORDS:
            return WORDS[text.lower()]
        if WHOLE.fullmatch(text):
            return int(text.replace("_", ""))
        if NUMBER.fullmatch(text):
            return float(text.replace("_", ""))
        return text

    def scalars(self, node: yaml.Node, what: str) -> list[Any]:
        """A list of values."""
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what}: expected a list, like [1, 2]")
        return [self.scalar(item, what) for item in node.value]

    def whole(self, node: yaml.Node, what: str, least: int = 0) -> int:
        """A whole number of at least ``least``."""
        value = self.scalar(node, what)
        if type(value) is not int or value < least:
            raise self.error(
                node, f"{what} is {value!r}; expected a whole number of at least {least:,}"
            )
        return value

    def one_of(self, node: yaml.Node, what: str, names: tuple[str, ...]) -> str:
        """One of some words."""
        value = self.scalar(node, what)
        if value not in names:
            hint = nearest(str(value), names) or f" There are: {', '.join(names)}."
            raise self.error(node, f"{what}: no {value!r}.{hint}")
        return str(value)


def line_of(node: yaml.Node) -> int:
    return node.start_mark.line + 1
