"""Labels and captions in a file beside the images.

dataset.json      {"labels": [["00000/img00000000.png", 5], ...]}, or null for none
labels.csv        file,label
metadata.jsonl    {"file_name": "a.png", "text": "a cat", "label": 3}, a line each
metadata.csv      the same with a header
metadata.parquet  the same as columns

A label is a whole number from 0, or a class's name; all of a source are of one kind.

pyarrow reads the Parquet file alone. Its csv reader takes a quote that is never closed for the rest
of the file, joins what stands behind a quote, ends rows at a carriage return, keeps the last of two
columns of one name, and says rows where people look for lines; its json reader makes times of
captions that look like one, refuses labels of two kinds without saying which files have them, and
rounds long numbers (tests/data/test_annotations.py, with pyarrow 25).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sid_ray.data.columns import parquet_columns
from sid_ray.data.names import shown_name
from sid_ray.data.options import MAX_LIST_BYTES, MIB
from sid_ray.data.samples import checked_prompt
from sid_ray.errors import UserError
from sid_ray.storage.text_lines import csv_rows, json_lines, json_value, text_of

FILE_FIELDS = ("file_name", "file", "filename")
TEXT_FIELDS = ("text", "caption", "prompt")
LABEL_FIELD = "label"
Row = tuple[str, Mapping[str, Any]]  # where it stands, its values by name


@dataclass(frozen=True)
class Annotations:
    """By file name; None where the file has no such column.

    ``labels`` are numbers or names as they stand there, ``places`` says where of each file;
    ``unused`` are columns that are neither file, label nor text.
    """

    where: str
    labels: dict[str, Any] | None = None
    prompts: dict[str, str] | None = None
    places: dict[str, str] | None = None
    unused: tuple[str, ...] = ()


def read_annotations(name: str, data: bytes, where: str) -> Annotations:
    """What one of FILES says. Raises UserError that names the line or entry."""
    if len(data) > MAX_LIST_BYTES:
        raise UserError(f"{where}: more than {MAX_LIST_BYTES // MIB} MiB")
    labels: dict[str, Any] = {}
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    columns: dict[str, None] = {}
    for at, values in FILES[name](data, where):
        columns |= dict.fromkeys(used_of(values)[1])
        file, label, text = fields_of_row(values, at)
        if file is None:
            raise UserError(f"{at}: no file_name")
        if file in places:
            raise UserError(f"{where}: {file!a:.200} is named twice")
        places[file] = at
        if label is not None:
            labels[file] = label
        if text is not None:
            texts[file] = checked_prompt(text, at)
    for what, column in (("label", labels), ("text", texts)):
        if column and len(column) < len(places):
            at = next(at for file, at in places.items() if file not in column)
            raise UserError(f"{at}: no {what}, though others have one")
    return Annotations(where, labels or None, texts or None, places, tuple(columns))


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
            raise UserError(f"{at}: [file, class] is expected, found {entry!a:.60}")
        if entry[1] is None:
            raise UserError(f"{at}: {entry[0]!a:.100} has no label")
        yield f"{at} ({shown_name(entry[0], 100)})", {"file_name": entry[0], LABEL_FIELD: entry[1]}


def metadata_jsonl(data: bytes, where: str) -> Iterator[Row]:
    for number, values in json_lines(data, where):
        at = f"{where}, line {number}"
        if not isinstance(values, dict):
            raise UserError(f"{at}: no file_name")
        yield at, values


def table_of_labels(data: bytes, where: str) -> Iterator[Row]:
    """metadata.csv, or labels.csv with its columns named or not."""
    header: list[str] = []
    for line, row in csv_rows(data, where):
        at = f"{where}, line {line}"
        if not header:
            header = [cell.strip() for cell in row]
            if len(set(header)) != len(header):
                raise UserError(f"{at}: two columns of one name")
            if set(header) & set(FILE_FIELDS):
                continue
            header = ["file_name", LABEL_FIELD]
            if len(row) != len(header):
                raise UserError(f"{at}: {len(row)} columns, file and label are expected")
        yield at, dict(zip(header, row, strict=True))


def metadata_parquet(data: bytes, where: str) -> Iterator[Row]:
    wanted = (*FILE_FIELDS, *TEXT_FIELDS, LABEL_FIELD)
    names, found = parquet_columns(data, where, wanted)
    rest = dict.fromkeys(name for name in names if name not in wanted)
    for number, values in enumerate(found.to_pylist()):
        yield f"{where}, row {number}", values | rest


def used_of(values: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Which of a row's columns are its file, label and text; and the others."""
    used: dict[str, str] = {}
    for what, names in (("file", FILE_FIELDS), ("text", TEXT_FIELDS), ("label", (LABEL_FIELD,))):
        for name in names:
            if values.get(name) is not None and what not in used:
                used[what] = name
    taken = set(used.values()) | {LABEL_FIELD}
    return used, [name for name in values if name not in taken]


def fields_of_row(values: Mapping[str, Any], at: str) -> tuple[str | None, Any, Any]:
    """A row's file, its label (a number or a name, as it stands there) and its text.

    Raises UserError for a file or label of another type.
    """
    used, _ = used_of(values)
    file = values[used["file"]] if "file" in used else None
    if file is not None and not isinstance(file, str):
        raise UserError(f"{at}: no file_name")
    label = values.get(LABEL_FIELD)
    if isinstance(label, str):
        label = label.strip() or None
    text = values[used["text"]] if "text" in used else None
    # Lists made on Windows have its backslashes; no source has a name with one.
    plain = file.replace("\\", "/").removeprefix("./") if file is not None else None
    return plain, label, text


FILES: dict[str, Callable[[bytes, str], Iterator[Row]]] = {
    "dataset.json": dataset_json,
    "labels.csv": table_of_labels,
    "metadata.jsonl": metadata_jsonl,
    "metadata.csv": table_of_labels,
    "metadata.parquet": metadata_parquet,
}
