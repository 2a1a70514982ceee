"""What the argument classes of all families share: plain JSON in and out, and checks.

Arguments come from files of strangers too, so that every check is made before anything is built.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, Self, get_type_hints

MAX_BLOCKS, MAX_WIDTH = 64, 1 << 16  # several times any published network


def _fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of an annotated type; an int is a float, a bool is no number."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, int)
    if kind is float:
        return isinstance(value, int | float)
    if kind is str:
        return isinstance(value, str)
    if kind == tuple[int, ...]:
        return isinstance(value, tuple) and all(_fits(item, int) for item in value)
    return value is None or _fits(value, int)  # int | None


class NetworkArguments:
    """Base of a frozen dataclass of constructor arguments."""

    def to_json(self) -> dict[str, Any]:
        """Plain values: equal to what comes back from a JSON file."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()  # type: ignore[call-overload]
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of to_json; omitted arguments take their defaults.

        Raises TypeError for an argument the network lacks, ValueError for one out of range.
        """
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def check_types(self) -> None:
        """Raises TypeError that names the first argument of a wrong type."""
        hints = get_type_hints(type(self))
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if not _fits(value, hints[field.name]):
                raise TypeError(f"{field.name} must be {field.type}, found {value!r:.80}")

    def check_sizes(self, resolution: int, widths: tuple[int, ...], blocks: int) -> None:
        """Raises ValueError unless a U-Net of these sizes can be built.

        ``resolution`` of the images, ``widths`` of the levels, ``blocks`` a level.
        """
        step = 1 << max(len(widths) - 1, 0)
        if resolution < 1 or resolution % step:
            raise ValueError(f"img_resolution must be a multiple of {step}, found {resolution}")
        if not widths or not all(0 < width <= MAX_WIDTH for width in widths):
            raise ValueError(f"channel_mult gives widths {widths}; each must be 1 to {MAX_WIDTH}")
        if not 0 < blocks <= MAX_BLOCKS:
            raise ValueError(f"num_blocks must be 1 to {MAX_BLOCKS}, found {blocks}")
