"""What the argument classes of all families share: plain JSON in and out, and checks.

Arguments come from files of strangers too, so that every check is made before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Self, get_type_hints

from sid_ray.errors import UserError, nearest

# Several times any published network.
MAX_LEVELS, MAX_BLOCKS, MAX_WIDTH, MAX_NUMBER = 12, 64, 1 << 16, 1 << 24
POSITIVE = (
    "img_resolution",
    "img_channels",
    "num_blocks",
    "channel_mult",
    "channels_per_head",
    "logvar_channels",
    "sigma_data",
)
# Arguments of the official classes that change how a network is run or trained, not what it is.
BEHAVIOUR = frozenset(
    ("use_fp16", "force_fp32", "sigma_min", "sigma_max", "force_normalization", "use_gan")
)


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

    @classmethod
    def from_recorded(
        cls,
        class_name: str,
        recorded: Mapping[str, Any],
        defaults: Mapping[str, Any],
        own: Mapping[str, Any],
        excluded: Sequence[str],
    ) -> dict[str, Any]:
        """All arguments as plain values, from those that an official file records of a class.

        ``defaults`` are that class's where they are not this one's, ``own`` what the class itself
        says, ``excluded`` the arguments that it does not take. Raises UserError.
        """
        state = {name: value for name, value in recorded.items() if name not in BEHAVIOUR}
        known = {field.name for field in fields(cls)} - set(excluded)  # type: ignore[arg-type]
        unknown = sorted(str(name) for name in state if name not in known)
        if unknown:
            raise UserError(
                f"{class_name} was built with arguments that are not known here: "
                f"{', '.join(unknown)}.{nearest(unknown[0], known)}"
            )
        try:
            return cls.from_json({**defaults, **state, **own}).to_json()
        except (TypeError, ValueError) as error:
            raise UserError(f"{class_name} records arguments that do not fit: {error}") from error

    def check_values(self) -> None:
        """Raises TypeError or ValueError that names the first argument of a wrong type or value."""
        hints = get_type_hints(type(self))
        for field in fields(self):  # type: ignore[arg-type]
            name, value = field.name, getattr(self, field.name)
            if not _fits(value, hints[name]):
                raise TypeError(f"{name} must be {field.type}, found {value!r:.80}")
            numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if _number(n)]
            if not all(0 <= number <= MAX_NUMBER for number in numbers):
                raise ValueError(f"{name} must be 0 to {MAX_NUMBER}, found {value!r:.80}")
            if name in POSITIVE and not (numbers and all(numbers)):
                raise ValueError(f"{name} must be positive, found {value!r:.80}")
            if ("dropout" in name or "balance" in name) and value >= 1:
                raise ValueError(f"{name} must be less than 1, found {value!r:.80}")
            if name == "resample_filter" and (len(value) % 2 or not sum(value)):
                raise ValueError(f"{name} must be even in length and not 0, found {value!r:.80}")

    def check_sizes(
        self, resolution: int, blocks: int, widths: tuple[int, ...], noise: int, emb: int
    ) -> None:
        """Raises ValueError unless a U-Net of these sizes can be built.

        ``resolution`` of the images, ``blocks`` a level, ``widths`` of the levels, ``noise`` and
        ``emb`` the widths of the noise embedding and of what is made of it.
        """
        if not 0 < len(widths) <= MAX_LEVELS:
            raise ValueError(f"channel_mult must have 1 to {MAX_LEVELS} entries")
        if resolution % (step := 1 << (len(widths) - 1)):
            raise ValueError(f"img_resolution must be a multiple of {step}, found {resolution}")
        if blocks > MAX_BLOCKS:
            raise ValueError(f"num_blocks must be at most {MAX_BLOCKS}, found {blocks}")
        if not all(0 < width <= MAX_WIDTH for width in (*widths, noise, emb)):
            raise ValueError(
                f"model_channels and channel_mult must give widths of 1 to {MAX_WIDTH}, "
                f"found {(*widths, noise, emb)}"
            )
        if noise % 2:
            raise ValueError(f"the noise embedding's width must be even, found {noise}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
