"""The part ``fields:`` of a search space's file: what varies over what, and on what condition."""

from __future__ import annotations

from typing import Any, get_args

import yaml

from sid_ray.config.distill_config import unknown_field
from sid_ray.errors import closest, did_you_mean
from sid_ray.sweep.limits import NOT_FIXED, converted, expected_of, field_types, why_not_varied
from sid_ray.sweep.nodes import Nodes, line_of
from sid_ray.sweep.space import Choice, Condition, Domain, Parameter, Range, Value

RANGES = {"uniform": 2, "loguniform": 2, "quniform": 3}
DOMAINS = (*RANGES, "choice", "grid")


def fields_of(
    nodes: Nodes, node: yaml.Node
) -> tuple[tuple[Parameter, ...], dict[str, Value], dict[str, int]]:
    """What varies, what has one value, and the lines of both."""
    parameters: list[Parameter] = []
    fixed: dict[str, Value] = {}
    lines: dict[str, int] = {}
    for name, (key, value) in nodes.items(node, "fields").items():
        lines[name] = line_of(key)
        check_name(nodes, key, name)
        if isinstance(value, yaml.ScalarNode):
            if name in NOT_FIXED:
                raise nodes.error(key, f"{name} may not stand here: {why_not_varied(name)}")
            fixed[name] = value_of(nodes, value, name)
            continue
        if reason := why_not_varied(name):
            raise nodes.error(key, f"{name} may not vary: {reason}")
        several = isinstance(value, yaml.SequenceNode)
        for number, case in enumerate(value.value if several else [value]):
            own = name if number == 0 else f"{name}[{number}]"
            domain, when = case_of(nodes, case, name)
            parameters.append(Parameter(own, name, domain, when, line_of(case)))
    if not parameters:
        raise nodes.error(node, "fields: nothing varies; give at least one field a range or choice")
    check_order(nodes, node, parameters)
    return tuple(parameters), fixed, lines


def check_name(nodes: Nodes, key: yaml.Node, name: str) -> None:
    """Raises UserError for a field that no config has."""
    known = field_types()
    if name in known:
        return
    near = closest(name, known)
    if near:
        raise nodes.error(key, f"no field {name!r} in the config.{did_you_mean(near)}")
    raise nodes.error(key, str(unknown_field(name)))


def value_of(nodes: Nodes, node: yaml.Node, name: str) -> Any:
    """A value of a field, of the field's type."""
    kind, value = field_types()[name], nodes.scalar(node, name)
    try:
        return converted(kind, value)
    except ValueError:
        hint = did_you_mean(closest(value, get_args(kind))) if isinstance(value, str) else ""
        raise nodes.error(
            node, f"{name} is {value!r}; expected {expected_of(kind)}.{hint}".rstrip(".")
        ) from None


def case_of(nodes: Nodes, node: yaml.Node, name: str) -> tuple[Domain, tuple[Condition, ...]]:
    """{uniform: [0, 1], when: {objective.name: sida}}"""
    parts = nodes.known(node, name, (*DOMAINS, "when"))
    kinds = [kind for kind in parts if kind != "when"]
    if len(kinds) != 1:
        raise nodes.error(node, f"{name}: expected one of {', '.join(DOMAINS)}, found {len(kinds)}")
    kind, value = kinds[0], parts[kinds[0]][1]
    when = conditions_of(nodes, parts["when"][1], name) if "when" in parts else ()
    if kind in RANGES:
        return range_of(nodes, value, name, kind), when
    return choice_of(nodes, value, name, kind), when


def choice_of(nodes: Nodes, node: yaml.Node, name: str, kind: str) -> Choice:
    """[1, 2, 3]"""
    nodes.scalars(node, f"{name}: {kind}")
    values = tuple(value_of(nodes, item, name) for item in node.value)
    if not values:
        raise nodes.error(node, f"{name}: {kind} is empty; give at least one value")
    if len(set(values)) < len(values):
        raise nodes.error(node, f"{name}: {kind} has a value twice")
    return Choice(values, grid=kind == "grid")


def range_of(nodes: Nodes, node: yaml.Node, name: str, kind: str) -> Range:
    """[low, high], with quniform [low, high, step]"""
    type_ = field_types()[name]
    if type_ not in (int, float):
        raise nodes.error(node, f"{name}: {kind} needs a number, use choice: {expected_of(type_)}")
    count = len(nodes.scalars(node, f"{name}: {kind}"))
    if count != RANGES[kind]:
        form = "[low, high, step]" if kind == "quniform" else "[low, high]"
        raise nodes.error(node, f"{name}: {kind} has {count} values; expected {form}")
    low, high, *steps = (value_of(nodes, item, name) for item in node.value)
    if not low < high:
        raise nodes.error(
            node, f"{name}: {kind} [{low:g}, {high:g}] is empty; low must be below high"
        )
    if kind == "loguniform" and low <= 0:
        raise nodes.error(node, f"{name}: loguniform from {low:g}; it must begin above 0")
    step = steps[0] if steps else 0.0
    if steps and not 0 < step <= high - low:
        raise nodes.error(node, f"{name}: step {step:g} must be above 0 and at most {high - low:g}")
    return Range(low, high, kind == "loguniform", step, type_ is int)


def conditions_of(nodes: Nodes, node: yaml.Node, name: str) -> tuple[Condition, ...]:
    """{objective.name: sida, objective.logvar: [true, false]}"""
    found = []
    for other, (key, value) in nodes.items(node, f"{name}: when").items():
        check_name(nodes, key, other)
        if other == name:
            raise nodes.error(key, f"{name}: when speaks of {name} itself")
        parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
        values = tuple(value_of(nodes, part, other) for part in parts)
        if not values:
            raise nodes.error(value, f"{name}: when {other} has no value")
        found.append(Condition(other, values))
    if not found:
        raise nodes.error(node, f"{name}: when is empty")
    return tuple(found)


def check_order(nodes: Nodes, node: yaml.Node, parameters: list[Parameter]) -> None:
    """Raises UserError where a condition speaks of a later field, or of a range."""
    places = {key: key_node for key, (key_node, _) in nodes.items(node, "fields").items()}
    before: dict[str, list[Parameter]] = {}
    varied = {parameter.name for parameter in parameters}
    for parameter in parameters:
        for condition in parameter.when:
            key = places[parameter.name]
            if condition.name in varied and condition.name not in before:
                raise nodes.error(
                    key, f"{parameter.name}: when speaks of {condition.name}: put that field above"
                )
            for other in before.get(condition.name, ()):
                if isinstance(other.domain, Range):
                    raise nodes.error(
                        key,
                        f"{parameter.name}: when {condition.name} has a value, but that varies "
                        "over a range; a condition needs a choice",
                    )
        before.setdefault(parameter.name, []).append(parameter)
