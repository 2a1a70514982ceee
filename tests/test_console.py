"""Quiet output: libraries go to the log, the display to the person."""

import io
import subprocess
import sys

from rich.console import Console

from sid_ray.console import Display, duration

PROGRAM = """
import os, sys, pathlib, warnings
from sid_ray.console import quiet_output
print("before")
with quiet_output(pathlib.Path(sys.argv[1])) as console:
    print("library print")
    os.write(2, b"from C\\n")
    warnings.warn("a warning")
    console.print("for you")
print("after")
"""


def test_only_our_console_reaches_the_terminal(tmp_path):
    log = tmp_path / "log.txt"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(log)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["before", "for you", "after", ""]
    assert done.stderr == ""
    text = log.read_text()
    assert "library print" in text
    assert "from C" in text
    assert "a warning" in text


def test_durations_read_like_a_clock():
    assert duration(5) == "0:05"
    assert duration(101.7) == "1:41"
    assert duration(7389) == "2:03:09"


def test_lines_are_few_where_there_is_no_terminal():
    page = io.StringIO()
    metrics = {"images_seen": 100, "images_per_s": 50.0, "fake_loss": 1.234, "generator_loss": -2.5}
    with Display(Console(file=page, width=200), total_images=1000) as display:
        display.update("training", metrics, ["resumed at 50 images"])
        for seen in range(101, 200):
            display.update("training", metrics | {"images_seen": seen}, [])
        display.update("training", metrics | {"images_seen": 1000, "eval/FD-digits-cnn": 3.5}, [])
    assert page.getvalue().splitlines() == [
        "resumed at 50 images",
        "training: 100/1,000 images  50/s  fake 1.23  gen -2.50  0:18 left",
        "training: 1,000/1,000 images  50/s  fake 1.23  gen -2.50  FD 3.50",
    ]


def test_one_frechet_distance_is_shown_by_its_name():
    display = Display(Console(file=io.StringIO()), total_images=1)
    for scores, shown in (
        ({"eval/IS": 9.0, "eval/FID": 2.31, "eval/FD-Lite0": 8.0}, "1/1 images  0/s  FID 2.31"),
        ({"best/FD-Lite0": 8.0, "eval/IS": 9.0}, "1/1 images  0/s"),
        ({"eval/FD-Lite0": 9.806}, "1/1 images  0/s  FD 9.81"),
    ):
        assert display.describe({"images_seen": 1, **scores}) == shown


def test_brackets_of_an_error_are_not_markup():
    page = io.StringIO()
    with Display(Console(file=page, width=200), total_images=1000) as display:
        display.update("restarting", {}, ["worker 0 failed: [/gloo/pair.cc:553] [bold]lost"])
    assert "worker 0 failed: [/gloo/pair.cc:553] [bold]lost" in page.getvalue()


def test_a_live_display_does_not_fetch_prints_back_to_the_terminal(capsys):
    page = io.StringIO()
    terminal = Console(file=page, width=100, force_terminal=True)
    with Display(terminal, total_images=1000) as display:
        display.update("training", {"images_seen": 500, "images_per_s": 50.0}, ["an event"])
        print("a library prints")
        display.progress.refresh()
    assert "500/1,000 images" in page.getvalue()
    assert "an event" in page.getvalue()
    assert "a library prints" not in page.getvalue()
    assert capsys.readouterr().out == "a library prints\n"
