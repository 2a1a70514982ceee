"""``auto``: the value of a field of resources that is chosen anew at each start.

A field that may be chosen has the type ``int | Auto``, say, with OR_AUTO beside it. Nothing
computes with such a value: planning/choose.py puts concrete ones in its place, and
config/chosen.py is how everything behind it reads them, so that mypy refuses to take a word for a
number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, get_args

Auto = Literal["auto"]
AUTO: Final[Auto] = "auto"


class OrAuto:
    """Beside a union with Auto: pydantic takes the word, or what the rest of the union says.

    A plain union would name a member of the union in each error, and list the failures of all.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        inner = handler.generate_schema(without_auto(source))
        return core_schema.no_info_wrap_validator_function(word_or, inner)


OR_AUTO: Final = OrAuto()


def without_auto(kind: Any) -> Any:
    """The other member of a union with Auto."""
    (other,) = (member for member in get_args(kind) if member != Auto)
    return other


def word_or(value: Any, read_other: Callable[[Any], Any]) -> Any:
    """The word, or a value of the other kind. Raises an error that offers the word, too."""
    if value == AUTO:
        return value
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    try:
        return read_other(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = {**first.get("ctx", {}), "message": first["msg"], "or_auto": ", or auto"}
        raise PydanticCustomError(first["type"], "{message}{or_auto}", context) from None
