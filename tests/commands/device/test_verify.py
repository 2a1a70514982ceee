"""`sid-ray doctor --device` around its checks: time, processes, the report, wrong input."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sid_ray import cli
from sid_ray.commands.device import verify
from sid_ray.commands.device.apart import DeviceCheck, rows_apart
from sid_ray.commands.device.facts import machine_facts, said_by
from sid_ray.commands.device.redact import without_places
from sid_ray.commands.device.report import CheckedDevice, DeviceReport
from sid_ray.commands.device.rows import (
    FAILED,
    OK,
    SKIPPED,
    WARNING,
    DeviceRow,
    Rig,
    cut_short,
    guarded,
    held_to,
)
from sid_ray.device import found as device_found


def check_of(look: str) -> DeviceCheck:
    return DeviceCheck("a-check", "looks at nothing", look, 10.0)


def ended(how: str, folder: Path, seconds: float = 60.0) -> list[DeviceRow]:
    rig = Rig("cpu", 2, 1 << 30, seconds)
    return list(rows_apart(check_of(how), rig, folder, child="tests.support.device_child"))


def is_over(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(there: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not there() and time.monotonic() < ends:
        time.sleep(0.05)
    return there()


def test_a_check_that_crashes_is_a_row_behind_those_it_has_found(tmp_path):
    first, last = ended("crash", tmp_path)
    assert (first.name, first.verdict) == ("first", OK)
    assert last.verdict == FAILED and "ended by signal 11" in last.measured
    assert "place.py" in last.measured and "somebody" not in last.measured


def test_a_check_that_hangs_is_ended_with_all_that_it_has_started(tmp_path):
    first, child, last = ended("hang", tmp_path, seconds=2.0)
    assert first.name == "first" and last.verdict == FAILED
    assert "no end within 2 s" in last.measured
    assert is_over(int(child.measured))


def test_a_check_that_dies_leaves_none_of_its_ranks(tmp_path):
    _, rank, last = ended("dies beside a rank", tmp_path)
    assert rank.name == "rank" and "ended by signal 9" in last.measured
    assert wait_for(lambda: is_over(int(rank.measured)), 10.0)


def test_a_check_that_raises_says_so_and_where_nobody_lives():
    def fails():
        yield DeviceRow("before", "")
        raise OSError("no /home/somebody/data/file.bin at 10.1.2.3:77")

    before, row = guarded("part", fails)
    assert (before.name, row.name, row.verdict) == ("before", "part", FAILED)
    assert row.measured == "OSError: no .../file.bin at ADDRESS"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3/4 and/or 1.5 GB/s of 2.13.0", "3/4 and/or 1.5 GB/s of 2.13.0"),
        ("in /root/x/y.py line 3", "in .../y.py line 3"),
        ("~/keys/id", ".../id"),
        ("host 192.168.0.17 down", "host ADDRESS down"),
        (f"token {'a1' * 20}", "token ..."),
    ],
)
def test_what_strangers_do_not_read(text, expected):
    assert without_places(text) == expected


def test_a_number_is_held_to_its_bound_and_nan_to_any():
    assert held_to("x", "error", 1e-6, 1e-5).verdict == OK
    assert held_to("x", "error", 2e-5, 1e-5).verdict == FAILED
    wrong = held_to("x", "error", float("nan"), 1e-5)
    assert wrong.verdict == FAILED
    assert json.loads(json.dumps(wrong.to_values(), allow_nan=False))["figures"]["value"] == "nan"


def test_a_part_that_there_is_no_time_for_is_said_to_be_left_out():
    rig = Rig("cpu", 2, 1 << 30, 60.0)
    assert list(cut_short("x", rig, 1.0)) == []
    (row,) = cut_short("x", rig, 1000.0)
    assert row.verdict == SKIPPED and "left out" in row.measured


def test_a_check_may_take_what_those_before_it_have_left(tmp_path, monkeypatch):
    given = []

    def rows(check, rig, folder):
        given.append(rig.seconds)
        yield DeviceRow(check.name, "")

    monkeypatch.setattr(verify, "rows_apart", rows)
    checks = [DeviceCheck(str(n), "", "", share) for n, share in enumerate((10.0, 20.0, 30.0))]
    monkeypatch.setattr(verify, "WHOLE_S", 100.0)
    rig = Rig("cpu", 1, 1, 100.0)
    report = DeviceReport(tmp_path, {}, {})
    verify.look_at_device(checks, rig, report)
    assert given == pytest.approx([50, 70, 100], abs=1)  # each leaves the shares behind it alone
    assert report.complete


def test_all_shares_end_in_ten_minutes():
    assert sum(check.share_s for check in verify.DEVICE_CHECKS) <= verify.WHOLE_S < 600


def test_the_report_is_alike_for_programs_and_people(tmp_path):
    rows = [
        held_to("a | b", "error", 1.0, 0.5),
        DeviceRow("c", "left out", verdict=SKIPPED),
        DeviceRow("d", "slow", "fast", WARNING),
    ]
    examined = CheckedDevice(check_of("x"), 10.0, 3.0, rows)
    report = DeviceReport(tmp_path / "report", {"GPUs": "8 x some"}, {"links": "X"}, [examined])
    report.write()
    values = json.loads((tmp_path / "report" / "report.json").read_text())
    text = (tmp_path / "report" / "report.md").read_text()
    assert values["failed"] == 1 and not values["complete"]
    assert values["checks"][0]["verdict"] == FAILED
    assert [row["verdict"] for row in values["checks"][0]["rows"]] == [FAILED, SKIPPED, WARNING]
    assert "1 found wrong in 3 rows (1 warning, 1 skipped), 3 s; not complete" in text
    assert "| a \\| b | error 1.0e+00 | at most 5.0e-01 | FAILED |" in text
    assert "| GPUs | 8 x some |" in text and "```\nX\n```" in text


def test_the_facts_name_neither_the_machine_nor_a_person():
    import socket

    facts = "\n".join(machine_facts("cpu").values())
    assert "torch 2." in facts and "deepspeed" in facts
    assert socket.gethostname() not in facts and str(Path.home()) not in facts


def test_a_program_that_is_not_there_is_said_so():
    assert "does not answer" in said_by(("no-such-program-here",))


def test_without_a_gpu_the_command_says_in_a_line_what_it_needs(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    reason = "no NVIDIA driver and no GPU is found here: install driver 580"
    monkeypatch.setattr(device_found, "no_gpu_reason", lambda: reason)
    assert cli.exit_code_of(["doctor", "--device"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == f"sid-ray: {reason}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cpu"], "--cpu belongs to sid-ray doctor --device"),
        (["digits-sid", "--device"], "leave the recipe and --deep out"),
        (["--device", "--seed", "1"], "takes no --seed"),
        (["--device", "--cpu", "--only", "zer"], "Did you mean zero?"),
    ],
)
def test_wrong_input_is_told_in_a_line(args, said, capsys):
    assert cli.exit_code_of(["doctor", *args]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_the_whole_on_a_cpu(tmp_path):
    """Nothing is wrong here, within its time; docs/doctor.md has a report of it."""
    done = subprocess.run(
        [sys.executable, "-m", "sid_ray.cli", "doctor", "--device", "--cpu", "--report", "out"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert values["complete"] and values["failed"] == 0 and values["seconds"] < 1800
    assert [check["name"] for check in values["checks"]] == [c.name for c in verify.DEVICE_CHECKS]
    assert all(check["rows"] for check in values["checks"])
    assert str(tmp_path) not in (tmp_path / "out" / "report.md").read_text()
