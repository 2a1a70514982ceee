"""Fields against the types and ranges that stand beside them.

pydantic looks, and what it finds first is told in our words, whoever wrote the value: a file, a
command, a sweep, Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sid_ray.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
# An instance is looked into again: neither a dataclass nor replace() looks at ranges.
RULES: Mapping[str, Any] = {
    "extra": "forbid",
    "allow_inf_nan": False,
    "revalidate_instances": "always",
}
SAID = {  # pydantic's kinds of errors
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "string_unicode": "is not UTF-8, and would be stored as text",
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text",
    "dataclass": "must be a section with fields",
}


@functools.cache
def adapter(kind: Any) -> TypeAdapter:
    """Loaded with the first value that is looked at: `sid-ray --help` needs none."""
    from pydantic import TypeAdapter

    if not hasattr(kind, "__pydantic_config__"):
        kind.__pydantic_config__ = RULES
    return TypeAdapter(kind)


def of_json(kind: type[T], text: str, source: str, unknown: Callable[[str], UserError]) -> T:
    """A dataclass from JSON; ``unknown`` makes the error for a field that it does not have."""
    look: Any = adapter(cast(Any, kind))
    return lines_of_pydantic(lambda: look.validate_json(text), f"{source}: ", unknown=unknown)


def checked(given: T, named: Callable[[str], str] = str) -> T:
    """A dataclass of the same values. ``named`` makes of a field's name what a person types."""
    look: Any = adapter(cast(Any, type(given)))
    return lines_of_pydantic(lambda: look.validate_python(given, strict=True), named=named)


def lines_of_pydantic(
    look: Callable[[], T],
    source: str = "",
    named: Callable[[str], str] = str,
    unknown: Callable[[str], UserError] = UserError,
) -> T:
    from pydantic import ValidationError

    try:
        return look()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name = named(".".join(str(part) for part in first["loc"]))
    if first["type"] == "unexpected_keyword_argument":
        raise UserError(f"{source}{unknown(name)}")
    raise UserError(source + told_range(name, first))


def told_range(name: str, error: Mapping[str, Any]) -> str:
    """The field, what was found and what is expected."""
    kind, found, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "value_error":  # of a validator of ours, which says it all
        return str(context["error"])
    if kind == "string_too_long":
        most = context["max_length"]
        return f"{name} has {len(str(found)):,} characters; at most {most:,} are taken"
    words = SAID.get(kind) or SAID.get(kind.partition("_")[0])
    if not name or not words:
        return f"{name or 'its text'}: {error['msg'].lower()} (found {found!r:.60})"
    bounds = {key: f"{v:g}" if isinstance(v, float) else v for key, v in context.items()}
    or_auto = context.get("or_auto", "")  # auto.py
    return f"{name} is {found!a:.100}; it {words.format(**bounds)}{or_auto}"
