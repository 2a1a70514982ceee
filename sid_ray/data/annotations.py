"""Labels and captions in a file beside the images.

dataset.json      {"labels": [["00000/img00000000.png", 5], ...]}, or null for none
labels.csv        file,label
metadata.jsonl    {"file_name": "a.png", "text": "a cat", "label": 3}, a line each
metadata.csv      the same with a header
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sid_ray.data.options import MAX_LIST_BYTES, MIB
from sid_ray.data.samples import checked_label, checked_prompt
from sid_ray.errors import UserError
from sid_ray.text_lines import json_lines, json_value, text_of

TEXT_FIELDS = ("text", "caption", "prompt")
Row = tuple[str, str, Any, Any]  # where it stands, file, label or None, text or None


@dataclass(frozen=True)
class Annotations:
    """By file name; None where the file has no such column."""

    where: str
    labels: dict[str, int] | None = None
    prompts: dict[str, str] | None = None


def read_annotations(name: str, data: bytes, where: str) -> Annotations:
    """What one of FILES says. Raises UserError that names the line or entry."""
    if len(data) > MAX_LIST_BYTES:
        raise UserError(f"{where}: more than {MAX_LIST_BYTES // MIB} MiB")
    rows = list(FILES[name](data, where))
    files = [file for _, file, _, _ in rows]
    if len(set(files)) != len(files):
        seen: set[str] = set()
        twice = next(file for file in files if file in seen or seen.add(file))  # type: ignore[func-returns-value]
        raise UserError(f"{where}: {twice!a:.200} is named twice")
    labels = {file: checked_label(v, at) for at, file, v, _ in rows if v is not None}
    texts = {file: checked_prompt(v, at) for at, file, _, v in rows if v is not None}
    for what, column in (("label", labels), ("text", texts)):
        if column and len(column) < len(rows):
            at = next(at for at, file, _, _ in rows if file not in column)
            raise UserError(f"{at}: no {what}, though others have one")
    return Annotations(where, labels or None, texts or None)


def dataset_json(data: bytes, where: str) -> Iterator[Row]:
    values = json_value(text_of(data, where), where)
    if not isinstance(values, dict) or "labels" not in values:
        raise UserError(f'{where}: {{"labels": [[file, class], ...]}} is expected')
    labels = values["labels"]
    if labels is None:
        return
    if not isinstance(labels, list):
        raise UserError(f"{where}: labels are {type(labels).__name__}, a list or null is expected")
    for index, entry in enumerate(labels):
        at = f"{where}, entry {index}"
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise UserError(f"{at}: [file, class] is expected, found {entry!r:.60}")
        if entry[1] is None:
            raise UserError(f"{at}: {entry[0]!a:.100} has no label")
        yield f"{at} ({entry[0]:.100})", entry[0], entry[1], None


def metadata_jsonl(data: bytes, where: str) -> Iterator[Row]:
    for number, values in json_lines(data, where):
        yield from fields_of(values, f"{where}, line {number}")


def table(data: bytes, where: str) -> Iterator[Row]:
    """metadata.csv, or labels.csv with its columns named or not."""
    lines = csv.reader(io.StringIO(text_of(data, where), newline=""), strict=True)
    header: list[str] | None = None
    try:
        for row in lines:
            at = f"{where}, line {lines.line_num}"
            if not row:
                continue
            if header is None:
                named = {cell.strip() for cell in row} & {"file", "file_name", "filename"}
                header = [cell.strip() for cell in row] if named else ["file_name", "label"]
                if named:
                    continue
            if len(row) != len(header):
                raise UserError(f"{at}: {len(row)} columns, {len(header)} are expected")
            yield from fields_of(dict(zip(header, row, strict=True)), at)
    except csv.Error as error:
        raise UserError(f"{where}, line {lines.line_num}: {error}") from None


def fields_of(values: Any, at: str) -> Iterator[Row]:
    """A line's file, label and text."""
    names = ("file_name", "file", "filename")
    if not isinstance(values, dict) or not any(isinstance(values.get(n), str) for n in names):
        raise UserError(f"{at}: no file_name")
    file = next(values[n] for n in names if isinstance(values.get(n), str))
    label = values.get("label")
    if isinstance(label, str):
        try:
            label = int(label)
        except ValueError:
            raise UserError(f"{at}: label {label!r:.40} is not a whole number from 0") from None
    text = next((values[n] for n in TEXT_FIELDS if values.get(n) is not None), None)
    yield at, file.removeprefix("./"), label, text


FILES: dict[str, Callable[[bytes, str], Iterator[Row]]] = {
    "dataset.json": dataset_json,
    "labels.csv": table,
    "metadata.jsonl": metadata_jsonl,
    "metadata.csv": table,
}
