"""From what was typed to values: tyro reads, and what is wrong is told in one line.

A command's arguments are a dataclass, in a module that loads nothing heavy: what is wrong is told
before torch or Ray are there.
"""

from __future__ import annotations

import bisect
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, cast, get_args, overload

import tyro

# Not public: tyro offers its findings nowhere else but in print. pyproject.toml holds the version,
# tests/commands/test_arguments.py holds what is used of it.
from tyro import _errors as findings

from sid_ray.config.auto import AUTO, Auto
from sid_ray.config.distill_config import DistillConfig, replace, unknown_field
from sid_ray.config.ranges import checked
from sid_ray.config.registry import OBJECTIVES
from sid_ray.config.sections import OPEN_SWITCHES
from sid_ray.errors import UserError, did_you_mean
from sid_ray.recipes.registry import GUIDANCE, RECIPES, guidance_strategy, recipe

T = TypeVar("T")

DIGITS = 18  # of a seed, which is a signed number of 64 bits
MOST_NUMBERS = 1_000_000_000
HELP = ("-h", "--help")
NUMBERS = {int: "a whole number", float: "a number"}

ALIASES = {
    "--run": "--output.run",
    "--images": "--training.images",
    "--seed": "--training.seed",
    "--workers": "--resources.num-workers",
    "--alpha": "--objective.alpha",
    "--compat": "--objective.compat",
}

# The switches of resources that may be auto, too: --resources.use-gpu -> --resources.no-use-gpu.
SWITCHES = {
    f"--resources.{name}": f"--resources.no-{name}"
    for name in (each.replace("_", "-") for each in OPEN_SWITCHES)
}


class WithConfig:
    """Arguments of a command behind which every field of the config is a flag, too."""

    first: ClassVar[str]
    """What stands first, with an example; PROG is the command."""


@dataclasses.dataclass(frozen=True)
class OfRecipe(WithConfig):
    """Arguments of such a command that begins with a recipe."""

    first: ClassVar[str] = "a recipe first: PROG RECIPE [--section.field VALUE ...]"
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """Name of a recipe; sid-ray recipes lists them."""


def flags_of(kind: type) -> list[str]:
    """The flags of a dataclass' fields, with those of its sections."""
    found: list[str] = []
    for each in dataclasses.fields(kind):
        section = each.default_factory
        if isinstance(section, type) and dataclasses.is_dataclass(section):
            found += [f"--{each.name}.{flag[2:]}" for flag in flags_of(section)]
        elif section is dataclasses.MISSING is not each.default and "Positional" not in str(
            each.type
        ):
            name = each.name.replace("_", "-")
            switch = isinstance(each.default, bool) or each.name in OPEN_SWITCHES
            found += [f"--{name}", f"--no-{name}"][: 1 + switch]
    return found


def expand_aliases(args: Sequence[str]) -> list[str]:
    """Short flags of a config's fields to full ones, and switches that may be auto to their value:
    tyro takes no --no-X beside a third value.
    """
    expanded: list[str] = []
    rest = list(reversed(args))
    while rest:
        flag, equals, value = rest.pop().partition("=")
        if flag == "--guidance":
            expanded += guidance_flags(value if equals else rest.pop() if rest else "")
            continue
        flag = ALIASES.get(flag, flag)
        if flag.startswith("--eval."):
            flag = f"--evaluation.{flag.removeprefix('--eval.')}"
        expanded.append(flag + equals + value)
        for on, off in SWITCHES.items():
            if expanded[-1] == off:
                expanded[-1:] = [on, "False"]
            elif expanded[-1] == on and rest[-1:] not in ([AUTO], ["True"], ["False"]):
                expanded.append("True")
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
    """Arguments as a dataclass. Raises UserError for what is wrong, SystemExit after help."""
    return parsed(kind, args, prog, default=default)[0]


def parsed(
    kind: type[T],
    args: Sequence[str],
    prog: str,
    default: T | None = None,
    with_rest: bool = False,
    own: type | None = None,
    add_help: bool = True,
) -> tuple[T, list[str]]:
    """The same, and ``with_rest`` what is none of the dataclass' arguments, in its order.

    Args:
        own: the dataclass that has taken its arguments before: its flags are known, too.
    """

    def refuse(finding: findings.ParseErrorEvent) -> NoReturn:
        raise UserError(refusal(finding, kind, own, prog, args))

    if isinstance(default, DistillConfig):
        default = cast(T, of_objective(default, args))
    given: dict[str, Any] = {} if default is None else {"default": default}
    call = functools.partial(tyro.cli, kind, args=list(args), prog=prog, add_help=add_help, **given)
    rest: list[str] = []
    with findings.on_parse_error(refuse):
        if with_rest:
            values, rest = call(return_unknown_args=True)
        else:
            values = call()
    if kind is not DistillConfig:  # whose check() comes later, beside more
        checked(values, lambda name: f"--{name.replace('_', '-')}")
        getattr(values, "check", lambda: None)()
    return values, rest


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


