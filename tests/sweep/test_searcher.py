"""Which point is next, without Ray running: budgets, places, and trials that Tune forgot."""

import dataclasses

import pytest

from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.searcher import LedgerSearch, again
from sid_ray.sweep.trainable import Spec
from tests.sweep.spaces import order_in, space_of

ALPHA = "  objective.alpha: {uniform: [0.6, 1.4]}\n"
HEAD = """\
metric: FD-digits-cnn
budget: {{images: 6400, total: {total}}}
trials: 4
searcher: {searcher}
fields:
"""


def search_in(folder, searcher="random", total=999_999, concurrent=1, fields=ALPHA):
    head = HEAD.format(searcher=searcher, total=total)
    if searcher == "grid":
        head = head.replace("trials: 4\n", "\n")
    (folder / "s").mkdir(exist_ok=True)
    order = order_in(folder, space_of(fields, head))
    return LedgerSearch(dataclasses.replace(order, concurrent=concurrent))


def ran(folder, spec, images=6400):
    ledger = Ledger(folder / "s")
    ledger.segment(spec["trial"], spec["run"], images, {"FD-digits-cnn": 5.0}, 1.0)
    ledger.end(spec["trial"], "finished", "", images)


def test_places_and_the_end(tmp_path):
    search = search_in(tmp_path, concurrent=2)
    first, second = search.suggest("x")["spec"], search.suggest("y")["spec"]
    assert (first["trial"], first["run"], second["run"]) == ("000", "s-000", "s-001")
    assert first["point"] != second["point"]
    assert search.suggest("z") is None  # two places
    ran(tmp_path, first)
    third = search.suggest("z")["spec"]
    assert third["trial"] == "002"
    ran(tmp_path, second)
    ran(tmp_path, third)
    ran(tmp_path, search.suggest("w")["spec"])
    assert search.suggest("v") == "FINISHED"
    assert Ledger(tmp_path / "s").trials()["000"].point == first["point"]


def test_the_total_ends_a_sweep(tmp_path):
    search = search_in(tmp_path, total=12_000)
    for _ in range(2):
        ran(tmp_path, search.suggest("x")["spec"])
    assert search.suggest("x") == "FINISHED"


def test_a_grid_is_tried_once(tmp_path):
    search = search_in(tmp_path, "grid", fields="  objective.alpha: {grid: [0.8, 1.0, 1.2]}\n")
    found = []
    while (told := search.suggest("x")) != "FINISHED":
        found.append(told["spec"]["point"]["objective.alpha"])
        ran(tmp_path, told["spec"])
    assert found == [0.8, 1.0, 1.2]


def test_a_new_driver_hands_out_what_has_not_ended(tmp_path):
    """Under the same names and points, and before anything new."""
    search = search_in(tmp_path, "optuna", concurrent=3)
    specs = [search.suggest("x")["spec"] for _ in range(3)]
    ran(tmp_path, specs[0])
    Ledger(tmp_path / "s").end("002", "failed", "its node went", 64)
    Ledger(tmp_path / "s").segment("001", "s-001", 640, {"FD-digits-cnn": 5.0}, 1.0)
    later = search_in(tmp_path, "optuna", concurrent=2)
    assert [later.suggest("y")["spec"] for _ in range(2)] == specs[1:]
    assert later.suggest("y") is None
    ran(tmp_path, specs[1])
    assert later.suggest("y")["spec"]["trial"] == "003"
    assert list(Ledger(tmp_path / "s").trials()) == ["000", "001", "002", "003"]


@pytest.mark.parametrize("searcher", ["random", "grid"])
def test_a_trial_whose_begin_is_lost_begins_again_under_its_name(tmp_path, searcher):
    """Of a damaged line: the number is free, and its point is the same."""
    fields = "  objective.alpha: {grid: [0.8, 1.0, 1.2]}\n" if searcher == "grid" else ALPHA
    search = search_in(tmp_path, searcher, fields=fields)
    specs = []
    for _ in range(3):
        specs.append(search.suggest("x")["spec"])
        ran(tmp_path, specs[-1])
    path = tmp_path / "s" / "trials.jsonl"
    damaged = [line for line in path.read_text().splitlines() if '"001"' not in line]
    path.write_text("\n".join([*damaged, "\0\0\0", ""]))
    later = search_in(tmp_path, searcher, fields=fields)
    assert later.suggest("y")["spec"] == specs[1]


def test_an_exploited_trial_goes_on_in_its_leg(tmp_path):
    search = search_in(tmp_path)
    search.suggest("x")
    ledger = Ledger(tmp_path / "s")
    ledger.begin("001", "s-001", {})
    ledger.exploit("000", ledger.trials()["001"], 128, "s-000-leg2", {"objective.alpha": 1.1})
    trial = ledger.trials()["000"]
    pbt = dataclasses.replace(search.order.space, scheduler="pbt")
    assert again(pbt, trial) == Spec(
        "000", "s-000-leg2", {"objective.alpha": 1.1}, "s-001", 128, 128
    )
