"""What of a source is not in the set, counted by its reason, with an example of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sid_ray.data.names import shown_name, suffix_of

LISTED = 12  # reasons that one line names
NAMED = 12  # classes that one line names
NOUNS = ("folder", "link", "column")  # with which a reason may begin


class LeftOut:
    """Counts by reason, in the order in which the reasons came up."""

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, why: str, name: str, count: int = 1) -> None:
        before, first = self.reasons.get(why, (0, name))
        self.reasons[why] = (before + count, first)

    def add_files(self, names: Iterable[str]) -> None:
        """Files that are no samples and no labels, by their suffix."""
        for name in names:
            self.add(suffix_of(name) or "without a suffix", name)

    @property
    def records(self) -> list[dict[str, Any]]:
        """For the manifest."""
        return [
            {"why": why, "count": count, "first": shown_name(first)}
            for why, (count, first) in self.reasons.items()
        ]


def left_out_line(records: Sequence[Mapping[str, Any]]) -> str:
    """'3 .mov (first a/b.mov), 2 hidden (first .DS_Store)', '' for nothing."""
    parts = [
        f"{record['count']:,} {plural(record['why'], record['count'])}{example(record)}"
        for record in records[:LISTED]
    ]
    if len(records) > LISTED:
        parts.append(f"{sum(record['count'] for record in records[LISTED:]):,} more of other kinds")
    return ", ".join(parts)


def example(record: Mapping[str, Any]) -> str:
    if not record["first"]:
        return ""
    return f" ({'first ' * (record['count'] > 1)}{shown_name(record['first'], 60)})"


def plural(why: str, count: int) -> str:
    noun, space, rest = why.partition(" ")
    return f"{noun}s{space}{rest}" if count != 1 and noun in NOUNS else why


def class_line(names: Sequence[str]) -> str:
    """Classes in their order; the middle is left out where there are many."""
    listed = [shown_name(name, 40) for name in names]
    if len(listed) > NAMED:
        listed = [*listed[: NAMED - 3], "...", *listed[-2:]]
    line = f"{len(names):,} in this order: {', '.join(listed)}"
    moved = [
        (number, name)
        for number, name in enumerate(names)
        if name.isascii() and name.isdigit() and name.lstrip("0") != str(number).lstrip("0")
    ]
    if moved:
        number, name = moved[0]
        line += f" (so class {number} is {shown_name(name, 40)!r})"
    return line


def account_lines(source: Mapping[str, Any], class_names: Sequence[str]) -> list[str]:
    """What a person should know of how a source was understood; ``source`` of the manifest."""
    lines = [f"classes     {class_line(class_names)}"] if class_names else []
    lines += [f"{what:12}{source[what]}" for what in ("labels", "captions") if source.get(what)]
    lines += [f"note        {note}" for note in source.get("notes") or ()]
    if source.get("left_out"):
        lines.append(f"not used    {left_out_line(source['left_out'])}")
    return lines
