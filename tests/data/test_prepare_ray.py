"""Preparing on Ray Data: the same bytes as in one process, also after kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sid_ray.data.check import check_set
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.data.progress import PROGRESS
from sid_ray.errors import UserError
from sid_ray.storage.store import Store
from tests.data.test_prepare import digests
from tests.support.data_sources import edm_members, edm_name, pixels, write_zip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = 70_000  # 18 files


def command(source, destination, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sid_ray.cli", "data", "prepare", source, destination, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_kill_and_go_on_with_other_workers(tmp_path):
    pngs = list(edm_members(pixels(1_000, 4)).values())
    labels = [[edm_name(n), n % 10] for n in range(COUNT)]
    everything = {edm_name(n): pngs[n % 1_000] for n in range(COUNT)}
    everything["dataset.json"] = json.dumps({"labels": labels})
    source = str(write_zip(tmp_path / "a.zip", everything))
    prepare_data(PrepareOptions(source, str(tmp_path / "whole"), workers=0))
    expected = digests(tmp_path / "whole")
    assert len(expected) == 19
    process = command(source, str(tmp_path / "killed"), "--workers", "2")
    notes = tmp_path / "killed" / PROGRESS
    until = time.monotonic() + 240
    while time.monotonic() < until and len(list(notes.glob("part-*.json"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # its workers follow it
    kept = len(list(notes.glob("part-*.json")))
    assert 3 <= kept < 18
    again = command(source, str(tmp_path / "killed"), "--workers", "1")
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert "going on: " in out
    assert digests(tmp_path / "killed") == expected


def test_encoders_and_bad_input_on_ray(tmp_path):
    """One file of row groups each: encoders in two actors; then a picture that is damaged."""
    pytest.importorskip("diffusers")
    from tests.denoisers.tiny_pipeline import write_pipeline

    write_pipeline(tmp_path / "teacher")
    teacher = str(tmp_path / "teacher")
    members = edm_members(pixels(800, 16))
    lines = [{"file_name": edm_name(n), "text": f"a cat {n % 7}"} for n in range(800)]
    members["metadata.jsonl"] = "\n".join(map(json.dumps, lines))
    source = write_zip(tmp_path / "a.zip", members)
    asked = {"encode": teacher, "encode_text": teacher}
    done = [
        prepare_data(PrepareOptions(str(source), str(tmp_path / str(n)), workers=n, **asked))
        for n in (0, 2)
    ]
    assert done[1].manifest.count == 800 and len(done[1].manifest.shards) > 2
    assert check_set(Store.at(str(tmp_path / "2")), deep=True) == []
    assert digests(tmp_path / "0") == digests(tmp_path / "2")
    members[edm_name(700)] = members[edm_name(300)] = b"not a picture"
    source = write_zip(tmp_path / "b.zip", members)
    with pytest.raises(UserError, match=rf"{edm_name(300)} \(sample 300\): not an image"):
        prepare_data(PrepareOptions(str(source), str(tmp_path / "bad"), workers=2, **asked))
    assert not (tmp_path / "bad").exists()
