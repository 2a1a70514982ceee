"""The one reader of text: every file of lines that a person or a run has written is read here.

A file is UTF-8, with or without a byte order mark, which is no part of the text. A line ends at LF
or CRLF and nowhere else: U+2028, U+0085, form feeds and the like are characters of a line, as JSON
and other programs take them. (``str.splitlines`` and files opened as text end lines there, too.)
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError

BOM = "\ufeff"
OTHERS = {  # the longer ones first: UTF-32's mark begins as UTF-16's does
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def text_of(data: bytes, where: str) -> str:
    """A file's text. Raises UserError with the line's number where it is not UTF-8."""
    for mark, name in OTHERS.items():
        if data.startswith(mark):
            raise UserError(f"{where}, line 1: {name}, not UTF-8: save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: not UTF-8 (byte {data[error.start]:#04x}): save it as UTF-8"
        ) from None
    if "\0" in text:  # UTF-16 without its mark, or no text at all
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{where}, line {line}: a zero byte, not UTF-8 text: save it as UTF-8")
    return text.lstrip(BOM)


def lines_in(text: str) -> list[str]:
    """The lines of a text, without their ends. A mark at a line's start, where two files were put
    together, is no text either. Behind the last line end there is no further line.
    """
    lines = [line.removesuffix("\r").lstrip(BOM) for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def numbered_lines(data: bytes, where: str) -> list[tuple[int, str]]:
    """(number from 1, line) of each line of a file that is not blank. Raises UserError."""
    text = text_of(data, where)
    if "\r" in text and "\n" not in text.rstrip():
        raise UserError(
            f"{where}, line 1: lines end at a carriage return alone, as on old Macintoshes: save "
            "it with line feeds"
        )
    return [(number, line) for number, line in enumerate(lines_in(text), 1) if line.strip()]


def csv_rows(data: bytes, where: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row that is not empty; rows end where lines do.

    Raises UserError with the line's number, also for a row of more or fewer cells than the first.
    """
    lines = text_of(data, where).split("\n")
    if not lines[-1]:
        lines.pop()
    rows, first = csv.reader((f"{line}\n" for line in lines), strict=True), 0
    try:
        for row in rows:
            first = first or len(row)
            if row and len(row) != first:
                raise UserError(
                    f"{where}, line {rows.line_num}: {len(row)} columns, {first} are expected: a "
                    "text with commas stands in quotes"
                )
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        said = str(error)
        if "new-line character" in said:
            said = (
                "a carriage return alone, where lines end at LF or CRLF: save it with line feeds, "
                "or put the text in quotes"
            )
        raise UserError(f"{where}, line {rows.line_num}: {said}") from None


def json_lines(data: bytes, where: str) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each line that is not blank. Raises UserError with the number."""
    for number, line in numbered_lines(data, where):
        yield number, json_value(line, f"{where}, line {number}")


def json_value(text: str, where: str) -> Any:
    """What JSON says. Raises UserError that names ``where`` it stands."""
    try:
        return json.loads(text, object_pairs_hook=no_name_twice)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error})") from None


def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which says nothing twice. Raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!a:.80} stands twice")
    return found


def read_file(path: Path, limit: int | None = None) -> bytes:
    """A file's bytes. Raises UserError for one that is missing, a folder, or beyond ``limit``."""
    try:
        if limit is not None and path.stat().st_size > limit:
            raise UserError(f"{path}: more than {limit >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # a zero byte in the path
        raise UserError(f"{path}: {error}") from None


def read_text(path: Path) -> str:
    """A file's text. Raises UserError in one line."""
    return text_of(read_file(path), str(path))
