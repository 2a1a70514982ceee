"""Statistics of real images: read from published files, or made of a data set once and kept.

NVIDIA's npz           mu, sigma (EDM: cifar10-32x32.npz and so on); FID's Inception
NVIDIA's pkl           {"fid": {"mu", "sigma"}, "fd_dinov2": {...}} (EDM2: img512.pkl)
own npz                mean, covariance, count, identity of the extractor
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sid_ray.errors import UserError
from sid_ray.metrics.blocks import FeatureBlocks
from sid_ray.metrics.sums import FeatureSums
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.durable import locked, moved_into_place
from sid_ray.tensor_files.archives import read_pickled
from sid_ray.tensor_files.inert import NumpyArray, as_mapping, printable

MAKING = 1
"""Raised when statistics of the same data and extractor come out otherwise than before."""


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] of real images' features.

    Attributes:
        count: images; 0 where the file does not say.
        identity: of the extractor; "" where the file does not say.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int = 0
    identity: str = ""

    @classmethod
    def of(cls, sums: FeatureSums, identity: str) -> Statistics:
        return cls(sums.mean, sums.covariance, sums.count, identity)


def checked_statistics(
    path: Path, mean: Any, covariance: Any, count: int = 0, name: str = ""
) -> Statistics:
    """Statistics whose shapes fit and whose numbers are finite, or a UserError."""
    try:
        mean, covariance = (np.asarray(each, np.float64) for each in (mean, covariance))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} holds no numbers ({short_message(error)}): fetch or make it again"
        ) from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path} has a mean of shape {list(mean.shape)} and a covariance of shape "
            f"{list(covariance.shape)}, expected [D] and [D, D]: it holds no feature statistics"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} has statistics that are not finite: fetch or make it again")
    return Statistics(mean, covariance, count, name)


def read_statistics(path: Path, metric: str = "fid") -> Statistics:
    """Statistics of an npz file, or those of ``metric`` in a pickle ("fid", "fd_dinov2").

    Nothing in the file is run. Raises UserError for a file that is missing, damaged or of another
    kind.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give the statistics of the reference images")
    if zipfile.is_zipfile(path):
        return read_npz(path)
    return read_pickle(path, metric)


def short_message(error: Exception) -> str:
    """What a library says, in one line: it may repeat bytes of the file."""
    return printable(" ".join(str(error).split()))[:200] or type(error).__name__


def read_npz(path: Path) -> Statistics:
    """NVIDIA's npz or an own one. Raises UserError for others."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy's headers raise many kinds
        raise UserError(
            f"{path} cannot be read as npz ({short_message(error)}): fetch or make it again"
        ) from None
    if {"mu", "sigma"} <= found.keys():
        return checked_statistics(path, found["mu"], found["sigma"])
    if {"mean", "covariance", "count", "identity"} <= found.keys():
        try:
            count, name = int(found["count"]), str(found["identity"])
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path} holds no count ({short_message(error)}): fetch or make it again"
            ) from None
        return checked_statistics(path, found["mean"], found["covariance"], count, name)
    names = printable(", ".join(sorted(found)))[:300] or "nothing"
    raise UserError(f"{path} holds {names}; expected mu and sigma, the statistics of features")


def read_pickle(path: Path, metric: str) -> Statistics:
    """EDM2's pickle, by the reader that runs nothing. Raises UserError for others."""
    try:
        root = as_mapping(read_pickled(path).root)
    except UserError as error:
        raise UserError(f"{path} is no file of statistics: {error}") from None
    held = as_mapping(root.get(metric)) if root is not None else None
    if held is None or not {"mu", "sigma"} <= held.keys():
        names = printable(", ".join(map(str, root)))[:300] if root else "nothing"
        raise UserError(f"{path} holds {names}; expected {metric!r} with mu and sigma")
    return checked_statistics(path, numbers(held["mu"]), numbers(held["sigma"]))


def numbers(value: Any) -> Any:
    """The numpy array of an inert one; anything else as it is, for checked() to judge."""
    if not isinstance(value, NumpyArray) or value.type is None:
        return np.zeros(()) if not isinstance(value, list | float | int) else value
    order = value.type.order if value.type.order in "<>" else ""
    try:
        kind = np.dtype(order + value.type.code.lstrip("<>=|"))
        return np.frombuffer(value.data, kind).reshape(value.shape)
    except (TypeError, ValueError):  # no type of numbers, or not as many as its shape says
        return np.zeros(())


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Writes an own npz, in place at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with moved_into_place(path) as written, written.open("wb") as file:
        np.savez(
            file,
            mean=statistics.mean,
            covariance=statistics.covariance,
            count=np.int64(statistics.count),
            identity=np.str_(statistics.identity),
        )


def cached_path(fingerprint: str, identity: str, ending: str = "npz") -> Path:
    """Where this machine keeps what an extractor saw in a data set: statistics (npz), features.

    Args:
        fingerprint: of the data set's content, and of what is done to its images if anything is.
        identity: of the extractor: its name and the digest of its weights.
    """
    key = hashlib.sha256(f"{MAKING}\n{fingerprint}\n{identity}".encode()).hexdigest()[:24]
    return cache_folder() / "statistics" / f"{identity}-{key}.{ending}"


def cached_statistics(
    fingerprint: str, identity: str, make: Callable[[], FeatureSums]
) -> Statistics:
    """The statistics of a data set, made once on this machine however many processes ask.

    ``make`` gives the sums over the whole set. A kept file that cannot be read is made again.
    Raises UserError without a fingerprint.
    """
    path = cached_path(known(fingerprint), identity)
    with locked(path):
        if path.is_file():
            try:
                found = read_npz(path)
            except UserError:
                path.unlink()
            else:
                if found.identity == identity:
                    return found
        made = Statistics.of(make(), identity)
        save_statistics(path, made)
    return made


def known(fingerprint: str) -> str:
    """The fingerprint, or a UserError: without one, what the data was could not be told later."""
    if not fingerprint:
        raise UserError(
            "what was seen in a data set without a fingerprint cannot be kept: prepare the data "
            "set with sid-ray data prepare"
        )
    return fingerprint


def cached_features(
    fingerprint: str, identity: str, make: Callable[[], FeatureBlocks]
) -> FeatureBlocks:
    """Features of a data set, made once on this machine as its statistics are.

    Raises UserError without a fingerprint.
    """
    path = cached_path(known(fingerprint), identity, "npy")
    with locked(path):
        if not path.is_file() or not is_whole_npy(path):
            array = make().array()
            with moved_into_place(path) as written, written.open("wb") as file:
                np.save(file, array)
        return FeatureBlocks.of(np.load(path, mmap_mode="r", allow_pickle=False))


def is_whole_npy(path: Path) -> bool:
    """Whether a file is a whole npy of float32 features [N, D]."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # numpy's headers raise many kinds
        return False
    return found.ndim == 2 and found.dtype == np.float32 and len(found) > 0
