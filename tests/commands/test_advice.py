"""What messages tell a person to type exists: flags, fields and commands in every text of sid_ray.

The flags of a text are held against the commands that can show it: those of the command that the
text names, else those of the module's own commands.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sid_ray
from sid_ray import cli
from sid_ray.commands.arguments import ALIASES, WithConfig, flags_of
from sid_ray.config.distill_config import DistillConfig, flatten
from sid_ray.config.sections import OPEN_SWITCHES

PACKAGE = Path(sid_ray.__file__).parent
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9.-]*[a-z0-9])(?!\w|-|\.?\{|\.[A-Z]|\.$)")
COMMAND = re.compile(
    r"sid-ray (weights convert|weights inspect|weights fuse|"
    r"data prepare|data show|sweep report|[a-z]+)\b"
)
SECTIONS = "|".join(
    field.name for field in dataclasses.fields(DistillConfig) if field.name != "recipe"
)
FIELD = re.compile(rf"(?<![\w./-])({SECTIONS})\.([a-z][a-z0-9_]+)\b(?!\()")


OPEN = {f"resources.{name}" for name in OPEN_SWITCHES}  # on, off, or auto


def of_config() -> set[str]:
    found = {"help", "guidance", *(short.lstrip("-") for short in ALIASES)}
    for name, value in flatten(DistillConfig()).items():
        flag = name.replace("_", "-")
        section, _, leaf = flag.rpartition(".")
        switch = isinstance(value, bool) or name in OPEN
        found |= {flag, f"{section}.no-{leaf}"} if switch else {flag}
    return found


CONFIG = of_config()
COMMANDS = {}
for each in cli.LIST:
    options = cli.loaded(each.options)
    own = {"help", *(flag[2:] for flag in flags_of(options))}
    COMMANDS[each.name] = own | (CONFIG if issubclass(options, WithConfig) else set())
RUNS = ("distill", "submit", "sweep", "plan", "doctor")
OWNERS: dict[str, tuple[str, ...]] = {
    "jobs/": ("submit",),
    "sweep/": ("sweep", "sweep report"),
    "commands/plan": ("plan",),
    "commands/bench": ("bench",),
    "planning/fit": RUNS,
    "commands/generate": ("generate",),
    "commands/evaluate": ("evaluate",),
    "evaluation/blocks": ("evaluate",),
    "evaluation/subject": ("evaluate",),
    "commands/compare": ("compare",),
    "weights/command": ("weights convert", "weights inspect"),
    "commands/export": ("export", "push"),
    "commands/push": ("push",),
    "exporting/": ("export",),
    "exporting/hub": ("push",),
    "serving/": ("serve",),
    "commands/fuse": ("weights fuse", *RUNS),
    "commands/gallery": ("gallery",),
    "weights/over_base": ("generate", "evaluate"),
    "weights/": (),
    "weights/formats": ("weights convert", *RUNS),
    "weights/options": ("weights convert", *RUNS),
    "weights/unpacked": RUNS,
    "data/": ("data prepare", "data show", *RUNS),
    "data/picture_sets": ("evaluate",),
    "evaluation/picture_blocks": ("evaluate",),
    "cli": tuple(COMMANDS),
    "commands/arguments": tuple(COMMANDS),
    "commands/ui": ("ui",),
    "actors/pool": ("evaluate",),
    "commands/distill": (*RUNS, "generate"),
    "evaluation/": ("evaluate", "generate", *RUNS),
    "weights/components": ("evaluate", "generate", *RUNS),
    "checkpoint/model_card": ("generate",),
}
OTHERS = re.compile(  # commands of other programs, whose flags are not ours
    r"\b(ray job|ray up|ray start|mlflow|pip|git|docker|kubectl|nvidia-smi|aws|head)\b|--index-url"
)
OTHERS_FLAGS = (
    "backend-store-uri",
    "runtime-env-json",
    "version",
    "workers",
    "format",
    "query-gpu",  # nvidia-smi's, one word of a command each
    "resources",  # the beginning of any of its fields
    "section.field",  # stands for any of the config's
)  # in parts of a command line


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text that a module may show: string literals, the parts of an f-string joined; neither
    docstrings nor the flags of other programs.
    """
    tree = ast.parse(path.read_text())
    inside: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            inside.add(id(body[0].value))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def owners(name: str) -> tuple[str, ...]:
    fitting = [prefix for prefix in OWNERS if name.startswith(prefix)]
    return OWNERS[max(fitting, key=len)] if fitting else RUNS


def wrong_flags(name: str, text: str) -> Iterator[str]:
    """Flags that the text names and no command of its has."""
    if OTHERS.search(text):
        return
    named = [command for command in COMMAND.findall(text) if command in COMMANDS]
    known = set().union(*(COMMANDS[command] for command in (*owners(name), *named)))
    for flag in FLAG.findall(text):
        if flag not in known and flag not in OTHERS_FLAGS:
            yield flag


# Programs of their own, which an export copies, have flags of their own; a page's style has names.
APART = ("denoisers/loaders/", "commands/gallery_page")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_flags_of_messages_exist(path):
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    wrong = [
        f"{path.name}:{line} --{flag}"
        for line, text in texts(path)
        for flag in wrong_flags(name, text)
    ]
    assert not wrong or name.startswith(APART)


def test_fields_of_messages_exist():
    known = set(flatten(DistillConfig()))
    wrong = [
        f"{path.name}:{line} {found[0]}"
        for path in MODULES
        for line, text in texts(path)
        for found in FIELD.finditer(text)
        if found[0] not in known and " " in text and found[0] != "data.pkl"
    ]
    assert not wrong


def test_commands_of_messages_exist():
    known = {*cli.COMMANDS, *COMMANDS}
    wrong = [
        f"{path.name}:{line} {command}"
        for path in MODULES
        for line, text in texts(path)
        for command in COMMAND.findall(text)
        if command not in known
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("assemble", "give --teacher.text-encoder FOLDER", []),
        ("assemble", "lend one by --like", ["like"]),
        ("assemble", "sid-ray weights convert A B --like C", []),
        ("commands/generate", "give --vae FOLDER", []),
        ("commands/generate", "give --evaluation.vae FOLDER", ["evaluation.vae"]),
        ("data/prepare", "--forse replaces it", ["forse"]),
        ("jobs/submit", "ray job logs --follow --address X", []),
    ],
)
def test_what_the_scan_finds(module, text, wrong):
    assert list(wrong_flags(module, text)) == wrong
