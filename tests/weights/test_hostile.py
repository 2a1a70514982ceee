"""Hostile and damaged files: one UserError, nothing executed, nothing large allocated."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest

from sid_ray.errors import UserError
from sid_ray.weights.formats import read_weights
from tests.support import hostile
from tests.support import weights_writer as writer
from tests.weights.measure import address_space, peak_bytes

MIB = 1 << 20


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a file ran something"


def refused(path, **options) -> str:
    """The one line with which a file is refused."""
    with address_space(2048 * MIB), pytest.raises(UserError) as caught:
        read_weights(path, **options)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable() and len(line) < 900
    return line


PLACEHOLDER = hostile.Path("canary")


@pytest.mark.parametrize("name", hostile.payloads(PLACEHOLDER))
def test_payload_is_refused_and_not_run(name, canary, tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(hostile.payloads(canary)[name])
    refused(path)


@pytest.mark.parametrize("name", hostile.nested_payloads(PLACEHOLDER))
def test_nested_payload_is_refused_by_name(name, canary, tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(hostile.nested_payloads(canary)[name])
    assert "imports 'os.system'" in refused(path)


def test_the_payloads_are_real(tmp_path):
    """The same bytes do create the canary when Python's unpickler gets them."""
    for index, name in enumerate(["os.system", "protocol 0", "getattr chain", "builtins.eval"]):
        canary = tmp_path / f"canary{index}"
        script = "import pickle, sys; pickle.load(sys.stdin.buffer)"
        subprocess.run(
            [sys.executable, "-c", script],
            input=hostile.payloads(canary)[name],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        assert canary.exists(), name


def test_source_text_is_not_executed(canary, tmp_path):
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(hostile.source_only(canary))
    loaded = read_weights(path)
    assert len(loaded.tensors) == len(writer.edm_network().state_dict())


@pytest.mark.parametrize("name", hostile.large_claims())
def test_large_claims_are_refused_within_the_files_size(name, tmp_path):
    path = tmp_path / "large.pkl"
    path.write_bytes(hostile.large_claims()[name])
    good = tmp_path / "good.pkl"
    good.write_bytes(writer.sid_snapshot()[0])
    read_weights(good)  # what is imported on first use is not the file's
    peak = peak_bytes(lambda: refused(path))
    assert peak < 4 * path.stat().st_size + 32 * MIB


@pytest.mark.parametrize("layout", ["sid_snapshot", "sid_training_state", "sida_edm2_snapshot"])
def test_whole_files_stay_within_their_size(layout, tmp_path):
    path = tmp_path / "whole"
    path.write_bytes(writer.LAYOUTS[layout]()[0])
    read_weights(path)
    assert peak_bytes(lambda: read_weights(path)) < 4 * path.stat().st_size + 32 * MIB


@pytest.mark.parametrize("layout", ["edm_snapshot", "edm2_snapshot", "sida_training_state"])
def test_cut_files(layout, canary, tmp_path):
    data, _ = writer.LAYOUTS[layout]()
    path = tmp_path / "cut"
    for step in range(60):
        path.write_bytes(data[: len(data) * step // 60])
        refused(path)
    path.write_bytes(data[:-1])
    refused(path)


@pytest.mark.parametrize("container", ["pickle", "torch archive", "older"])
def test_damaged_numbers_are_found_where_there_is_a_checksum(container, tmp_path):
    name = {"pickle": "sid_snapshot", "older": "older_training_state"}.get(
        container, "sida_training_state"
    )
    data, expected = writer.LAYOUTS[name]()
    weight = expected["model.map_layer1.weight"].numpy().tobytes()
    place = data.rindex(weight) + 7
    path = tmp_path / "flipped"
    path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    if container == "torch archive":
        assert "checksum" in refused(path)
    else:  # these containers have none: --sha256 on the source is what finds it
        assert list(read_weights(path).tensors) == list(expected)


def test_compressed_archive_says_what_to_do(tmp_path):
    path = tmp_path / "bomb.pt"
    path.write_bytes(hostile.bomb())
    assert "is compressed" in refused(path) and "torch.save" in refused(path)


def test_pipes_and_missing_files(tmp_path):
    assert "No such file" in refused(tmp_path / "nothing.pkl")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "no network at" in refused(folder)
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in refused(tmp_path / "pipe")
    locked = tmp_path / "locked.pkl"
    locked.write_bytes(pickle.dumps({}))
    locked.chmod(0)
    if os.geteuid():
        assert "Permission denied" in refused(locked)
