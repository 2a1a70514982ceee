"""What tyro finds wrong reaches a person as one line: what is used of it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Interval
from tyro.conf import Positional, arg

from sid_ray.commands.arguments import WithConfig, flags_of, parse, with_flags
from sid_ray.config.distill_config import DistillConfig, flatten
from sid_ray.errors import UserError


@dataclass(frozen=True)
class Options:
    """Arguments of every kind."""

    place: Annotated[str, Positional, arg(metavar="PLACE")]
    """Where."""
    count: Annotated[int, Interval(ge=1, le=9)] = 1
    """How many."""
    share: float | None = None
    """How much."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    deep: bool = False
    """How far."""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "PLACE is missing; prog --help lists them all"),
        (["x", "--count"], "--count without a value"),
        (["x", "--count", "two"], "--count 'two': expected a whole number"),
        (["x", "--count=1.5"], "--count '1.5': expected a whole number"),
        (["x", "--share", "all"], "--share 'all': expected a number"),
        (["x", "--kind", "c"], "--kind 'c': expected one of a, b"),
        (["x", "--count", "10"], "--count is 10; it must be at most 9"),
        (["x", "--share", "nan"], "--share is nan; it must be a finite number"),
        (["x", "--cout", "1"], "prog has no --cout. Did you mean --count?"),
        (["x", "--zzzz"], "prog has no --zzzz. prog --help lists them all"),
        (["x", "--deep", "true"], "'true' is not expected there"),
        (["x", "y"], "'y' is not expected there"),
    ],
)
def test_what_is_wrong_is_one_line(args, words, capsys):
    with pytest.raises(UserError) as said:
        parse(Options, args, "prog")
    assert words in str(said.value) and "\n" not in str(said.value)
    assert capsys.readouterr() == ("", "")


def test_what_is_right_is_taken():
    found = parse(Options, ["x", "--share=0.5", "--deep", "--count", "9"], "prog")
    assert found == Options("x", count=9, share=0.5, deep=True)


@dataclass(frozen=True)
class Before(WithConfig):
    first = "a place first: PROG PLACE"
    place: Annotated[str, Positional, arg(metavar="PLACE")]
    deep: bool = False


def test_flags_of_the_config_stay_in_their_order():
    args = ["x", "--training.seed", "3", "--deep", "--objective.alpha", "-1", "--help"]
    options, rest = with_flags(Before, args, "prog")
    assert options == Before("x", deep=True)
    assert rest == ["--training.seed", "3", "--objective.alpha", "-1", "--help"]
    for wrong in (["--training.seed", "3"], ["--deep"]):
        with pytest.raises(UserError, match="name a place first: prog PLACE"):
            with_flags(Before, wrong, "prog")


def test_every_field_of_the_config_has_its_flag():
    flags = set(flags_of(DistillConfig))
    for name, value in flatten(DistillConfig()).items():
        assert f"--{name.replace('_', '-')}" in flags
        section, _, leaf = name.replace("_", "-").rpartition(".")
        switch = f"--{section}.no-{leaf}"
        assert not isinstance(value, bool) or switch in flags
