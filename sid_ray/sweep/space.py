"""A search space: which fields of a config vary, over what, on what condition, and for how long.

space_file.py reads one from YAML, space_check.py holds it against a recipe, sampling.py draws from
it. Nothing here knows of Ray: a point is a mapping of dotted fields to values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import PydanticCustomError

from sid_ray.config.distill_config import DistillConfig, flatten, replace
from sid_ray.recipes.registry import guidance_strategy

Value = bool | int | float | str
Scheduler = Literal["none", "asha", "pbt"]
Searcher = Literal["random", "optuna", "grid"]

# Not fields of a config but short for four of them: recipes.guidance_strategy.
STRATEGY, SCALE = "guidance.strategy", "guidance.scale"
KAPPAS = tuple(f"objective.kappa{number}" for number in range(1, 5))


@dataclass(frozen=True)
class Range:
    """Every number from low to high, both included; evenly, or evenly in the logarithm.

    Args:
        step: distance of the values that are possible, counted from low; 0 for no grid.
        integer: whole numbers only.
    """

    low: float
    high: float
    log: bool = False
    step: float = 0.0
    integer: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value lies within."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def clamped(self, value: float) -> float:
        """The nearest value that the range allows."""
        inside = min(max(value, self.low), self.high)
        if self.step:
            steps = round((inside - self.low) / self.step)
            last = int((self.high - self.low) / self.step + 1e-9)
            inside = self.low + min(steps, last) * self.step
        return round(inside) if self.integer else inside


@dataclass(frozen=True)
class Choice:
    """One of some values, each as likely; ``grid`` asks for all of them."""

    values: tuple[Value, ...]
    grid: bool = False

    def holds(self, value: Any) -> bool:
        return value in self.values

    def clamped(self, value: Value) -> Value:
        """Itself where it is one of the values, else the first."""
        return value if value in self.values else self.values[0]


Domain = Range | Choice


@dataclass(frozen=True)
class FieldCondition:
    """Holds where a field has one of some values."""

    name: str
    values: tuple[Value, ...]

    def holds(self, values: Mapping[str, Any]) -> bool:
        return values.get(self.name) in self.values


@dataclass(frozen=True)
class Parameter:
    """What is drawn for a field, on all of its conditions.

    ``key`` is the field's name; where a field has several cases, the later ones are NAME[1],
    NAME[2], ...: the first whose conditions hold counts.
    """

    key: str
    name: str
    domain: Domain
    when: tuple[FieldCondition, ...] = ()
    line: int = 0


def said(text: str) -> PydanticCustomError:
    """What is wrong with a value, behind its name: space_file.py makes the line of it."""
    return PydanticCustomError("said", "{text}", {"text": text})


def whole_number(least: int) -> BeforeValidator:
    """A whole number of at least so much."""

    def check(value: Any) -> int:
        if type(value) is not int or value < least:
            raise said(f" is {value!r}; expected a whole number of at least {least:,}")
        return value

    return BeforeValidator(check)


def above_one(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 1:
        raise said(f" is {value!r}; expected a number above 1")
    return value


@checked_dataclass(frozen=True, config={"extra": "forbid"})
class Metric:
    """A score by its name, and which way is better."""

    name: str
    direction: Literal["min", "max"]

    @property
    def sign(self) -> float:
        """What a score is multiplied with so that more is better."""
        return -1.0 if self.direction == "min" else 1.0


@checked_dataclass(frozen=True, config={"extra": "forbid"})
class SweepBudget:
    """How long trials may be; all in images seen. Pydantic checks it, in a file and elsewhere.

    Args:
        images: of a trial that is never stopped.
        grace: asha: no trial is judged before it has seen so many. pbt: none is changed.
        reduction: asha: of the trials at a rung, one in so many goes on.
        interval: pbt: between two looks at the population.
        total: of all trials together, after which no new one begins; 0 for no limit.
    """

    images: Annotated[int, whole_number(1)]
    grace: Annotated[int, whole_number(0)] = 0
    reduction: Annotated[float, BeforeValidator(above_one)] = 2.0
    interval: Annotated[int, whole_number(0)] = 0
    total: Annotated[int, whole_number(0)] = 0

    @field_validator("grace", "interval", "total")
    @classmethod
    def fits_a_trial(cls, value: int, info: ValidationInfo) -> int:
        images = info.data.get("images")  # None where it is wrong itself
        if info.field_name == "total":
            if images and 0 < value < images:
                raise said(f" is {value:,}, less than one trial's {images:,} images")
        elif images and value >= images:
            raise said(f" is {value:,}; it must be below budget.images ({images:,})")
        return value


@dataclass(frozen=True)
class Space:
    """A whole search space.

    ``seeds``: the first is that of all trials; best trial and recipe are repeated with each.
    ``lines`` are those of the file, by field and by top-level name.
    """

    source: str
    metrics: tuple[Metric, ...]
    budget: SweepBudget
    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Value] = field(default_factory=dict)
    scheduler: Scheduler = "none"
    searcher: Searcher = "random"
    trials: int = 16
    seeds: tuple[int, ...] = (0,)
    recipe: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that vary, each once, in the order of the file."""
        return tuple(dict.fromkeys(parameter.name for parameter in self.parameters))


def known_values(space: Space, base: DistillConfig) -> dict[str, Any]:
    """What fields have before anything is drawn."""
    return {**flatten(base), **space.fixed}


def walk(space: Space, base: DistillConfig, draw: Callable[[Parameter], Value]) -> dict[str, Value]:
    """A point: the fields that vary and are active, in order, with what ``draw`` gives for each.

    ``draw`` is asked only for what is active, so searchers never see the rest. A condition sees
    earlier fields of this point, fixed values and the base.
    """
    seen, point = known_values(space, base), dict[str, Value]()
    for parameter in space.parameters:
        if parameter.name in point or not all(one.holds(seen) for one in parameter.when):
            continue
        point[parameter.name] = seen[parameter.name] = draw(parameter)
    return point


def chosen_point(space: Space, base: DistillConfig, drawn: Mapping[str, Value]) -> dict[str, Value]:
    """The point of values that were drawn for every parameter, key -> value."""
    return walk(space, base, lambda parameter: drawn[parameter.key])


def config_of(space: Space, base: DistillConfig, point: Mapping[str, Value]) -> DistillConfig:
    """The config of a trial: recipe, fixed values, the point, the trial's images and seed.

    Raises UserError where the config refuses the combination.
    """
    values: dict[str, Any] = {**space.fixed, **point}
    strategy, scale = values.pop(STRATEGY, None), values.pop(SCALE, None)
    if strategy is not None:
        kappas = guidance_strategy(strategy, scale)
        values |= {f"objective.{name}": kappa for name, kappa in kappas.items()}
    values |= {"training.images": space.budget.images, "training.seed": space.seeds[0]}
    return replace(base, **{name.replace(".", "__"): v for name, v in values.items()}).check()
