"""Pictures in Parquet files, as Hugging Face's datasets write them: a column of bytes, or of
{bytes, path}, with captions and labels beside it. Paths are never followed.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sid_ray.data.classes import Classes, numbered
from sid_ray.data.left_out import LeftOut
from sid_ray.data.names import natural, shown_name
from sid_ray.data.options import MAX_SAMPLE_BYTES, MIB, PrepareOptions
from sid_ray.data.prompts import COLUMN
from sid_ray.data.samples import Samples, checked_prompt, short_error
from sid_ray.data.splits import chosen_split, missing_of, shard_split
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values")
TEXTS = ("text", "caption", "prompt")
LABELS = ("label", "cls")
RUN = 128  # rows read together: about a row group as Hugging Face writes them
KEPT_BYTES = 256 * MIB
MAX_GROUP_BYTES = 2048 * MIB


@dataclass
class ParquetReader:
    """Reads pictures by their rows; each process opens the files by itself."""

    store: Store
    column: str
    is_struct: bool
    _lock: Any = field(default=None, repr=False, compare=False)
    _kept: OrderedDict[tuple[str, int], Any] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "column": self.column, "is_struct": self.is_struct}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, name: str, place: Any) -> bytes:
        """``place``: file, row group, row in it."""
        file, group, row = place
        with self._lock:
            try:
                value = self._group(file, group)[row].as_py()
            except (UserError, StoreError):
                raise
            except Exception as error:  # pyarrow raises many kinds for a damaged file
                raise UserError(f"the Parquet file is damaged ({short_error(error)})") from None
        if not value:
            raise UserError(f"no bytes in column {self.column}: paths alone are not followed")
        if len(value) > MAX_SAMPLE_BYTES:
            raise UserError(f"{len(value) / MIB:,.0f} MiB, at most {MAX_SAMPLE_BYTES // MIB}")
        return bytes(value)

    def _group(self, file: str, group: int) -> Any:
        """The pictures of a row group, one of the last that were read."""
        import pyarrow.parquet as pq

        key = (file, group)
        if key not in self._kept:
            with self.store.open(file) as stream:
                parquet = pq.ParquetFile(stream)
                name = f"{self.column}.bytes" if self.is_struct else self.column
                table = parquet.read_row_group(group, columns=[name], use_threads=False)
            column = table.column(self.column).combine_chunks()
            self._kept[key] = column.field("bytes") if self.is_struct else column
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(c.nbytes for c in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]


@dataclass(frozen=True)
class Columns:
    """Which columns of a set of files hold what; the rest is not used."""

    image: str
    is_struct: bool
    text: str
    label: str
    class_names: tuple[str, ...]
    unused: tuple[str, ...]


def parquet_samples(
    store: Store, tables: Mapping[str, int], options: PrepareOptions, remote: bool
) -> Samples | None:
    """Samples of Parquet files; None where they have no column of pictures.

    Raises UserError for files that are damaged or differ, and for rows without a picture.
    """
    source, left_out = options.source, LeftOut()
    paths, note = chosen_split(
        {file: shard_split(file) + file.rsplit("/", 1)[-1] for file in tables},
        options.split,
        source,
        left_out,
    )
    files = sorted(paths, key=natural)
    columns: Columns | None = None
    names: list[str] = []
    places: list[tuple[str, int, int]] = []
    texts: list[Any] = []
    labels: list[Any] = []
    for file in files:
        where = source if len(tables) == 1 else f"{source}/{shown_name(file)}"
        found, groups, values = look_at_file(store, file, where, options)
        if found is None:
            if columns is None:
                return None
            raise UserError(f"{where}: no column of pictures, though other files have one")
        if columns is not None and found != columns:
            raise UserError(f"{where}: other columns or classes than {shown_name(files[0])}")
        columns = found
        for group, rows in enumerate(groups):
            places += [(file, group, row) for row in range(rows)]
        names += [f"{file}/{row}" for row in range(sum(groups))]
        texts += values.get(columns.text, [])
        labels += values.get(columns.label, [])
    if columns is None:
        return None
    if not names:
        raise UserError(f"{source}: its Parquet files hold no rows: fetch or make them again")
    missing = missing_of(files)
    for column in columns.unused:
        left_out.add("column", column)
    at = [f"{source}: {shown_name(name)}" for name in names]
    prompts = None
    if columns.text and options.captions != "none":
        prompts = [checked_prompt(text, place) for text, place in zip(texts, at, strict=True)]
    classes = Classes()
    if columns.label and options.labels != "none":
        classes = classes_of_column(labels, names, at, columns)
    account = {
        "labels": f"from column {columns.label}" if classes.labels is not None else "",
        "captions": f"from column {columns.text}" if prompts is not None else "",
        "notes": [each for each in (note, missing) if each],
        "left_out": left_out.records,
    }
    return Samples(
        kind="images",
        source=source,
        count=len(names),
        reader=ParquetReader(store, columns.image, columns.is_struct),
        names=names,
        places=places,
        labels=classes.labels,
        prompts=prompts,
        label_dim=classes.label_dim,
        class_names=classes.names,
        remote=remote,
        account={name: value for name, value in account.items() if value},
        notes={"files": {file: tables[file] for file in files}},
        run=RUN,
    )


def look_at_file(
    store: Store, file: str, where: str, options: PrepareOptions
) -> tuple[Columns | None, list[int], dict[str, list[Any]]]:
    """Columns of one file, rows of its row groups, and its captions and labels."""
    import pyarrow.parquet as pq

    try:
        with store.open(file) as stream:
            parquet = pq.ParquetFile(stream)
            columns = columns_of(parquet.schema_arrow, where, options)
            if columns is None:
                return None, [], {}
            footer = parquet.metadata
            groups = []
            for index in range(footer.num_row_groups):
                group = footer.row_group(index)
                if group.total_byte_size > MAX_GROUP_BYTES:
                    raise UserError(
                        f"{where}: row group {index} takes {group.total_byte_size / MIB:,.0f} MiB, "
                        f"at most {MAX_GROUP_BYTES // MIB} are read at once: write it again with "
                        "row_group_size=1000"
                    )
                groups.append(group.num_rows)
            wanted = [name for name in (columns.text, columns.label) if name]
            table = parquet.read(columns=wanted) if wanted else None
            values = {name: table.column(name).to_pylist() for name in wanted} if table else {}
    except (UserError, StoreError):
        raise
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise UserError(
            f"{where} is not a whole Parquet file ({short_error(error)}): fetch or make it again"
        ) from None
    return columns, groups, values


def columns_of(schema: Any, where: str, options: PrepareOptions) -> Columns | None:
    """Which columns hold pictures, captions and labels; None without pictures."""
    import pyarrow.types as types

    structs = {
        name: types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        for name, kind in zip(schema.names, schema.types, strict=True)
    }
    pictures = [
        name
        for name, kind in zip(schema.names, schema.types, strict=True)
        if structs[name] or types.is_binary(kind) or types.is_large_binary(kind)
    ]
    if not pictures:
        return None
    image = next((name for name in IMAGES if name in pictures), pictures[0])
    if image not in IMAGES and len(pictures) > 1:
        raise UserError(
            f"{where}: columns {', '.join(map(shown_name, pictures))} hold bytes: call that of the "
            "pictures image"
        )
    asked = options.caption_column
    if asked != COLUMN and asked not in schema.names:
        raise UserError(f"{where}: no column {asked!r}: {', '.join(map(shown_name, schema.names))}")
    named = (asked,) if asked != COLUMN else TEXTS
    text = next((name for name in named if name in schema.names), "")
    label = next((name for name in LABELS if name in schema.names), "")
    unused = tuple(name for name in schema.names if name not in (image, text, label))
    names = class_names_of(schema.metadata or {}, label)
    return Columns(image, structs[image], text, label, names, unused)


def class_names_of(metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...]:
    """Hugging Face's names of a ClassLabel column; none where there are none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(map(text_like, names)) else ()


def text_like(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable()


def classes_of_column(
    labels: Sequence[Any], names: Sequence[str], at: Sequence[str], columns: Columns
) -> Classes:
    """Classes of a label column; its numbers are those of the names, where there are some."""
    for value, place in zip(labels, at, strict=True):
        if value is None:
            raise UserError(f"{place}: no label, though others have one")
    places = dict(zip(names, at, strict=True))
    found = numbered(dict(zip(names, labels, strict=True)), places, columns.label)
    if not columns.class_names or found.names:
        return found
    if found.label_dim > len(columns.class_names):
        raise UserError(
            f"{at[0]} and on: label {found.label_dim - 1} is beyond the "
            f"{len(columns.class_names)} class names of the file"
        )
    return found._replace(label_dim=len(columns.class_names), names=columns.class_names)
