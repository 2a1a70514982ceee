"""The real images that made ones are compared with: published statistics, or a data set's own.

What an extractor saw in a data set is kept in the cache under the set's fingerprint, so it is made
once a machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from sid_ray.config.sections import DataConfig
from sid_ray.data.in_order import in_blocks
from sid_ray.data.prepared import PreparedSource, open_prepared
from sid_ray.data.source import DataSource
from sid_ray.errors import UserError
from sid_ray.metrics.blocks import FeatureBlocks, together
from sid_ray.metrics.extractors import Extractor
from sid_ray.metrics.features import SPACES, load_feature_space
from sid_ray.metrics.reference import (
    Statistics,
    cached_features,
    cached_statistics,
    read_statistics,
)
from sid_ray.metrics.scores import SeenBlocks, features_of
from sid_ray.metrics.spec import Gauge, metric_specs
from sid_ray.metrics.sums import BLOCK, FeatureSums, merged
from sid_ray.storage.errors import StoreError
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path
from sid_ray.storage.store import Store

Tell = Callable[[str], None]

STATISTICS = (".npz", ".pkl")
SAMPLES = 200_000
"""Real images that kernel distance, precision and recall look at, as published; prepared sets are
stored mixed, so the first ones are a fair choice."""
WORD_S = 30.0  # between two words about a set that is being looked at


class Real:
    """Real images as one extractor sees them.

    Args:
        reference: an address as in evaluation.reference; empty for the source's own images.
        source: the run's data set.
        extractor: may be looked through; nothing is until it is needed.
        tell: told in a line what takes long.
    """

    def __init__(
        self,
        reference: str,
        source: DataSource,
        extractor: Extractor,
        tell: Tell = lambda text: None,
    ):
        self.reference, self.extractor, self.tell = reference, extractor, tell
        self.source = self._data_set(source)

    def _data_set(self, own: DataSource) -> DataSource | None:
        """The data set whose images are looked at; None where there is none."""
        if is_statistics(self.reference):
            return None
        if not self.reference:
            return own if set_holds_pictures(own) else None
        data = DataConfig(name="prepared", source=self.reference)
        try:
            found = open_prepared(data, own.shape)
        except UserError as error:
            raise UserError(str(error).replace("data.source", "evaluation.reference")) from None
        if not set_holds_pictures(found):
            raise UserError(
                f"evaluation.reference {self.reference} holds {found.manifest.kind}; expected "
                "images: prepare the images themselves, or name an .npz with their statistics"
            )
        return found

    @property
    def ships(self) -> bool:
        """Whether the statistics are those that come with a small feature space."""
        return not self.reference and self.extractor.name in SPACES

    def check(self, samples: bool = False) -> None:
        """Raises UserError where there are no statistics, or with ``samples`` no images."""
        if self.source is not None:
            if not self.ships:
                self._check_size(self.source)
            return
        if samples:
            found = f"{self.reference} holds statistics" if self.reference else "none are at hand"
            metrics = " and ".join(metrics_of_images())
            raise UserError(
                f"metrics {metrics} need real images, {found}: name a prepared data set as "
                "evaluation.reference"
            )
        if self.reference:
            self.statistics  # noqa: B018  read now
        elif not self.ships:
            raise UserError(
                "evaluation.reference is empty and the data set has no images: name a prepared "
                "data set, or statistics of the real images (.npz, .pkl)"
            )

    def _check_size(self, real: DataSource) -> None:
        """Raises UserError for real images that the feature space does not take."""
        try:
            features_of(self.extractor, torch.zeros(1, *real.shape, dtype=torch.uint8))
        except UserError as error:
            raise UserError(f"evaluation.reference {self.reference or '(own)'}: {error}") from None

    @cached_property
    def statistics(self) -> Statistics:
        """Raises UserError."""
        name, identity = self.extractor.name, self.extractor.identity
        if is_statistics(self.reference):
            path = local_file(self.reference)
            found = read_statistics(path, "fd_dinov2" if name == "dinov2" else "fid")
            if found.identity not in ("", identity):
                raise UserError(
                    f"{self.reference} was made by {found.identity}, not by {identity}: use the "
                    "same feature space for both"
                )
            if len(found.mean) != self.extractor.dim:
                raise UserError(
                    f"{self.reference} has statistics of {len(found.mean):,} features, {name} has "
                    f"{self.extractor.dim:,}: name those of this feature space, or choose another"
                )
            return found
        if self.ships:
            space = load_feature_space(name)
            return Statistics(space.mean, space.covariance, identity=identity)
        self.check()
        return cached_statistics(
            self._source.fingerprint, identity, lambda: merged(self._sums_of_all())
        )

    @cached_property
    def seen(self) -> SeenBlocks:
        """Sums and features of up to 200,000 of the images. Raises UserError."""
        self.check(samples=True)
        limit = f"{self._source.fingerprint}-first-{SAMPLES}"
        features = cached_features(limit, self.extractor.identity, self._features)
        return SeenBlocks(FeatureSums.of(features.array()), features)

    def looked_at(self, gauge: Gauge) -> NDArray:
        """What a metric's Gauge sees of up to 200,000 of the images, [M, D]. Raises UserError."""
        self.check(samples=True)
        limit = f"{self._source.fingerprint}-first-{SAMPLES}"
        found = cached_features(
            limit, gauge.identity, lambda: self._blocks(lambda images: gauge.look(images, None))
        )
        return found.array()

    @property
    def description(self) -> dict[str, str]:
        """What a result says of its reference."""
        if self.source is None or self.ships:
            return {"reference": self.reference or f"of {self.extractor.name}"}
        named = self.reference or "the run's own images"
        return {"reference": named, "reference_fingerprint": self.source.fingerprint[:16]}

    @property
    def _source(self) -> DataSource:
        assert self.source is not None
        return self.source

    def _sums_of_all(self) -> Iterator[FeatureSums]:
        for block, images in enumerate(self._pictures(len(self._source))):
            yield FeatureSums.of_block(features_of(self.extractor, images)[0], block)

    def _features(self) -> FeatureBlocks:
        return self._blocks(lambda images: features_of(self.extractor, images)[0])

    def _blocks(self, look: Callable[[Tensor], NDArray]) -> FeatureBlocks:
        """What is seen in the first images, up to 200,000 of them, block by block."""
        wanted = min(SAMPLES, len(self._source))
        parts = islice(self._pictures(wanted), -(-wanted // BLOCK))
        return together(
            FeatureBlocks.of_block(look(images[: wanted - block * BLOCK]), block)
            for block, images in enumerate(parts)
        )

    def _pictures(self, count: int) -> Iterator[Tensor]:
        """Blocks of 256 images, with a word now and then about how long it takes."""
        began = said = time.monotonic()
        try:
            for block, images in enumerate(in_blocks(self._source.pictures(self.tell), BLOCK)):
                yield images
                done, now = min((block + 1) * BLOCK, count), time.monotonic()
                if now - said > WORD_S and done < count:
                    said, left_s = now, (now - began) * (count / done - 1)
                    self.tell(f"looking at real images: {done:,}/{count:,}, {left_s:.0f} s left")
        except StoreError as error:
            raise UserError(f"real images: {error}") from None


def metrics_of_images() -> list[str]:
    """The metrics that compare made images with real ones, not with statistics of them."""
    return [spec.name for spec in metric_specs() if "reference images" in spec.reads]


def is_statistics(reference: str) -> bool:
    return reference.endswith(STATISTICS)


def set_holds_pictures(source: DataSource) -> bool:
    """Whether it has images themselves, not latents."""
    if isinstance(source, PreparedSource):
        return source.manifest.kind == "images"
    return source.has_images


def local_file(address: str) -> Path:
    """A file of statistics on this machine's disk. Raises UserError."""
    if is_path(address):
        return expanded(address)
    from sid_ray.storage.cache import folder_of

    folder, _, name = address.rpartition("/")
    store = Store.at(folder)
    target = folder_of(store, "references") / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(name, target)
    except FileNotFoundError:
        raise UserError(f"{address} is not there: name the statistics' file") from None
    except StoreError as error:
        raise UserError(str(error)) from None
    return target
