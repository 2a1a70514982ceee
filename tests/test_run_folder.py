"""Who works on a run, and whether it is the same run."""

import os
import subprocess
import sys
import time

import pytest

from sid_ray.config import replace
from sid_ray.errors import UserError
from sid_ray.recipes import recipe
from sid_ray.run_folder import (
    IDENTITY,
    RunRecord,
    check_same_run,
    only_driver,
    read_record,
    write_record,
)

DIGITS = recipe("digits-sid")


def test_a_run_is_known_again_and_another_config_is_refused(tmp_path):
    assert check_same_run(tmp_path, DIGITS) is None
    first = RunRecord(DIGITS.to_json(), "abc")
    write_record(tmp_path, first)
    assert check_same_run(tmp_path, DIGITS) == first
    assert RunRecord(DIGITS.to_json(), "abc").key != first.key, "a run begun anew is another one"
    longer = replace(DIGITS, training__images=10**6, resources__num_workers=1)
    assert check_same_run(tmp_path, longer) is not None
    changed = replace(DIGITS, training__seed=3, objective__alpha=1.2)
    with pytest.raises(UserError) as refusal:
        check_same_run(tmp_path, changed)
    assert "objective.alpha: 1.0 -> 1.2; training.seed: 0 -> 3" in str(refusal.value)


def test_a_damaged_record_is_said(tmp_path):
    (tmp_path / IDENTITY).write_text('{"config": ')
    with pytest.raises(UserError, match="is damaged"):
        read_record(tmp_path)
    (tmp_path / IDENTITY).write_text('{"other": 1}')
    with pytest.raises(UserError, match="is damaged"):
        read_record(tmp_path)


HOLD = """
import sys, time, pathlib
from sid_ray.run_folder import only_driver
with only_driver(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_drivers_do_not_share_a_run_and_a_killed_one_leaves_no_lock(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"worked on by process {other.pid}"),
            only_driver(tmp_path),
        ):
            pass
        other.kill()
        other.wait()
    for _ in range(50):
        try:
            with only_driver(tmp_path):
                assert (tmp_path / ".lock").read_text() == str(os.getpid())
            return
        except UserError:
            time.sleep(0.1)
    pytest.fail("the lock outlived its process")
