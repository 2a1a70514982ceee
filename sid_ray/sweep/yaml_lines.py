"""YAML as plain values with the line of each.

Numbers are read as people write them: 1e-5 is a number (YAML 1.1 takes it for text), 010 is ten,
yes, no, on and off are texts. No tag is obeyed, so a file can only be data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from sid_ray.errors import UserError

WHOLE = re.compile(r"[-+]?\d[\d_]*")
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
Place = tuple[str | int, ...]  # names and places in lists, from the root


@dataclass
class Document:
    """A file's mapping. ``lines``: of each name with its value, and of each item of a list."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)

    def path(self, names: Iterable[str | int]) -> Place:
        """Those of the names that lead somewhere in the file, one after the other."""
        value, found = self.values, list[str | int]()
        for name in names:
            if (isinstance(value, dict) and name in value) or (
                isinstance(value, list) and isinstance(name, int) and name < len(value)
            ):
                value = value[name]
            else:
                continue
            found.append(name)
        return tuple(found)

    def line(self, path: Place) -> int:
        """The line of what a path leads to; within an alias that of its name."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def error(self, line: int, text: str) -> UserError:
        return UserError(f"{self.source}{f':{line}' if line else ''}: {text}")


def read_yaml(text: str, source: str) -> Document:
    """A file's mapping. Raises UserError where it is no YAML, or no mapping of names."""
    found = Document(source)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise found.error(mark.line + 1 if mark else 0, f"not YAML: {problem}") from None
    line = root.start_mark.line + 1 if root else 0
    if not isinstance(root, yaml.MappingNode):
        raise found.error(line, "expected names with values, like metric: ...")
    found.lines[()] = line
    found.values = value_of_node(root, (), found, {})
    return found


def value_of_node(node: yaml.Node, path: Place, found: Document, known: dict[int, Any]) -> Any:
    """A node's value; the lines of what is in it are noted. An alias to itself is an empty list."""
    if isinstance(node, yaml.ScalarNode):
        return value_of_scalar(node)
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = []
    value: Any
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            found.lines[*path, place] = item.start_mark.line + 1
        value = [value_of_node(item, (*path, n), found, known) for n, item in enumerate(node.value)]
    else:
        value = {}
        for key, item in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            line = key.start_mark.line + 1
            if name in value:
                first = found.line((*path, name))
                raise found.error(line, f"{name} stands twice, first in line {first}")
            found.lines[*path, name] = line
            value[name] = value_of_node(item, (*path, name), found, known)
    known[id(node)] = value
    return value


def value_of_scalar(node: yaml.ScalarNode) -> bool | int | float | str | None:
    """A value as its text looks; what is quoted is a text."""
    text = node.value
    if node.style is not None:
        return text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if WHOLE.fullmatch(text):
        return int(text.replace("_", ""))
    if NUMBER.fullmatch(text):
        return float(text.replace("_", ""))
    return text
