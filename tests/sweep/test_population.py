"""PBT and PB2 without Ray running: who takes whose state, what the ledger says, what is loaded."""

import itertools
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial as TuneTrial

from sid_ray.checkpoint.manifest import MANIFEST, SCHEMA, Manifest, checkpoint_name
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.population import OwnPb2, OwnPbt
from sid_ray.sweep.runner import population_of
from sid_ray.sweep.space import config_of
from sid_ray.sweep.trainable import Spec, SweepTask, TrialTrainable, keeping_for_others
from tests.sweep.ledgers import events
from tests.sweep.spaces import order_in, space_of

pytestmark = pytest.mark.filterwarnings("ignore:The optimal value found")  # of PB2's model
SCORE = "FD-digits-cnn"
TEXT = """\
metric: FD-digits-cnn
budget: {images: 640, interval: 128}
scheduler: %s
trials: 4
fields:
  objective.alpha: {uniform: [0.6, 1.4]}
  training.generator_lr: {loguniform: [1e-5, 1e-3]}
"""


class FakeTrial:
    def __init__(self, config):
        self.trial_id, self.config, self.status = config["spec"]["trial"], config, "PENDING"
        self.checkpoint = SimpleNamespace(of=self.trial_id)
        self.temporary_state = SimpleNamespace(saving_to=None)
        checkpoints = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.run_metadata = SimpleNamespace(checkpoint_manager=checkpoints)
        self.evaluated_params, self.last_result, self.experiment_tag = {}, {}, ""

    def is_finished(self):
        return self.status == "TERMINATED"

    def set_experiment_tag(self, tag):
        pass

    def set_config(self, config):
        self.config = config


class Controller:
    """Ray's, as far as a synchronous population needs it."""

    search_alg = None

    def __init__(self, order, scheduler):
        self.scheduler = scheduler
        grid = population_of(order)["spec"]["grid_search"]
        self.trials = [FakeTrial({"spec": spec, "folder": str(order.folder)}) for spec in grid]
        for trial in self.trials:
            scheduler.on_trial_add(self, trial)

    def get_trials(self):
        return self.trials

    def get_live_trials(self):
        return [trial for trial in self.trials if not trial.is_finished()]

    def pause_trial(self, trial, should_checkpoint):
        trial.status = TuneTrial.PAUSED

    def _schedule_trial_save(self, trial, result):
        return trial.checkpoint

    def step(self, seen, score):
        """Runs the trial that the scheduler chooses to ``seen`` images; None where it waits."""
        trial = self.scheduler.choose_trial_to_run(self)
        if trial is None:
            return None
        trial.status = "RUNNING"
        told = {"run": Spec.of(trial).run, "segment_seconds": 1.0, "ended": "", SCORE: score(trial)}
        trial.last_result = {**told, "images_seen": seen}
        decision = self.scheduler.on_trial_result(self, trial, trial.last_result)
        if decision == "PAUSE":
            trial.status = TuneTrial.PAUSED
        return trial


@pytest.fixture(params=["pbt", "pb2"])
def order(request, tmp_path):
    (tmp_path / "s").mkdir()
    text = TEXT % request.param
    return order_in(tmp_path, space_of("", text), text)


def controller_of(order):
    kind = OwnPbt if order.space.scheduler == "pbt" else OwnPb2
    return Controller(order, kind(str(order.folder), order.space, order.base))


def number(trial):
    return float(trial.trial_id)


def test_the_worst_takes_over_the_bests_state_with_a_point_of_its_own(order):
    controller = controller_of(order)
    for seen in (128, 256, 384):
        for _ in range(4):
            controller.step(seen, number)
    told = Ledger(order.folder).trials()
    assert [len(trial.legs) for trial in told.values()] == [1, 1, 1, 4]
    worst, best = told["003"], told["000"]
    assert [leg.run for leg in worst.legs] == ["s-003", "s-003-leg2", "s-003-leg3", "s-003-leg4"]
    assert [(leg.from_run, leg.began_at) for leg in worst.legs[1:]] == [
        ("s-000", 128),
        ("s-000", 256),
        ("s-000", 384),
    ]
    assert worst.images_spent == best.images_spent == 384
    for leg in worst.legs:
        config_of(order.space, order.base, leg.point)
        assert 0.6 <= leg.point["objective.alpha"] <= 1.4
        assert 1e-5 <= leg.point["training.generator_lr"] <= 1e-3
    if order.space.scheduler == "pbt":  # PB2's model begins with nothing to go by
        assert worst.point != best.point
    for trial in controller.trials:
        assert Spec.of(trial).trial == trial.trial_id
        assert Spec.of(trial).run == told[trial.trial_id].run
    images = [segment.images_seen for segment in worst.segments]
    assert images == [128, 256, 384]
    assert [segment.run for segment in worst.segments] == ["s-003", "s-003-leg2", "s-003-leg3"]


