"""Does the suite turn red? Places in the heart of the code are changed at random, one at a time.

    python -m benchmarks.mutations --count 20 --seed 0 [--only 3 17] > benchmarks/mutations.md

In a copy of the checkout: each mutant is one change to the step, an objective, an engine, a
checkpoint or the order of data (a sign, a comparison, a number, a call left out, arguments
swapped), followed by the tests of that part, until one fails. A mutant that survives is either
equivalent (numbers and files stay what they are) or asks for a test.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {  # files that are changed -> tests that should see it, the quickest first
    "training/step.py": ("training/test_step.py", "training/test_official_loop.py", "objectives"),
    "objectives/*.py": ("objectives", "training/test_step.py", "training/test_official_loop.py"),
    "distributed/*.py": ("distributed", "training/test_step.py"),
    "checkpoint/*.py": (
        "checkpoint", "distributed/test_fragments.py", "commands/test_generate.py",
        "commands/test_release.py", "commands/test_earlier_run.py", "actors/test_run_s3.py",
    ),
    "data/order.py": ("data/test_order.py", "data/test_reader.py", "data/test_prepared.py"),
}  # fmt: skip
LIMIT_S = 900.0  # a mutant that hangs is caught, too
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: characters start to stop of a file become ``new``."""

    file: Path
    line: int
    start: int
    stop: int
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.stop :]


def changed(node: ast.AST) -> ast.AST | None:
    """The node with one change; None for one that has none."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.BinOp | ast.BoolOp) and type(new.op) in OTHER:
        new.op = OTHER[type(new.op)]()
    elif isinstance(new, ast.Compare) and type(new.ops[0]) in OTHER:
        new.ops[0] = OTHER[type(new.ops[0])]()
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, ast.Not | ast.USub):
        return new.operand
    elif isinstance(new, ast.Constant) and isinstance(new.value, bool):
        new.value = not new.value
    elif isinstance(new, ast.Constant) and isinstance(new.value, int | float):
        new.value = new.value * 2 if isinstance(new.value, float) and new.value else new.value + 1
    elif isinstance(new, ast.Expr) and isinstance(new.value, ast.Call):
        return ast.Pass()
    elif isinstance(new, ast.Call) and len(new.args) > 1 and not is_starred(new):
        new.args[:2] = new.args[1::-1]
    else:
        return None
    return new


def is_starred(call: ast.Call) -> bool:
    return any(isinstance(argument, ast.Starred) for argument in call.args)


def nodes_in(node: ast.AST) -> Iterator[ast.AST]:
    """What computes: no type, no message of an error, no text, no decorator."""
    left_out = ("annotation", "returns", "decorator_list", "bases", "type_params")
    for name, value in ast.iter_fields(node):
        if name in left_out:
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                continue
            yield child
            yield from nodes_in(child)


def mutants_of(file: Path, tests: tuple[str, ...]) -> list[Mutant]:
    source = file.read_text()
    lines = source.splitlines(keepends=True)
    begins = [sum(map(len, lines[:index])) for index in range(len(lines))]
    found = []
    for node in nodes_in(ast.parse(source)):
        new = changed(node)
        if new is None:
            continue
        ends = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
        start, stop = (  # columns are counted in bytes
            begins[line - 1] + len(lines[line - 1].encode()[:column].decode())
            for line, column in ends
        )
        text = ast.unparse(new)
        if not isinstance(node, ast.Expr):
            text = f"({text})"
        found.append(Mutant(file, node.lineno, start, stop, source[start:stop], text, tests))
    return found


def chosen(count: int, seed: int) -> list[Mutant]:
    """As many of each part, for the parts are of very different sizes."""
    rng = random.Random(seed)
    parts = []
    for pattern, tests in TESTS.items():
        files = sorted((ROOT / "sid_ray").glob(pattern))
        parts.append([mutant for file in files for mutant in mutants_of(file, tests)])
    for part in parts:
        rng.shuffle(part)
    return [parts[index % len(parts)][index // len(parts)] for index in range(count)]


def verdict(mutant: Mutant, checkout: Path) -> str:
    """Which test fails first; what survives is said so."""
    file = checkout / mutant.file.relative_to(ROOT)
    source = file.read_text()
    file.write_text(mutant.applied(source))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in mutant.tests)],
            cwd=checkout, env=environment, capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "the tests hang"
    finally:
        file.write_text(source)
    if done.returncode == 0:
        return "**survives**"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0].split(maxsplit=1)[1] if failed else "the tests do not start"


def shown(text: str) -> str:
    """Code for a cell of a table."""
    plain = " ".join(text.split())[:70].replace("|", "\\|")
    return f"`{plain}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants, from 0")
    parser.add_argument("--list", action="store_true", help="say what they are, run nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        tracked = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for name in filter(None, tracked):
            if (ROOT / name).is_file():
                (checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, checkout / name)
        print("| | place | before | after | seen by | s |\n|---:|---|---|---|---|---:|", flush=True)
        for index, mutant in enumerate(chosen(options.count, options.seed)):
            if options.only and index not in options.only:
                continue
            began = time.monotonic()
            seen = "" if options.list else verdict(mutant, checkout)
            place = f"{mutant.file.relative_to(ROOT / 'sid_ray')}:{mutant.line}"
            cells = (
                str(index), place, shown(mutant.old), shown(mutant.new), seen,
                f"{time.monotonic() - began:.0f}",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
