"""Prompts out of a file: the same ones for every command that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sid_ray.data.columns import parquet_columns
from sid_ray.data.names import shown_name
from sid_ray.data.options import MAX_LIST_BYTES, MIB
from sid_ray.data.samples import checked_prompt
from sid_ray.errors import UserError
from sid_ray.storage.places import expanded
from sid_ray.storage.text_lines import csv_rows, json_lines, numbered_lines, read_file

COLUMN, PROMPT = "caption", "prompt"
Texts = list[tuple[int, Any]]  # line or row, its text


class Prompts(NamedTuple):
    """The prompts of a file; ``blank`` cells of a table that hold none, its other ``columns``."""

    prompts: list[str]
    blank: int = 0
    columns: tuple[str, ...] = ()


def read_prompts(source: str) -> tuple[str, ...]:
    """The prompts of a file: a .txt with one a line, the column ``caption`` of a table, or a .jsonl
    whose lines have a ``prompt`` or a ``caption``, like GenEval's evaluation_metadata.jsonl.

    Raises UserError in one line.
    """
    if not source:
        raise UserError("data.source is empty; name a text file with a prompt a line")
    try:
        path = expanded(source)
    except RuntimeError as error:  # ~name of nobody
        raise UserError(f"{source}: {error}: write the whole path") from None
    return tuple(prompts_of(read_file(path, MAX_LIST_BYTES), path.suffix, source).prompts)


def prompts_of(data: bytes, suffix: str, source: str, column: str = COLUMN) -> Prompts:
    """The prompts of a file's bytes; blank lines and empty cells are left out.

    Raises UserError with the line's number.
    """
    if len(data) > MAX_LIST_BYTES:
        raise UserError(f"{source}: more than {MAX_LIST_BYTES // MIB} MiB")
    read = TABLES.get(suffix.lower())
    texts, names = read(data, source, column) if read else (numbered_lines(data, source), ())
    found = [checked_prompt(text, f"{source}, line {line}").strip() for line, text in texts]
    prompts = [prompt for prompt in found if prompt]
    if not prompts:
        raise UserError(f"{source} holds no prompts: a text file, a prompt a line")
    others = tuple(str(name) for name in names if name != column)
    return Prompts(prompts, len(found) - len(prompts), others)


def csv_column(data: bytes, source: str, column: str) -> tuple[Texts, Iterable[str]]:
    rows = csv_rows(data, source)
    _, header = next(rows, (0, []))
    if column not in header and header:
        raise no_column(source, column, header)
    if header.count(column) > 1:
        raise UserError(f"{source}: two columns {column!r}: give them different names")
    return [(line, row[header.index(column)]) for line, row in rows], header


def parquet_column(data: bytes, source: str, column: str) -> tuple[Texts, Iterable[str]]:
    names, found = parquet_columns(data, source, [column])
    if column not in names:
        raise no_column(source, column, names)
    values = found[column].to_pylist()
    return [(row, "" if value is None else value) for row, value in enumerate(values)], names


def json_texts(data: bytes, source: str, column: str) -> tuple[Texts, Iterable[str]]:
    """Of lines with an object each: what stands under ``column``, or else under ``prompt``."""
    found: Texts = []
    for line, value in json_lines(data, source):
        if not isinstance(value, dict):
            raise UserError(f'{source}, line {line}: expected an object like {{"prompt": TEXT}}')
        name = column if column in value else PROMPT
        if name not in value:
            raise no_column(f"{source}, line {line}", f"{PROMPT} or {column}", value)
        found.append((line, value[name]))
    return found, ()


TABLES: dict[str, Callable[[bytes, str, str], tuple[Texts, Iterable[str]]]] = {
    ".csv": csv_column,
    ".jsonl": json_texts,
    ".parquet": parquet_column,
}


def no_column(source: str, column: str, names: Iterable[object]) -> UserError:
    listed = shown_name(", ".join(map(str, names)))
    return UserError(
        f"{source}: no column {column!r}; it has {listed}: sid-ray data prepare --caption-column "
        "names one"
    )
