"""What the lines of a ledger mean, and that damaged ones cost only themselves."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.sweep.results import read_sweep
from sid_ray.sweep.space import Metric
from sid_ray.sweep.trials import TRIALS, read_trials, told_by
from tests.support.sweeps import trials_of
from tests.sweep.ledgers import PBT, Ledger, asha_ledger, pbt_ledger

FD = "FD-digits-cnn"


def test_a_segment_that_ended_before_its_exploit_was_told_is_the_old_runs():
    """Ray decides on an exploit before the callback hears of the segment."""
    events = [
        {"event": "begin", "trial": "0", "run": "a", "point": {}},
        {"event": "exploit", "trial": "0", "from_trial": "1", "from_run": "b",
         "images_seen": 100, "run": "a-leg2", "point": {}},
        {"event": "segment", "trial": "0", "run": "a", "images_seen": 100, "scores": {}},
        {"event": "segment", "trial": "0", "run": "a-leg2", "images_seen": 150, "scores": {}},
    ]  # fmt: skip
    (trial,) = trials_of(events).values()
    assert [leg.images_seen for leg in trial.legs] == [100, 150]
    assert trial.images_spent == 150


def test_what_cannot_be_read_is_left_out_with_a_word(tmp_path):
    ledger = asha_ledger(tmp_path / "made", trials=2)
    whole = read_sweep(ledger.folder)
    ledger.tell("future", "00000", what=1)
    ledger.tell("future", "00001", what=1)
    ledger.tell("segment", "00009", images_seen=1)
    ledger.segment("00009", 1_600, FD_digits_cnn=1.0)  # its begin is not there
    ledger.tell("segment", "00001", images_seen=float("inf"), scores={})
    ledger.end("00001", "asleep", 1_600)
    with (ledger.folder / "trials.jsonl").open("a") as file:
        file.write('[1]\n\n{"event": "segment", "tri')
    sweep = read_sweep(ledger.folder)
    assert sweep.trials == whole.trials
    notes = " ".join(sweep.notes)
    assert "last line is cut" in notes and "2 lines left out: unknown event 'future'" in notes
    assert "event segment without what it needs" in notes and "2 lines left out: not an" in notes
    assert "(the begin of trial 00009)" in notes and "(state asleep)" in notes
    assert sweep.events == whole.events + 8


def test_a_repeated_segment_counts_once_and_images_never_twice(tmp_path):
    ledger = Ledger(tmp_path / "made", PBT, "running")
    ledger.begin("a", {"objective.alpha": 1.0})
    ledger.segment("a", 3_200, 10, FD_digits_cnn=4.0)
    ledger.end("a", "lost", 3_200, "the driver died")
    ledger.begin("a", {"objective.alpha": 1.0})  # the next driver goes on with it
    ledger.segment("a", 3_200, 5, FD_digits_cnn=4.5)
    ledger.segment("a", 6_400, 10, FD_digits_cnn=1e9)
    trial = read_sweep(ledger.folder).trials["a"]
    assert (trial.state, trial.images_spent, trial.seconds) == ("running", 6_400, 25)
    assert trial.scored(FD) == [(3_200, 4.5)]  # what a trial that gave up reports is no score
    ledger.end("a", "diverged", 7_000)
    trial = read_sweep(ledger.folder).trials["a"]
    assert (trial.images_spent, trial.last(FD), trial.best(Metric(FD, "min"))) == (
        7_000,
        None,
        (4.5, 3_200),
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_line_costs_what_it_said(tmp_path_factory, data):
    """Whatever stands there instead; and where a trial's begin is lost, all of that trial."""
    folder = tmp_path_factory.mktemp("sweep") / "made"
    pbt_ledger(folder)
    whole = (folder / TRIALS).read_bytes().splitlines(keepends=True)
    place = data.draw(st.integers(0, len(whole) - 1))
    damage = st.binary(max_size=40) | st.integers(1, 40).map(lambda n: whole[place][:n])
    damaged = data.draw(damage).replace(b"\n", b"") + b"\n"
    (folder / TRIALS).write_bytes(b"".join([*whole[:place], damaged, *whole[place + 1 :]]))
    told, without = read_trials(folder), told_by(b"".join(whole[:place] + whole[place + 1 :]))
    assert told.trials == without.trials
    assert len(told.notes) == len(without.notes) + 1 and told.lines == len(whole)
    lost = json.loads(whole[place])
    gone = {lost["trial"]} if lost["event"] == "begin" else set()
    assert set(told.trials) == set("abcd") - gone
