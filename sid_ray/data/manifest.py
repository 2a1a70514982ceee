"""A prepared data set: Parquet files beside a manifest, on any file system.

    DST/manifest.json          what is in it; written last
    DST/part-00000.parquet     samples; a row group is what is read, cached and shuffled as one

Columns, those that the manifest names:

    image    binary              a PNG of exactly the set's resolution
    latent   list<float16>[2n]   mean and std of a VAE's posterior, each [C, h, w] flat, n = C h w
    label    int64               class, 0 to label_dim - 1
    prompt   string
    text     list<float16>[T D]  the prompt's embedding [T, D] by the encoder that ``text`` names
    name     string              the sample's name where it came from
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from sid_ray.errors import UserError
from sid_ray.storage.store import Store

SCHEMA = 1
MANIFEST = "manifest.json"
DIGEST = "manifest_sha256"
KINDS = ("images", "latents", "labels", "prompts")
COLUMNS = ("image", "latent", "label", "prompt", "text", "name")
SHAPED = ("images", "latents")  # kinds whose samples have a shape of their own


@dataclass(frozen=True)
class Shard:
    """One Parquet file. ``row_groups`` are rows of each, in order."""

    name: str
    size: int
    sha256: str
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class TextEncoder:
    """What made the ``text`` column: sha256 of the encoder's weights, and (T, D)."""

    sha256: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class DataManifest:
    """What manifest.json holds.

    Args:
        kind: images, latents, labels (no pixels) or prompts (neither).
        count: samples.
        shape: (C, H, W) that a denoiser sees; empty for labels and prompts without pixels.
        columns: those of COLUMNS that the files have, in that order.
        label_dim: classes; 0 for none.
        class_counts: samples of each class [label_dim].
        class_names: [label_dim], or empty.
        mean, std: a channel each [C], of pixels in [-1, 1] or of the latents' means.
        text: of the column of that name.
        source: where it came from and how it was made, for people.
        shards: files, in the order of the samples.
    """

    kind: str
    count: int
    shape: tuple[int, ...]
    columns: tuple[str, ...]
    shards: tuple[Shard, ...]
    label_dim: int = 0
    class_counts: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    text: TextEncoder | None = None
    source: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def fingerprint(self) -> str:
        """The same for the same samples in the same order, wherever they lie."""
        values = [self.kind, self.shape, self.columns, self.label_dim]
        values += [[shard.sha256, shard.row_groups] for shard in self.shards]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    @property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of every row group of every file, in order."""
        return tuple(rows for shard in self.shards for rows in shard.row_groups)

    def to_json(self) -> str:
        values = asdict(self)
        return json.dumps(values | {DIGEST: _digest(values)}, indent=1) + "\n"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def read_manifest(store: Store) -> DataManifest:
    """The manifest of a prepared data set. Raises UserError in one line, StoreError."""
    try:
        text = store.read_text(MANIFEST)
    except FileNotFoundError:
        raise UserError(
            f"no prepared data set at {store}: {MANIFEST} is missing; sid-ray data prepare SRC DST "
            "makes one of pictures, an archive or other samples: name its DST"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{store}/{MANIFEST} is damaged: prepare the set again") from None
    return parse_data_manifest(text, f"{store}/{MANIFEST}")


def parse_data_manifest(text: str, where: str) -> DataManifest:
    """Raises UserError where it is cut, changed, of another schema or contradicts itself."""
    try:
        values = json.loads(text)
        if values.get("schema") != SCHEMA:
            raise UserError(
                f"{where}: schema {values.get('schema')!r}, this version reads {SCHEMA}: prepare "
                "the set again"
            )
        digest = values.pop(DIGEST, "")
        whole = digest == _digest(values)
        manifest = _built(values)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"{where} is damaged ({error}): prepare the set again") from None
    if not whole:
        raise UserError(
            f"{where} does not match its own checksum: it was changed or cut; prepare the set again"
        )
    _check(manifest, where)
    return manifest


def _built(values: dict[str, Any]) -> DataManifest:
    """The object out of JSON's lists and dictionaries."""
    shards = tuple(
        Shard(s["name"], s["size"], s["sha256"], tuple(s["row_groups"])) for s in values["shards"]
    )
    text = values["text"]
    encoder = None if text is None else TextEncoder(text["sha256"], tuple(text["shape"]))
    lists = ("shape", "columns", "class_counts", "class_names", "mean", "std")
    tuples = {name: tuple(values[name]) for name in lists}
    return DataManifest(**values | tuples | {"shards": shards, "text": encoder})


def _check(manifest: DataManifest, where: str) -> None:
    """Raises UserError where the manifest's parts do not fit together."""
    rows = sum(manifest.row_groups)
    wrong = {
        f"kind {manifest.kind!r}": manifest.kind not in KINDS,
        f"{rows} rows in files for {manifest.count} samples": rows != manifest.count,
        "no samples": manifest.count < 1,
        f"shape {list(manifest.shape)}": manifest.kind in SHAPED
        and (len(manifest.shape) != 3 or prod(manifest.shape) < 1),
        f"{sum(manifest.class_counts)} labels of {len(manifest.class_counts)} classes": bool(
            manifest.label_dim
        )
        and (sum(manifest.class_counts), len(manifest.class_counts))
        != (manifest.count, manifest.label_dim),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{where}: {what}: prepare the set again")
