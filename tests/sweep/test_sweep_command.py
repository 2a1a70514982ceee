"""sid-ray sweep as a person sees it; the sweep itself is a stand-in."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sid_ray.cli import main
from sid_ray.commands.arguments import with_flags
from sid_ray.console import Console
from sid_ray.ray_setup.environment import ENDINGS
from sid_ray.sweep import command, runner
from sid_ray.sweep.display import SweepDisplay, table_of_trials
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.results import read_about
from sid_ray.sweep.stop import STOPS, end_trials, running, stopping_in_order
from tests.sweep.spaces import space_of

SPACE = """\
recipe: digits-sida
metric: FD-digits-cnn
budget: {images: 6400}
trials: 3
fields:
  objective.alpha: {uniform: [0.6, 1.4]}
  evaluation.num_images: 128
"""


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SPACE)
    return str(path)


def run(capfd, *args):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *args])
    out, err = capfd.readouterr()
    return stop.value.code, out, err


WRONG = [
    (["none.yaml"], "none.yaml: No such file"),
    ([], "usage: sid-ray sweep"),
    (["--trials", "4"], "name a search space first"),
    (["SPACE", "--trials", "none"], "--trials 'none': expected a whole number"),
    (["SPACE", "--trials"], "--trials without a value"),
    (["SPACE", "--name", "a/b"], "--name 'a/b': it must be a plain folder name"),
    (["SPACE", "--recipe", "digits-sidda"], "Did you mean digits-sida"),
    (["SPACE", "--alpha", "1"], "small.yaml:6 sets objective.alpha; change it there"),
    (["SPACE", "--eval.num-images=64"], "small.yaml:7 sets evaluation.num_images"),
    (["SPACE", "--images", "64"], "a sweep sets it; use budget.images"),
    (["SPACE", "--seed", "1"], "use seeds:"),
    (["SPACE", "--run", "x"], "use --name"),
    (["SPACE", "--evaluation.evry", "1"], "Did you mean evaluation.every"),
    (["SPACE", "--evaluation.every", "0"], "have no scores"),
    (["SPACE", "--evaluation.feature-space", "lite0"], "measured in digits-cnn"),
]


@pytest.mark.parametrize(("args", "words"), WRONG)
def test_wrong_input_is_one_line_before_anything_starts(capfd, tmp_path, space, args, words):
    args = [space if arg == "SPACE" else arg for arg in args]
    folder = tmp_path / "runs"
    code, out, err = run(capfd, *args, *(["--output.folder", str(folder)] if args[1:] else []))
    if not args:
        assert (code, words in out) == (0, True)
        return
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not folder.exists()


class Stand:
    """In the place of run_sweep: what trials tell, and whether Ctrl-C ends it."""

    def __init__(self, monkeypatch):
        self.orders, self.done = [], True
        monkeypatch.setattr(runner, "run_sweep", self)
        monkeypatch.setattr(command, "check_trial", lambda order: None)

    def __call__(self, order, watch):
        self.orders.append(order)
        ledger = Ledger(order.folder)
        for number in range(order.space.trials if self.done else 1):
            name, run = f"{number:03}", f"{order.name}-{number:03}"
            ledger.begin(name, run, {"objective.alpha": 1.0 + number / 10})
            ledger.segment(name, run, 6400, {"FD-digits-cnn": 5.0 + number}, 1.0)
            watch.tell(f"{name}: told")
            watch.show()
            if self.done:
                ledger.end(name, "finished", "", 6400)
        return self.done


def test_a_sweep_stopped_goes_on_and_ends(capfd, tmp_path, space, monkeypatch):
    stand = Stand(monkeypatch)
    runs = ["--output.folder", str(tmp_path / "runs")]
    stand.done = False
    code, out, _ = run(capfd, space, *runs)
    assert code == 130
    assert "the same command goes on" in out
    folder = tmp_path / "runs" / "small"
    assert read_about(folder)["state"] == "stopped"
    started = read_about(folder)["started"]

    for more, words in (
        (["--trials", "7"], "exists with another space or number of trials"),
        (["--training.batch-size", "32"], "training.batch_size: 64 -> 32"),
    ):
        code, _, err = run(capfd, space, *runs, *more)
        assert (code, words in err) == (2, True)
    stand.done = True
    code, out, _ = run(capfd, space, *runs)
    assert code == 0
    assert "3 trials (3 finished), 19,200 images" in out
    first = out.index("small-000  finished at 6,400 images  FD-digits-cnn 5.00")
    assert first < out.index("small-002  finished")
    known = read_about(folder)
    assert (known["state"], known["started"]) == ("finished", started)
    assert known["metrics"] == [{"name": "FD-digits-cnn", "direction": "min"}]
    code, again, _ = run(capfd, space, *runs)  # nothing to do
    assert (code, len(stand.orders)) == (0, 2)
    assert again in out


def test_what_was_asked_for(tmp_path, space):
    args = [
        space, "--trials", "9", "--name=other", "--concurrent", "2", "--recipe", "digits-sid",
        "--resources.threads", "2", "--output.folder", str(tmp_path),
    ]  # fmt: skip
    order = command.order_of(*with_flags(command.SweepOptions, args, "sid-ray sweep"))
    assert (order.name, order.space.trials, order.concurrent) == ("other", 9, 2)
    assert (order.base.recipe, order.base.resources.threads) == ("digits-sid", 2)
    assert order.folder == tmp_path / "other"
    assert "trials: 9" in order.text
    assert order.space.lines["fields"] == 5


def test_progress_and_table(tmp_path):
    space = space_of(
        "  objective.alpha: {uniform: [0.6, 1.4]}\n",
        "metric: [FID, CLIP]\nbudget: {images: 900}\ntrials: 4\nfields:\n",
    )
    ledger = Ledger(tmp_path)
    display = SweepDisplay(Console(file=io.StringIO()), space, tmp_path, 3600, 4)
    told = {"a": ("finished", 900, 9.0, 0.3), "b": ("running", 100, 5.0, 0.2)}
    for name, (state, images, fid, clip) in told.items():
        ledger.begin(name, f"s-{name}", {"objective.alpha": 1.0})
        ledger.segment(name, f"s-{name}", images, {"FID": fid, "CLIP": clip}, 1.0)
        if state != "running":
            ledger.end(name, state, "", images)
    ledger.begin("c", "s-c", {"objective.alpha": 1.25})
    ledger.end("c", "diverged", "the loss grew", 320)
    text = display.describe({"images_seen": 0})
    assert text.startswith("1 running, 2 of 4 done  FID 9.00, CLIP 0.3 (a)  1,320/3,600 images  ")
    assert text.endswith(" left")
    lines = table_of_trials(space, list(ledger.trials().values()))
    assert lines[0] == "s-a  finished at 900 images  FID 9.00, CLIP 0.3  alpha 1"
    assert lines[2].endswith("no score  alpha 1.25; the loss grew")
    assert lines[3] == "3 trials (1 finished, 1 diverged, 1 running), 1,320 images"
    assert lines[4] == "Pareto front: s-a"
    assert display.lines == []
    with ledger.path.open("a") as file:
        file.write("damaged\n")
    display = SweepDisplay(Console(file=io.StringIO()), space, tmp_path, 3600, 4)
    assert display.lines == ["trials.jsonl: 1 line left out: not an event of a trial"]


CHILD = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep({seconds}), exit()))
print(1, flush=True)
time.sleep(60)
"""


