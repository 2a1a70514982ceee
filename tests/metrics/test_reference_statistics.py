"""Statistics of reference images: published layouts, and a cache by content."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sid_ray.errors import UserError
from sid_ray.metrics.blocks import FeatureBlocks
from sid_ray.metrics.reference import (
    Statistics,
    cached_features,
    cached_path,
    cached_statistics,
    read_statistics,
    save_statistics,
)
from sid_ray.metrics.sums import FeatureSums

SUMS = FeatureSums.of(np.random.default_rng(0).normal(size=(300, 5)))
MU, SIGMA = SUMS.mean, SUMS.covariance


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))


def assert_same(found: Statistics) -> None:
    assert found.mean.tobytes() == MU.tobytes()
    assert found.covariance.tobytes() == SIGMA.tobytes()


def test_nvidias_npz_is_read(tmp_path):
    np.savez(tmp_path / "ref.npz", mu=MU, sigma=SIGMA)
    assert_same(read_statistics(tmp_path / "ref.npz"))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("metric", ["fid", "fd_dinov2"])
def test_edm2s_pickle_is_read(tmp_path, protocol, metric):
    other = {"mu": MU + 1, "sigma": SIGMA}
    values = {"fid": other, "fd_dinov2": other} | {metric: {"mu": MU, "sigma": SIGMA}}
    path = tmp_path / "ref.pkl"
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    assert_same(read_statistics(path, metric))
    with pytest.raises(UserError, match=r"holds fid, fd_dinov2; expected 'kid'"):
        read_statistics(path, "kid")


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


def test_what_is_no_statistics_is_refused(tmp_path, capsys):
    path = tmp_path / "file"
    with pytest.raises(UserError, match="is no file"):
        read_statistics(path)
    path.write_bytes(pickle.dumps({"fid": Hostile()}))
    with pytest.raises(UserError, match="no file of statistics"):
        read_statistics(path)
    assert capsys.readouterr().out == ""
    for broken in (b"", b"text", b"\x80\x04"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="no file of statistics"):
            read_statistics(path)
    for wrong, message in (
        ({"mu": MU}, "holds mu; expected mu and sigma"),
        ({"mu": MU, "sigma": SIGMA[:2]}, r"covariance of shape \[2, 5\]"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "not finite"),
        ({"mu": np.array([Hostile()]), "sigma": SIGMA}, "cannot be read as npz"),
        ({"mu": np.array(b"\n\x1b[1m" * 900), "sigma": SIGMA}, "holds no numbers"),
        ({"mu": np.array(["a"]), "sigma": SIGMA}, "holds no numbers"),
        ({"mean": MU, "covariance": SIGMA, "count": MU, "identity": "x"}, "holds no count"),
        ({"a\nb" * 400: MU}, r"holds a\\nba"),
    ):
        with path.open("wb") as file:
            np.savez(file, **wrong)
        with pytest.raises(UserError, match=message) as caught:
            read_statistics(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):  # zlib, struct and numpy's headers raise many kinds
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with pytest.raises(UserError):
            read_statistics(path)
    with (tmp_path / "pickled").open("wb") as file:
        pickle.dump({"fid": {"mu": "text", "sigma": MU}}, file)
    with pytest.raises(UserError, match=r"mean of shape \[\]"):
        read_statistics(tmp_path / "pickled")


def test_own_files_come_back(tmp_path):
    save_statistics(tmp_path / "a" / "own.npz", Statistics.of(SUMS, "lite0-1"))
    found = read_statistics(tmp_path / "a" / "own.npz")
    assert_same(found)
    assert (found.count, found.identity) == (300, "lite0-1")


def test_a_data_set_is_looked_at_once():
    made = []

    def make() -> FeatureSums:
        made.append(1)
        return SUMS

    for _ in range(3):
        assert_same(cached_statistics("data-1", "lite0-1", make))
    assert len(made) == 1
    cached_statistics("data-2", "lite0-1", make)
    cached_statistics("data-1", "lite0-2", make)
    assert len(made) == 3
    cached_path("data-1", "lite0-1").write_bytes(b"damaged")
    assert_same(cached_statistics("data-1", "lite0-1", make))
    assert len(made) == 4
    with pytest.raises(UserError, match="without a fingerprint"):
        cached_statistics("", "lite0-1", make)


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
def test_features_are_made_once(damage):
    x = np.random.default_rng(0).normal(size=(700, 3)).astype(np.float32)
    made = []

    def make() -> FeatureBlocks:
        made.append(1)
        return FeatureBlocks.of(x)

    for _ in range(2):
        assert cached_features("data", "lite0-1", make).array().tobytes() == x.tobytes()
    assert len(made) == 1
    path = cached_path("data", "lite0-1", "npy")
    path.write_bytes(path.read_bytes()[:-4] if damage is None else damage)
    assert cached_features("data", "lite0-1", make).array().tobytes() == x.tobytes()
    assert len(made) == 2
    with pytest.raises(UserError, match="without a fingerprint"):
        cached_features("", "lite0-1", make)
