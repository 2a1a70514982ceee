"""The map of sid_ray: packages, the arrows between them, circles, and the longest import chain.

    python -m benchmarks.map                    # this checkout
    python -m benchmarks.map OTHER/sid_ray      # another one

Reads the source, imports nothing of it. A file of the root is a room of its own.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

HERE = Path(__file__).parents[1] / "sid_ray"
Graph = dict[str, set[str]]


def graph_of(package: Path) -> Graph:
    """Module -> modules of the package that it imports when it runs, wherever the import stands."""
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
    }
    return {name: imports(path, package.name, set(modules)) for name, path in modules.items()}


def imports(path: Path, package: str, modules: set[str]) -> set[str]:
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix(package + ".") for name in named} & modules
    return found


def room(module: str) -> str:
    """The folder that a module lies in; a file of the root is a room of its own."""
    return module.split(".")[0]


def arrows(graph: Graph) -> set[tuple[str, str]]:
    return {(room(a), room(b)) for a, below in graph.items() for b in below if room(a) != room(b)}


def circles(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of rooms that reach each other."""
    below = defaultdict(set)
    for a, b in pairs:
        below[a].add(b)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in below[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return seen

    reach = {name: reached(name) for name in {a for a, _ in pairs}}
    return sorted((a, b) for a in reach for b in reach[a] if a < b and a in reach.get(b, ()))


def longest_chain(graph: Graph) -> list[str]:
    @cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max((chain(below) for below in graph[name]), key=len, default=()))

    return list(max((chain(name) for name in graph), key=len))


def main(package: Path) -> None:
    graph = graph_of(package)
    files, lines = Counter[str](), Counter[str]()
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).parts
        name = parts[0] + "/" if len(parts) > 1 else "(root)"
        files[name] += 1
        lines[name] += len(path.read_text(encoding="utf-8").splitlines())
    print(f"{'folder':<16}{'files':>6}{'lines':>8}")
    for name in sorted(files):
        print(f"{name:<16}{files[name]:>6}{lines[name]:>8,}")
    print(f"{'all':<16}{files.total():>6}{lines.total():>8,}")
    pairs, chain = arrows(graph), longest_chain(graph)
    print(f"arrows between rooms {len(pairs)}; circles of rooms {len(circles(pairs))}")
    print(f"longest chain of imports, {len(chain)} modules: {' > '.join(chain)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
