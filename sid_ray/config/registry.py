"""Objectives, metrics and families by name: what ships, of installed packages, and of a call.

Each is a spec, an object with a ``name``. One that ships is a module of the folder ``home`` with
its spec as SPEC. A package that is installed beside this one names its own by an entry point:

    [project.entry-points."sid_ray.objectives"]
    toy = "my_package:TOY"

so that every process finds it, also Ray's workers. ``register`` adds one to this process alone.
Nothing is loaded before somebody asks for a spec, so that a command starts fast.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeVar

from sid_ray.errors import UserError, nearest


class HasName(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


S = TypeVar("S", bound=HasName)


class Registry(Generic[S]):
    """Specs by name.

    Args:
        what: they are, in words: objective, metric, network family.
        group: of the entry points that add to them.
        home: package whose modules hold those that ship.
    """

    def __init__(self, what: str, group: str, home: str):
        self.what, self.group, self.home = what, group, home
        self._called: dict[str, S] = {}
        self._loaded: dict[str, S] = {}

    def register(self, spec: S) -> None:
        """Adds a spec in this process. Raises UserError where another one has its name."""
        if spec.name in self.names and self._called.get(spec.name) is not spec:
            raise UserError(f"{self.what} {spec.name!r} is registered already; choose another name")
        self._called[spec.name] = spec

    @property
    def names(self) -> tuple[str, ...]:
        """Of all specs: those that ship, of packages, of calls. Loads no package's module.

        Raises UserError where two packages claim one name.
        """
        return tuple(dict.fromkeys((*self._shipped, *self._offered, *self._called)))

    @property
    def specs(self) -> tuple[S, ...]:
        """All of them, in the order of ``names``. Raises UserError as ``get`` does."""
        return tuple(self.get(name) for name in self.names)

    def get(self, name: str) -> S:
        """The spec of a name. Raises UserError where there is none, or it cannot be loaded."""
        found = self.find(name)
        if found is None:
            known, hint = ", ".join(self.names), nearest(name, self.names)
            raise UserError(f"unknown {self.what} {name!r}; known: {known}.{hint}")
        return found

    def find(self, name: str) -> S | None:
        """The spec of a name, None where there is none. Raises UserError if it cannot be loaded."""
        for known in (self._shipped, self._called, self._loaded):
            if name in known:
                return known[name]
        if name in self._offered:
            self._loaded[name] = self._load(self._offered[name])
        return self._loaded.get(name)

    @cached_property
    def _shipped(self) -> dict[str, S]:
        folder = importlib.import_module(self.home).__path__
        modules = [f"{self.home}.{found.name}" for found in pkgutil.iter_modules(folder)]
        specs: list[Any] = [importlib.import_module(name).SPEC for name in modules]
        return {spec.name: spec for spec in specs}

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        """Entry points by name. Raises UserError where one's name is taken."""
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._shipped or found.get(point.name, point) != point:
                raise UserError(
                    f"{self.what} {point.name!r} of {package_of(point)} has the name of another "
                    f"{self.what}: rename or uninstall one of them"
                )
            found[point.name] = point
        return found

    def _load(self, point: EntryPoint) -> S:
        where = f"{self.what} {point.name!r} of {package_of(point)}"
        try:
            spec = point.load()
        except Exception as error:  # a package's own code may fail in any way
            raise UserError(
                f"{where} cannot be loaded ({type(error).__name__}: {error}): mend or uninstall it"
            ) from error
        if getattr(spec, "name", None) != point.name:
            raise UserError(
                f"{where}: {point.value} is called {getattr(spec, 'name', None)!r}; expected a "
                "spec of the entry point's name"
            )
        return spec


def package_of(point: EntryPoint) -> str:
    """The installed package that an entry point is of."""
    return point.dist.name if point.dist is not None else point.value


OBJECTIVES: Registry[Any] = Registry(
    "objective", "sid_ray.objectives", "sid_ray.objectives.built_in"
)
METRICS: Registry[Any] = Registry("metric", "sid_ray.metrics", "sid_ray.metrics.built_in")
