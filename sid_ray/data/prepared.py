"""A prepared data set as a training step sees it: pixels by position, labels and prompts.

Only the fake-score phase of an adversarial run reads images or latents, with those images' own
labels and prompts. Everything else draws labels from the set's histogram, which the manifest holds,
and reads prompts by position from their own column.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sid_ray.config.sections import DataConfig
from sid_ray.data.decode import Decoded, gather
from sid_ray.data.in_order import column_at, pictures_of_set
from sid_ray.data.manifest import SHAPED, DataManifest, read_manifest
from sid_ray.data.order import Located, Order
from sid_ray.data.reader import GIB, StreamReader
from sid_ray.data.row_groups import RowGroups
from sid_ray.data.source import LABELS_ONLY, DataSource, Embed
from sid_ray.denoisers.codecs import Standard, from_moments
from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR, posterior_noise
from sid_ray.errors import UserError
from sid_ray.groups import GroupPlan
from sid_ray.storage.errors import StoreError, retrying
from sid_ray.storage.store import Store
from sid_ray.types import Batch, Pick

STREAMS = (FAKE_SCORE, GENERATOR)
AS_STORED = Standard((1.0,))


def untold(text: str) -> None:
    """tell of whoever needs no word."""


@dataclass(frozen=True)
class Reading:
    """What a rank reads, and how.

    Args:
        plan, rank: which positions of the stream are this rank's.
        seed: of the run.
        pixels: the fake-score phase needs images.
        window, xflip: as in the config.
        cache_gib: memory for what is read.
        until: images seen at the run's end.
        tell: told in a line about storage and memory.
    """

    plan: GroupPlan
    rank: int = 0
    seed: int = 0
    pixels: bool = False
    window: int = 4
    xflip: bool = False
    cache_gib: float = 4.0
    until: float = float("inf")
    tell: Callable[[str], None] = untold


@dataclass(frozen=True)
class PreparedSource(DataSource):
    """A prepared set.

    Args, beside Source's:
        store, manifest: where it lies, and what is in it.
        reading: None where it is only looked at.
        standard: of latents, for the teacher.
        own_text: its column of embeddings is of the teacher's encoder.
    """

    store: Store = field(kw_only=True)
    manifest: DataManifest = field(kw_only=True)
    reading: Reading | None = None
    standard: Standard = AS_STORED
    own_text: bool = False
    _readers: dict[int, StreamReader] = field(default_factory=dict, repr=False)
    _closing: threading.Event = field(default_factory=threading.Event, repr=False)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def has_images(self) -> bool:
        return self.manifest.kind in SHAPED

    @property
    def has_prompts(self) -> bool:
        return bool({"prompt", "text"} & set(self.manifest.columns))

    @cached_property
    def _class_ends(self) -> Tensor:
        return torch.tensor(self.manifest.class_counts, dtype=torch.int64).cumsum(0)

    def labels(self, index: Tensor) -> Tensor:
        """Samples [B], counted class after class -> class indices [B]. Reads no file."""
        if not self.label_dim:
            return index
        return torch.searchsorted(self._class_ends, index, right=True)

    @property
    def class_names(self) -> Sequence[str]:
        return self.manifest.class_names

    def text(self, index: Tensor) -> Tensor | None:
        """Samples [B], in the order of the files -> embeddings [B, T, D]; reads their row groups.

        None where no text is read. Raises UserError where they cannot be read now.
        """
        if self.embed is None:
            return None
        column = self._text_column
        parts = column_at(self.store, self.manifest, index.numpy(), column)
        values = np.stack(parts) if self.own_text else np.array(parts, object)
        return self._embedded(Decoded(**{column: values}))

    def captions(self, index: Tensor) -> list[str] | None:
        if "prompt" not in self.manifest.columns:
            return None
        return [str(each) for each in column_at(self.store, self.manifest, index.numpy(), "prompt")]

    def pictures(self, tell: Callable[[str], None] = untold) -> Iterator[Tensor]:
        return pictures_of_set(self.store, self.manifest, tell)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def _text_column(self) -> str:
        return "text" if self.own_text else "prompt"

    def _embedded(self, found: Decoded) -> Tensor | None:
        if found.text is not None:
            return torch.from_numpy(found.text).float()
        if found.prompt is None or self.embed is None:
            return None
        return self.embed(found.prompt.tolist())

    # What training asks for -----------------------------------------------------------------------

    def columns(self, stream: int) -> tuple[str, ...]:
        """What a phase reads of each sample at its positions."""
        found: list[str] = []
        if self._reads_pixels(stream):
            found.append("image" if self.manifest.kind == "images" else "latent")
            if self.label_dim:
                found.append("label")
        if self.embed is not None:
            found.append(self._text_column)
        return tuple(found)

    def _reads_pixels(self, stream: int) -> bool:
        return self.reading is not None and self.reading.pixels and stream == FAKE_SCORE

    @property
    def reads(self) -> bool:
        return self.reading is not None and any(map(self.columns, STREAMS))

    def wait(self, images_seen: int, timeout_s: float | None = None) -> bool:
        """Whether all that this rank needs for an iteration is there.

        Raises DamagedDataError.
        """
        readers = [self._reader(stream) for stream in STREAMS if self.columns(stream)]
        for reader in readers:  # all of them begin, before any is waited for
            reader.go_to(images_seen)
        return all(reader.wait(images_seen, timeout_s) for reader in readers)

    def close(self) -> None:
        self._closing.set()
        for reader in self._readers.values():
            reader.close()
        if self._readers:
            self._row_groups.close()

    def batch(self, pick: Pick) -> Batch:
        found = Decoded()
        if self.columns(pick.stream):
            assert pick.positions is not None
            reader = self._reader(pick.stream)
            found = reader.samples(pick.images_seen, pick.positions.numpy())
        classes = self.labels(self.index(pick.uniform))
        if found.label is not None:
            classes = torch.from_numpy(found.label)
        return Batch(self.one_hot(classes), self._images(found, pick), self._embedded(found))

    def _images(self, found: Decoded, pick: Pick) -> Tensor | None:
        """[B, C, H, W] as the denoiser sees them."""
        if found.image is not None:
            return torch.from_numpy(found.image).float() / 127.5 - 1
        if found.latent is None:
            return None
        moments = torch.from_numpy(found.latent).float()
        return from_moments(moments, self._noise(pick), self.standard)

    def _noise(self, pick: Pick) -> Tensor:
        """Fresh N(0,1) for the posteriors of these positions [B, C, h, w]."""
        assert self.reading is not None and pick.positions is not None
        size, seed = self.reading.plan.group_size, self.reading.seed
        inside = pick.positions - pick.images_seen
        parts = []
        for group in torch.unique_consecutive(inside // size).tolist():
            noise = posterior_noise(seed, pick.stream, pick.images_seen, group, size, self.shape)
            parts.append(noise[inside[inside // size == group] - group * size])
        return torch.cat(parts)

    @cached_property
    def _row_groups(self) -> RowGroups:
        assert self.reading is not None
        return RowGroups(self.store, self.manifest, self.reading.tell, self._closing)

    def _reader(self, stream: int) -> StreamReader:
        if stream not in self._readers:
            self._readers[stream] = self._new_reader(stream)
        return self._readers[stream]

    def _new_reader(self, stream: int) -> StreamReader:
        reading, columns = self.reading, self.columns(stream)
        assert reading is not None
        rows = self._row_groups.rows
        mirrors = reading.xflip and self._reads_pixels(stream)
        plan = reading.plan
        order = Order(
            (rows * (2 if mirrors else 1)).tolist(),
            plan.group_size,
            plan.num_groups,
            reading.window,
            reading.seed,
            stream,
        )
        weights = {s: self._row_groups.expected_bytes(0, self.columns(s)) for s in STREAMS}
        share = weights[stream] / max(sum(weights.values()), 1)
        return StreamReader(
            self._row_groups,
            order,
            columns,
            partial(self._gather, columns, mirrors),
            plan,
            reading.rank,
            reading.cache_gib * GIB * share,
            reading.until,
            reading.tell,
        )

    def _gather(
        self, columns: Sequence[str], mirrors: bool, tables: Mapping[int, Any], located: Located
    ) -> Decoded:
        mirrored = None
        if mirrors:  # the second half of a row group's places are its images mirrored
            rows = self._row_groups.rows[located.row_group]
            mirrored, located = located.row >= rows, located._replace(row=located.row % rows)
        return gather(tables, located, columns, self.manifest, self._row_groups.where, mirrored)


def find_manifest(data: DataConfig, tell: Callable[[str], None] | None = None) -> DataManifest:
    """The manifest of the config's prepared set, checked against the set's name.

    With ``tell`` it is waited for as long as the store cannot be reached. Raises UserError.
    """
    if not data.source:
        raise UserError(
            "data.source is empty; name a prepared data set, path or s3:// "
            "(sid-ray data prepare SRC DST makes one)"
        )
    store = Store.at(data.source)
    try:
        if tell is not None:
            manifest = retrying(partial(read_manifest, store), tell)
        else:
            manifest = read_manifest(store)
    except OSError as error:  # a StoreError, or a file where a folder should be
        what = str(error) if isinstance(error, StoreError) else f"{store} is no prepared data set"
        raise UserError(f"data.source: {what}; sid-ray data prepare SRC DST makes one") from None
    if data.name in LABELS_ONLY:
        size, label_dim = LABELS_ONLY[data.name]
        found = manifest.shape or size, manifest.label_dim
        if found != (size, label_dim) or manifest.kind == "prompts":
            raise UserError(
                f"data.source {store} holds {manifest.kind} of shape {list(manifest.shape)} and "
                f"{manifest.label_dim} classes; {data.name} is {list(size)} with {label_dim}: "
                "choose another set, or data.name prepared"
            )
    if data.name == "prompts" and "prompt" not in manifest.columns:
        raise UserError(f"data.source {store} holds {manifest.kind} without prompts")
    if data.xflip and manifest.kind != "images":
        raise UserError(
            f"data.xflip mirrors images; {store} holds {manifest.kind}: leave it out, or prepare "
            "mirrored images too"
        )
    return manifest


def open_prepared(
    data: DataConfig,
    shape: Sequence[int],
    embed: Embed | None = None,
    encoder: Callable[[], str] | None = None,
    standard: Callable[[], Standard] | None = None,
    reading: Reading | None = None,
) -> PreparedSource:
    """The config's prepared set.

    ``shape`` is the teacher's, for sets without pixels; ``embed`` its text encoder, ``encoder``
    that one's sha256, ``standard`` what it does to latents. Raises UserError.
    """
    manifest = find_manifest(data, reading.tell if reading else None)
    own_text = embed is not None and manifest.text is not None and encoder is not None
    own_text = own_text and manifest.text.sha256 == encoder()  # type: ignore[union-attr, misc]
    if embed is not None and not own_text and "prompt" not in manifest.columns:
        raise UserError(
            f"data.source {data.source} has no prompts for the teacher's text encoder"
            + (": its embeddings are another encoder's" if manifest.text else "")
        )
    latents = manifest.kind == "latents" and reading is not None and reading.pixels
    fallback = LABELS_ONLY.get(data.name, (shape, 0))[0]
    return PreparedSource(
        shape=manifest.shape or fallback,
        label_dim=manifest.label_dim,
        embed=embed,
        store=Store.at(data.source),
        manifest=manifest,
        reading=reading,
        standard=standard() if latents and standard is not None else AS_STORED,
        own_text=own_text,
    )