def child(folder, name, seconds="0.3"):
    """A trial's process that takes a while to end, with its note."""
    code = CHILD.format(seconds=seconds)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    (folder / "processes").mkdir(exist_ok=True)
    (folder / "processes" / name).write_text(str(process.pid))
    threading.Thread(target=process.wait, daemon=True).start()  # as its actor does
    return process


@pytest.mark.parametrize("sent", [signal.SIGINT, *ENDINGS])
def test_ctrl_c_ends_the_trials_first_and_tune_behind_them(tmp_path, sent):
    handler = signal.getsignal(signal.SIGTERM)
    heard, lines = [], []
    with stopping_in_order(tmp_path, lines.append) as stopped:
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(running(tmp_path)))  # Tune's
        STOPS[str(tmp_path)].listen()  # as at each of Tune's steps
        processes = [child(tmp_path, "s-000"), child(tmp_path, "s-001")]
        (tmp_path / "processes" / "gone").write_text("999999999")
        assert len(running(tmp_path)) == 2
        os.kill(os.getpid(), sent)
        time.sleep(0.01)
        assert stopped
        assert heard == [[]], "Tune hears of it when no process is left"
        assert len(lines) == 1
        os.kill(os.getpid(), signal.SIGHUP)  # a closed terminal is told twice
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert all(process.wait(5) == 0 for process in processes)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_ctrl_c_before_tune_listens(tmp_path):
    with pytest.raises(KeyboardInterrupt), stopping_in_order(tmp_path, print):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_one_that_does_not_end_is_not_waited_for_for_ever(tmp_path):
    process = child(tmp_path, "s-000", "60")
    began = time.monotonic()
    end_trials(tmp_path, 0.2)
    assert time.monotonic() - began < 30
    process.kill()


def test_the_entry_script_is_the_command():
    script = Path(__file__).parents[2] / "tune_sid.py"
    done = subprocess.run(
        [sys.executable, str(script), "--trials", "-1"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--trials is -1" in done.stderr


def test_events_are_json_lines(tmp_path):
    Ledger(tmp_path).begin("000", "s-000", {"objective.alpha": 1.0})
    (line,) = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "event": "begin", "trial": "000", "run": "s-000", "point": {"objective.alpha": 1.0},
    }  # fmt: skip
