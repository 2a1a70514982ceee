"""PBT without Ray running: who takes whose state, what the ledger says, what is loaded."""

import itertools
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers import pbt as ray_pbt

from sid_ray.checkpoint.manifest import MANIFEST, SCHEMA, Manifest, checkpoint_name
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.notes import Notes
from sid_ray.sweep.runner import population_of
from sid_ray.sweep.schedulers import FACTORS, Pbt, explored, quantiles
from sid_ray.sweep.space import config_of
from sid_ray.sweep.trainable import Spec, SweepTask, TrialTrainable, keeping_for_others
from tests.sweep.ledgers import events
from tests.sweep.spaces import order_in, space_of

SCORE = "FD-digits-cnn"
TEXT = """\
metric: FD-digits-cnn
budget: {images: 640, interval: 128}
scheduler: pbt
trials: 4
fields:
  objective.alpha: {uniform: [0.6, 1.4]}
  training.generator_lr: {loguniform: [1e-5, 1e-3]}
"""


class FakeTrial:
    def __init__(self, config):
        self.trial_id, self.config, self.status = config["spec"]["trial"], config, "PENDING"

    def is_finished(self):
        return self.status == "TERMINATED"

    def set_config(self, config):
        self.config = config


class Controller:
    """Ray's, as far as a synchronous population needs it."""

    def __init__(self, order, scheduler):
        self.scheduler = scheduler
        self.notes = Notes(str(order.folder), order.space)
        grid = population_of(order)["spec"]["grid_search"]
        self.trials = [FakeTrial({"spec": spec, "folder": str(order.folder)}) for spec in grid]
        for trial in self.trials:
            scheduler.on_trial_add(self, trial)

    def get_trials(self):
        return self.trials

    def get_live_trials(self):
        return [trial for trial in self.trials if not trial.is_finished()]

    def step(self, seen, score):
        """Runs the trial that the scheduler chooses to ``seen`` images; None where it waits."""
        trial = self.scheduler.choose_trial_to_run(self)
        if trial is None:
            return None
        trial.status = "RUNNING"
        told = {"run": Spec.of(trial).run, "segment_seconds": 1.0, "ended": "", SCORE: score(trial)}
        result = {**told, "images_seen": seen}
        decision = self.scheduler.on_trial_result(self, trial, result)
        self.notes.on_trial_result(0, self.trials, trial, result)
        if decision == "PAUSE":
            trial.status = TuneTrial.PAUSED
        self.scheduler.choose_trial_to_run(self)  # Ray asks at every turn
        return trial


@pytest.fixture
def order(tmp_path):
    (tmp_path / "s").mkdir()
    return order_in(tmp_path, space_of("", TEXT), TEXT)


def controller_of(order):
    return Controller(order, Pbt(str(order.folder), order.space, order.base))


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
    own = {"run": "s-003", "images_seen": 96}  # of the leg before
    for pointer in (own, None):  # None: lost with the driver
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


def test_after_a_killed_driver_those_behind_come_up_first(order):
    """Two had told of 256 images when the driver died, two had not: equal ages are compared."""
    controller = controller_of(order)
    for _ in range(4):
        controller.step(128, number)
    for _ in range(2):
        controller.step(256, number)
    taken_up = controller_of(order)
    seen = [
        taken_up.step({128: 256, 256: 384}[Spec.of(t).reported], number) for t in taken_up.trials
    ]
    assert [trial.trial_id for trial in seen] == ["000", "001", "002", "003"]
    assert [taken_up.step(384, number).trial_id for _ in range(2)] == ["002", "003"]
    exploits = [event for event in events(order.folder) if event["event"] == "exploit"]
    assert [event["images_seen"] for event in exploits] == [128, 384]


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


# What is drawn ------------------------------------------------------------------------------------

FEW = settings(deadline=None, max_examples=50)
scores = st.lists(st.integers(0, 30) | st.just(float("nan")), min_size=1, max_size=12)


@FEW
@given(scores, st.sampled_from([0.1, 0.25, 0.4, 0.5]))
def test_quantiles_are_rays(values, share):
    names = [f"t{number}" for number in range(len(values))]
    rewards = {name: -float(value) for name, value in zip(names, values, strict=True)}
    scheduler = PopulationBasedTraining(
        metric="FID", mode="min", hyperparam_mutations={"alpha": [1, 2]}, quantile_fraction=share
    )
    for name, reward in rewards.items():
        trial = FakeTrial({"spec": {"trial": name}})
        scheduler._trial_state[trial] = SimpleNamespace(last_score=reward)
    theirs = [[trial.trial_id for trial in part] for part in scheduler._quantiles()]
    assert list(quantiles(rewards, share)) == theirs


MUTABLE = """
  objective.alpha: {uniform: [0.5, 1.5]}
  training.ema_half_life: {loguniform: [100, 9000]}
  training.group_size: {choice: [8, 16, 32]}
"""


@FEW
@given(st.integers(0, 2**32), st.floats(0.7, 1.2), st.integers(200, 7000), st.sampled_from([8, 32]))
def test_a_change_is_rays_where_nothing_leaves_its_range(seed, alpha, half_life, group):
    space = space_of(MUTABLE)
    point = {
        "objective.alpha": alpha, "training.ema_half_life": half_life, "training.group_size": group
    }  # fmt: skip
    ours = explored(space, point, random.Random(seed), resample=0.0)
    mutations = {**dict.fromkeys(point, tune.uniform(0, 1)), "training.group_size": [8, 16, 32]}
    random.seed(seed)
    theirs, _ = ray_pbt._explore(point, mutations, 0.0, FACTORS, None)
    assert ours == theirs


@FEW
@given(st.integers(0, 2**32), st.floats(0.5, 1.5))
def test_a_change_stays_in_its_range(seed, alpha):
    space = space_of(MUTABLE)
    point = {
        "objective.alpha": alpha, "training.ema_half_life": 9000, "training.group_size": 16
    }  # fmt: skip
    found = explored(space, point, random.Random(seed))
    assert list(found) == list(point)
    for parameter in space.parameters:
        assert parameter.domain.holds(found[parameter.name])
    assert isinstance(found["training.ema_half_life"], int)