def refusal(finding: Any, kind: type, own: type | None, prog: str, args: Sequence[str]) -> str:
    """What tyro found wrong, as one line."""
    if isinstance(finding, findings.UnrecognizedArgs):
        return unknown_flag(finding.tokens[0], kind, own, prog)
    lists = f"; {prog} --help lists them all"
    argument: Any = getattr(finding, "argument", None)
    if isinstance(finding, findings.MissingArgs):
        argument = finding.missing_arguments[0].arg
    flag = shown_flag(argument)
    if isinstance(finding, findings.MissingArgs | findings.BadValue):
        if argument.is_positional() and issubclass(kind, WithConfig):
            return f"name {kind.first.replace('PROG', prog)}"
        return f"{flag} {'is missing' if argument.is_positional() else 'without a value'}{lists}"
    if isinstance(finding, findings.InvalidChoice):
        choices = ", ".join(in_order(finding.choices))
        return f"{flag} {finding.value!r:.60}: expected one of {choices}{lists}"
    wanted = number_wanted(argument.field.type) if argument is not None else ""
    if wanted:
        value = value_of(flag, args)
        return f"{flag} {value!r:.60}: expected {wanted}{lists}"
    return f"{flag}: {getattr(finding, 'message', None) or 'not understood'}{lists}"


def number_wanted(kind: Any) -> str:
    """'a whole number' for a type that holds one, alone or beside others; '' for no number."""
    if kind in NUMBERS:
        return NUMBERS[kind]
    members = get_args(kind)
    found = next(filter(None, map(number_wanted, members)), "")
    return f"{found} or auto" if found and Auto in members else found


def in_order(choices: Sequence[str]) -> list[str]:
    """Choices as tyro has them; of a union, where it has them in any order, sorted."""
    return sorted(choices, key=lambda each: (each == AUTO, each)) if AUTO in choices else [*choices]


def value_of(flag: str, args: Sequence[str]) -> str:
    """What was typed for a flag, the last time."""
    found = ""
    for arg, following in zip(args, (*args[1:], ""), strict=True):
        name, equals, value = arg.partition("=")
        if name == flag:
            found = value if equals else following
    return found


def shown_flag(argument: Any) -> str:
    """An argument as it is typed."""
    if argument is None:
        return "the arguments"
    lowered = argument.lowered
    return str(lowered.metavar if argument.is_positional() else lowered.name_or_flags[0])


def unknown_flag(token: str, kind: type, own: type | None, prog: str) -> str:
    """What is said about a word that no argument is."""
    if not token.startswith("--"):
        return (
            f"{token!r:.200} is not expected there: a value stands behind its flag, and a switch "
            f"takes none; {prog} --help lists them all"
        )
    flag = token.partition("=")[0]
    near = nearest_flags(flag, flags_of(own or kind))
    if kind is DistillConfig and not near:
        return str(unknown_field(flag[2:].replace("-", "_")))
    return f"{prog} has no {flag}.{did_you_mean(near)} {prog} --help lists them all"


def nearest_flags(flag: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(flag, known, n=1, cutoff=0.8)


def with_flags(kind: type[T], args: Sequence[str], prog: str) -> tuple[T, list[str]]:
    """A command's own arguments, and the flags of the config that stand among them.

    Raises UserError for what is wrong, SystemExit after help.
    """
    needed = dataclasses.fields(kind)[0].default is dataclasses.MISSING  # type: ignore[arg-type]
    if (args[:1] and args[0] in HELP) or (needed and not args):
        show_help(kind, prog)
    flag = bool(args) and args[0].startswith("-")
    if needed and flag and args[0].partition("=")[0] not in flags_of(kind):
        raise UserError(f"name {kind.first.replace('PROG', prog)}")  # type: ignore[attr-defined]
    given = ["", *args] if flag and not needed else args
    return parsed(kind, given, prog, with_rest=True, add_help=False)


def configured(
    flags: Sequence[str], prog: str, default: DistillConfig, own: type | None = None
) -> DistillConfig:
    """A config as flags change it. ``own`` is the dataclass of the command's own arguments.

    Raises UserError for what is wrong, SystemExit after help.
    """
    return parsed(DistillConfig, expand_aliases(flags), prog, default=default, own=own)[0]


def of_recipe(kind: type[T], args: Sequence[str], prog: str) -> tuple[T, DistillConfig, list[str]]:
    """A command's own arguments, the recipe's config as flags change it, and those flags.

    Raises UserError for what is wrong, SystemExit after help.
    """
    options, flags = with_flags(kind, args, prog)
    name: str = options.recipe  # type: ignore[attr-defined]
    default = recipe(name) if name else DistillConfig()
    return options, configured(flags, f"{prog} {name}".strip(), default, kind), flags


def show_help(kind: type, prog: str) -> None:
    """Prints a command's own arguments and how to see those of a config. Raises SystemExit."""
    from sid_ray.metrics.spec import metric_specs
    from sid_ray.objectives.spec import objective_specs

    shortcuts = ", ".join(f"{short} = {full}" for short, full in ALIASES.items())
    objectives = ", ".join(f"{each.name} ({each.label})" for each in objective_specs())
    metrics = ", ".join(f"{each.name} ({each.title})" for each in metric_specs())
    description = (
        f"{inspect.cleandoc(kind.__doc__ or '')}\n\n"
        "Every field of the config is a flag, too, --section.field VALUE: sid-ray distill RECIPE "
        "--help explains them with the recipe's values.\n\n"
        f"Recipes: digits-sid and {len(RECIPES) - 1} more; sid-ray recipes lists them.\n\n"
        f"Short forms: {shortcuts}, --eval.X = --evaluation.X.\n\n"
        "--guidance STRATEGY:KAPPA sets kappa1 to kappa4; strategies: "
        f"{', '.join(GUIDANCE)}.\n\n"
        f"Objectives: {objectives}.\n\nMetrics: {metrics}."
    )
    tyro.cli(kind, args=["--help"], prog=prog, description=description)


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
