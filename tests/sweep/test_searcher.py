"""Which point is next, without Ray running: budgets, places, and trials that Tune forgot."""

import pickle

from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.notes import WATCHES, Watch, watch_of
from sid_ray.sweep.searcher import LedgerSearch
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
    WATCHES[str(folder / "s")] = Watch(concurrent=concurrent)
    return LedgerSearch(order_in(folder, space_of(fields, head)))


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


def test_a_trial_that_tune_forgot_is_handed_out_again_under_its_name(tmp_path):
    """Killed between the ledger's line and Tune's notes: its run goes on."""
    search = search_in(tmp_path, "optuna", concurrent=2)
    first = search.suggest("a")["spec"]
    saved = tmp_path / "searcher"
    search.save(str(saved))
    pickled = pickle.dumps(search)
    second = search.suggest("b")["spec"]
    again = pickle.loads(pickled)
    again.restore(str(saved))
    watch_of(str(tmp_path / "s")).known = {first["trial"]}  # what Tune has
    assert again.suggest("c")["spec"] == second
    assert again.suggest("d") is None
    assert list(Ledger(tmp_path / "s").trials()) == ["000", "001"]
