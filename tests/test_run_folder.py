"""Who works on a run, and whether it is the same run."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import (
    IDENTITY,
    RunFolder,
    RunRecord,
    check_same_data,
    check_same_masks,
    check_same_run,
    only_driver,
    read_record,
    write_record,
)
from sid_ray.storage.store import Store

DIGITS = recipe("digits-sid")


@pytest.fixture(params=["disk", "s3"])
def store(request, tmp_path):
    if request.param == "disk":
        return Store.at(tmp_path)
    return Store.at(request.getfixturevalue("bucket") + "/runs/x")


def test_a_run_is_known_again_and_another_config_is_refused(store):
    assert check_same_run(store, DIGITS) is None
    first = RunRecord(DIGITS.to_json(), "abc")
    write_record(store, first)
    assert check_same_run(store, DIGITS) == first
    assert RunRecord(DIGITS.to_json(), "abc").key != first.key, "a run begun anew is another one"
    longer = replace(DIGITS, training__images=10**6, resources__num_workers=1)
    assert check_same_run(store, longer) is not None
    changed = replace(DIGITS, training__seed=3, objective__alpha=1.2)
    with pytest.raises(UserError) as refusal:
        check_same_run(store, changed)
    assert "objective.alpha: 1.0 -> 1.2; training.seed: 0 -> 3" in str(refusal.value)


def test_adapters_are_part_of_what_a_run_is(tmp_path):
    """Its checkpoints hold tensors of one rank, on these layers, over a base held so."""
    store = Store.at(str(tmp_path))
    config = replace(DIGITS, adapter__rank=8)
    write_record(store, RunRecord(config.to_json()))
    assert check_same_run(store, config) is not None
    for name, value in (("rank", 4), ("alpha", 2.0), ("targets", "qkv"), ("roles", "fake")):
        with pytest.raises(UserError, match=f"exists with another config .*adapter.{name}"):
            check_same_run(store, replace(config, **{f"adapter__{name}": value}))


def test_a_damaged_record_is_said(store):
    for text in ('{"config": ', '{"other": 1}'):
        store.write(IDENTITY, text)
        with pytest.raises(UserError, match="is damaged"):
            read_record(store)


def test_other_data_is_refused_where_both_are_known():
    check_same_data(RunRecord("{}"), "abc")
    check_same_data(RunRecord("{}", data="abc"), "")
    check_same_data(RunRecord("{}", data="abc"), "abc")
    with pytest.raises(UserError, match="not the one that this run began with"):
        check_same_data(RunRecord("{}", data="abc"), "abd")


def test_a_run_of_older_dropout_masks_is_refused_where_it_has_dropout(store):
    """Its record says nothing of masks; one without dropout has the same numbers as before."""
    values = asdict(RunRecord(DIGITS.to_json(), masks=2))
    del values["masks"]
    store.write(IDENTITY, json.dumps(values))
    record = read_record(store)
    check_same_masks(record, 2, drawn=False)
    with pytest.raises(UserError, match=r"began with dropout masks 1, and .* draws masks 2"):
        check_same_masks(record, 2, drawn=True)
    check_same_masks(RunRecord("", masks=2), 2, drawn=True)


HOLD = """
import sys, time, pathlib
from sid_ray.run_folder import RunFolder, only_driver
from sid_ray.storage.store import Store
with only_driver(RunFolder(Store(sys.argv[1]), pathlib.Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_drivers_do_not_share_a_run_and_a_killed_one_leaves_no_lock(tmp_path):
    run = RunFolder(Store.at(tmp_path), tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"worked on by process {other.pid}"),
            only_driver(run),
        ):
            pass
        other.kill()
        other.wait()
    for _ in range(50):
        try:
            with only_driver(run):
                assert (tmp_path / ".lock").read_text() == str(os.getpid())
            return
        except UserError:
            time.sleep(0.1)
    pytest.fail("the lock outlived its process")