@pytest.mark.parametrize("at", range(4))
def test_one_that_ends_early_is_not_waited_for(order, at):
    """Ray's synchronous population would: it meets only where a last result comes in."""
    controller = controller_of(order)
    for place in itertools.count():
        if place == at:
            gone = controller.scheduler.choose_trial_to_run(controller)
            gone.status = "TERMINATED"  # it diverged
            continue
        if place == 4:
            break
        assert controller.step(128, number) is not None
    for seen in (256, 384):
        names = {controller.step(seen, number).trial_id for _ in range(3)}
        assert names == {t.trial_id for t in controller.get_live_trials()}
    exploits = [event for event in events(order.folder) if event["event"] == "exploit"]
    assert len(exploits) == 3
    assert [event["images_seen"] for event in exploits] == [128, 256, 384]


def trainable_of(order, spec):
    """As Ray makes one, without an actor."""
    made = TrialTrainable.__new__(TrialTrainable)
    SweepTask("s", order.text, "space", order.base.to_json(), 1, {}).write(order.folder)
    made.setup({"spec": spec._asdict(), "folder": str(order.folder)})
    return made


def checkpoint_in(run, images_seen):
    folder = run / checkpoint_name(images_seen, "a1")
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(Manifest(SCHEMA, images_seen, "{}", {}, {}).to_json())
    return str(folder)


def test_an_exploit_survives_its_actor_and_its_driver(order, tmp_path, monkeypatch):
    """Where the run has no checkpoint of its own yet it begins at the donor's, else at its own."""
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    point = {"objective.alpha": 1.0, "training.generator_lr": 1e-4}
    checkpoint_in(tmp_path / "s-000", 64)
    donors = checkpoint_in(tmp_path / "s-000", 128)
    checkpoint_in(tmp_path / "s-000", 192)  # the donor has gone on
    spec = Spec("003", "s-003-leg2", point, "s-000", 128, 128)
    for pointer in ({"images_seen": 128}, None):  # the donor's; lost with the driver
        taker = trainable_of(order, spec)
        taker.load_checkpoint(pointer)
        assert (taker.trial.began_from, taker.trial.images_seen) == (donors, 128)
        assert taker.reported == 128
    checkpoint_in(tmp_path / "s-003-leg2", 256)
    taker.reported = 256
    pointer = taker.save_checkpoint("")
    later = trainable_of(order, spec)
    later.load_checkpoint(pointer)
    assert (later.trial.began_from, later.trial.images_seen, later.reported) == ("", 256, 256)
    other = Spec("002", "s-002", point)
    assert later.reset_config({"spec": other._asdict(), "folder": str(order.folder)})
    assert (later.trial.name, later.trial.images_seen, later.reported) == ("s-002", 0, 0)
    with pytest.raises(FileNotFoundError, match="no checkpoint at 320 images any more"):
        trainable_of(order, Spec("002", "s-002-leg2", point, "s-000", 320, 320))


def test_a_population_taken_up_again_meets_once_at_a_place(order):
    controller = controller_of(order)
    for _ in range(4):
        controller.step(128, number)
    before = Ledger(order.folder).trials()
    taken_up = controller_of(order)
    specs = [Spec.of(trial) for trial in taken_up.trials]
    assert [spec.run for spec in specs] == [trial.run for trial in before.values()]
    assert [spec.reported for spec in specs] == [128] * 4
    assert specs[3][3:5] == ("s-000", 128)
    for seen in (256, 384):
        for _ in range(4):
            taken_up.step(seen, number)
    assert len(Ledger(order.folder).trials()["003"].legs) == 4


def test_a_donor_keeps_its_checkpoints_for_two_intervals(order):
    base = keeping_for_others(order.base, order.space.budget)
    assert base.output.keep_checkpoints >= order.base.output.keep_checkpoints
    often = keeping_for_others(
        type(base).from_json(
            order.base.to_json().replace('"checkpoint_every": 2500', '"checkpoint_every": 32')
        ),
        order.space.budget,
    )
    assert often.output.keep_checkpoints == 2 * (128 // 32 + 1)
