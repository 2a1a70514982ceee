"""From what was typed to values: short flags, tyro's complaints in one line, lists of numbers."""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast, overload

import tyro

from sid_ray.config.distill_config import DistillConfig, known_fields, replace, unknown_field
from sid_ray.config.registry import OBJECTIVES
from sid_ray.errors import UserError
from sid_ray.recipes.registry import guidance_strategy

T = TypeVar("T")

DIGITS = 18  # of a seed, which is a signed number of 64 bits
MOST_NUMBERS = 1_000_000_000

ALIASES = {
    "--run": "--output.run",
    "--images": "--training.images",
    "--seed": "--training.seed",
    "--workers": "--resources.num-workers",
    "--alpha": "--objective.alpha",
    "--compat": "--objective.compat",
}


def field_flags() -> set[str]:
    """Every --section.field of the config, in both spellings."""
    names = known_fields()
    return {f"--{spelt}" for name in names for spelt in (name, name.replace("_", "-"))}


def expand_aliases(args: Sequence[str]) -> list[str]:
    """Short flags to full ones, and an error for a flag that no field has.

    tyro would refuse it too, with a page; a person needs the nearest name in one line.
    """
    known = field_flags() | {"--help", "-h"} | {f"--no-{flag[2:]}" for flag in field_flags()}
    known |= {re.sub(r"\.(?=[^.]*$)", ".no-", flag) for flag in field_flags()}
    expanded: list[str] = []
    rest = iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=")
        if flag == "--guidance":
            expanded += guidance_flags(value if equals else next(rest, ""))
            continue
        flag = ALIASES.get(flag, flag)
        if flag.startswith("--eval."):
            flag = f"--evaluation.{flag.removeprefix('--eval.')}"
        if flag.startswith("--") and flag not in known:
            raise unknown_field(flag[2:].replace("-", "_"))
        expanded.append(flag + equals + value)
    return expanded


def guidance_flags(text: str) -> list[str]:
    """'long-short:2' to the flags of its four kappas."""
    name, colon, number = text.partition(":")
    try:
        kappa = float(number) if colon else None
    except ValueError:
        raise UserError(
            f"--guidance {text!r}: expected STRATEGY:NUMBER, like long-short:2, or zero"
        ) from None
    kappas = guidance_strategy(name, kappa)
    return [f"--objective.{name}={value}" for name, value in kappas.items()]


def parse(kind: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """Arguments by tyro; its complaint as one UserError line instead of a page."""
    page = io.StringIO()
    if isinstance(default, DistillConfig):
        default = cast(T, of_objective(default, args))
    try:
        with contextlib.redirect_stderr(page):
            if default is None:
                return tyro.cli(kind, args=list(args), prog=prog)
            return tyro.cli(kind, args=list(args), prog=prog, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{complaint(page.getvalue())}; {prog} --help lists them all") from None


def of_objective(default: DistillConfig, args: Sequence[str]) -> DistillConfig:
    """The defaults with the section of the objective that the arguments name last.

    tyro reads the fields of the default's own class, and so those of an objective of a package.
    Raises UserError for an objective that is not known.
    """
    flag, name = "--objective.name", default.objective.name
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        if arg == flag:
            name = following
        elif arg.startswith(f"{flag}="):
            name = arg.partition("=")[2]
    if name == default.objective.name:
        return default
    OBJECTIVES.get(name)
    return replace(default, objective__name=name)


def complaint(page: str) -> str:
    """The one sentence of tyro's framed page of error and help."""
    lines = [line.strip(" │|+-─╭╮╰╯") for line in page.splitlines()]
    text = " ".join(line for line in lines[1:] if line)
    text = re.split(r"Argument helptext|For full help|\(required\)", text)[0]
    text = text.removeprefix("Error parsing ").strip(" .:")
    return text or lines[0] or "arguments not understood"


class Numbers(Sequence[int]):
    """Whole numbers as ranges: many take no more memory than a few."""

    def __init__(self, ranges: Sequence[range]):
        self.ranges = ranges
        self.ends = list(itertools.accumulate(map(len, ranges)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(self.ranges)

    def __contains__(self, number: object) -> bool:
        return any(number in each for each in self.ranges)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        which = bisect.bisect_right(self.ends, place)
        return self.ranges[which][place - (self.ends[which - 1] if which else 0)]


def without_repeats(numbers: Numbers) -> Numbers:
    """The same numbers in their order, each once."""
    kept: list[range] = []
    for each in numbers.ranges:
        parts = [each]
        for other in kept:
            parts = [
                piece
                for part in parts
                for piece in (
                    range(part.start, min(part.stop, other.start)),
                    range(max(part.start, other.stop), part.stop),
                )
                if piece
            ]
        kept += parts
    return Numbers(kept)


def number_list(text: str, what: str, most: int = MOST_NUMBERS) -> Numbers:
    """'0-3,7' -> 0, 1, 2, 3, 7. Raises UserError for anything else, and for more than ``most``."""
    ranges: list[range] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:-([0-9]+))?\s*", part)
        if match is None:
            raise UserError(
                f"--{what} {text!r:.200}: expected numbers and ranges like 0-63 or 1,5,10-19"
            )
        first, last = (number.lstrip("0") or "0" for number in (match[1], match[2] or match[1]))
        if max(len(first), len(last)) > DIGITS:
            raise UserError(f"--{what} {text!r:.200}: a number has at most {DIGITS} digits")
        if int(last) < int(first):
            raise UserError(
                f"--{what} {text!r:.200}: {first}-{last} is empty, the smaller number stands first"
            )
        ranges.append(range(int(first), int(last) + 1))
    count = sum(map(len, ranges))
    if count > most:
        raise UserError(f"--{what} {text!r:.200}: {count:,} numbers, at most {most:,} are taken")
    return Numbers(ranges)


def is_address(path: Path) -> bool:
    """Whether s3://... or another address was typed where a file's path belongs."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) is not None


def typed_prompts(text: str) -> list[str]:
    """Texts between |, without the empty ones."""
    return [part.strip() for part in text.split("|") if part.strip()]


def one_of(args: Sequence[str], group: str, names: Sequence[str], usage: str) -> str:
    """The command of a group that is meant; empty after its usage was asked for and printed."""
    first = args[0] if args else ""
    if first in ("-h", "--help"):
        print(usage)
        return ""
    if first not in names:
        found = f"no command {group} {first!r}" if first else f"{group} needs a command"
        raise UserError(f"{found}: {' or '.join(names)} is expected")
    return first
