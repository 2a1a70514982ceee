"""What ends a command: a closed terminal, SIGTERM, SLURM's SIGUSR1; and output that is gone."""

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from sid_ray.cli import main
from sid_ray.console import quiet_output
from sid_ray.ray_setup import environment
from sid_ray.ray_setup.environment import ENDINGS, Interrupt, stopping_like_ctrl_c, unheard
from tests.support.checkpoints import newest_whole, read_manifest
from tests.support.distill_runs import command


@pytest.fixture(autouse=True)
def asked_for_nothing_yet(monkeypatch):
    monkeypatch.setattr(environment, "INTERRUPT", Interrupt())


@pytest.mark.parametrize("number", ENDINGS)
def test_all_that_ends_a_command_is_ctrl_c_and_names_itself(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=number.name), stopping_like_ctrl_c():
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert signal.getsignal(number) is before


def test_told_twice_is_told_once_but_ctrl_c_always_leaves():
    with stopping_like_ctrl_c():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGHUP)  # by the kernel, behind the shell
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        environment.INTERRUPT.asked_at -= environment.SAME_S
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)


def test_what_nohup_has_switched_off_stays_off():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_like_ctrl_c():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_one_of_rays_has_started_hears_again():
    """As a sweep's trial: masks are inherited."""
    with unheard(), pytest.raises(KeyboardInterrupt), stopping_like_ctrl_c():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1)


def test_processes_of_ray_do_not_hear_of_a_closed_terminal():
    code = "import time; print(1, flush=True); time.sleep(60)"
    with unheard():
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    for number in (signal.SIGHUP, signal.SIGUSR1):
        child.send_signal(number)
    time.sleep(0.1)
    assert child.poll() is None
    child.terminate()
    assert child.wait(10) == -signal.SIGTERM
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGHUP, signal.SIGUSR1}


LONG = """
import os, signal, sys, time
from sid_ray import cli
def work(args):
    try:
        print("working", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.2)
        print("saved", flush=True)
        open(args[0], "w").write("saved")
        raise
cli.COMMANDS["work"] = work
cli.main(["work", sys.argv[1]])
"""


def test_a_command_whose_terminal_is_closed_saves(tmp_path):
    saved = tmp_path / "saved"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", LONG, str(saved)])
    assert b"working" in os.read(terminal, 100)
    os.close(terminal)  # the kernel sends SIGHUP; every write to it is an error from now on
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert saved.read_text() == "saved"


def test_lines_of_a_run_whose_terminal_is_gone_are_in_its_log(tmp_path):
    terminal, end = pty.openpty()
    saved, log = os.dup(1), tmp_path / "log.txt"
    os.dup2(end, 1)
    os.close(end)
    try:
        with quiet_output(log) as console:
            console.print("before")
            assert b"before" in os.read(terminal, 100)
            os.close(terminal)
            console.print("stopping")
            console.print("stopped")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert log.read_text() == "stopping\nstopped\n"


def test_a_run_outlives_the_reader_of_its_output(tmp_path):
    reader, writer = os.pipe()
    saved, log = os.dup(1), tmp_path / "log.txt"
    os.dup2(writer, 1)
    os.close(writer)
    try:
        with quiet_output(log) as console:
            os.close(reader)
            for number in range(3):
                console.print(f"line {number}")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert log.read_text() == "line 0\nline 1\nline 2\n"


def failing(monkeypatch, error):
    def command(args):
        raise error

    monkeypatch.setattr("sid_ray.cli.COMMANDS", {"fail": command})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on de"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "change its permissions"),
        (OSError("a library's own words\nin lines"), r"a library's own words\nin lines"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_an_error_of_the_machine_is_one_line(monkeypatch, capsys, error, words):
    failing(monkeypatch, error)
    with pytest.raises(SystemExit, match="1"):
        main(["fail"])
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    failing(monkeypatch, AssertionError("a bug"))
    with pytest.raises(AssertionError, match="a bug"):
        main(["fail"])


def test_where_an_error_came_from_is_shown_on_request(monkeypatch, capsys):
    monkeypatch.setenv("SID_RAY_TRACEBACK", "1")
    failing(monkeypatch, OSError(errno.EIO, "lost", "/x"))
    with pytest.raises(SystemExit, match="1"):
        main(["fail"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminal", "SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_run_ends_with_all_that_it_has_seen(tmp_path, how):
    """As a person's shell, `timeout` or SLURM's step ends it: all processes of the session hear."""
    run = tmp_path / "a"
    more = ("--evaluation.every", "0", "--workers", "1", "--output.checkpoint-every", "1000000")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command(tmp_path, "a", 100_000_000, *more))
    said = b""
    while b"/100,000,000 images" not in said:
        said += os.read(terminal, 1000)
    if how == "terminal":
        os.close(terminal)
    else:
        os.killpg(pid, getattr(signal, how))
        with pytest.raises(OSError):
            while True:
                said += os.read(terminal, 1000)
        assert b"stopped; checkpoint at" in said
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    log = (run / "log.txt").read_text()
    assert how != "terminal" or "stopped; checkpoint at" in log
    seen = read_manifest(newest_whole(run)[0]).images_seen
    lines = (run / "tracking.jsonl").read_text().splitlines()
    told = [line[2] for line in map(json.loads, lines) if line and isinstance(line, list)]
    reported = max(one["step"] for one in told if "step" in one)
    assert told[-1] == {"status": "KILLED"}
    assert seen >= reported > 0
