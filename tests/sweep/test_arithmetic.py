"""When trials stop or change, against Ray Tune's own schedulers, which are driven without Ray."""

import random
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining
from ray.tune.schedulers import pbt as ray_pbt

from sid_ray.sweep import arithmetic
from sid_ray.sweep.arithmetic import (
    Asha,
    cost,
    decision_points,
    explored,
    may_begin,
    next_point,
    percentile,
    perturbation_due,
    quantiles,
    rungs,
    segment_end,
    spent,
    whole_interval,
    worst,
)
from sid_ray.sweep.sampling import mutations
from sid_ray.sweep.space import Budget, Metric
from tests.sweep.spaces import space_of

FID = Metric("FID", "min")
FEW = settings(deadline=None, max_examples=50)


def ray_asha(budget: Budget, metric: Metric) -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="images_seen",
        metric=metric.name,
        mode=metric.direction,
        max_t=budget.images,
        grace_period=budget.grace,
        reduction_factor=budget.reduction,
    )


@FEW
@given(
    st.integers(1, 10_000),
    st.integers(1, 10_000_000),
    st.sampled_from([1.5, 2.0, 3.0, 4.0, 10.0]),
)
def test_rungs_are_rays(grace, more, reduction):
    budget = Budget(grace + more, grace, reduction)
    bracket = ray_asha(budget, FID)._brackets[0]
    assert list(rungs(grace, budget.images, reduction)) == [
        milestone for milestone, _ in reversed(bracket._rungs)
    ]


def test_rungs_by_hand():
    assert rungs(1667, 15_000, 3.0) == (1667, 5001)
    assert rungs(1666, 15_000, 3.0) == (1666, 4998, 14_994)
    assert rungs(1, 1000, 10.0) == (1, 10, 100)  # Ray's rounding: 1000 is missing


events = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 400), st.floats(-50, 50) | st.just(1e9)),
    max_size=60,
)


@FEW
@given(events, st.sampled_from([2.0, 3.0, 4.0]), st.sampled_from(["min", "max"]))
def test_asha_decides_as_ray_does(steps, reduction, direction):
    """Trials report at images of their own, jumping over rungs, coming back after their stop."""
    budget, metric = Budget(1000, 50, reduction), Metric("score", direction)
    ours, theirs = Asha(budget, metric), ray_asha(budget, metric)
    trials = {str(n): SimpleNamespace(trial_id=str(n)) for n in range(6)}
    for trial in trials.values():
        theirs.on_trial_add(None, trial)
    seen = dict.fromkeys(trials, 0)
    for number, images, score in steps:
        name = str(number)
        seen[name] += images
        result = {"images_seen": seen[name], "score": score}
        assert ours.decide(name, seen[name], score) == theirs.on_trial_result(
            None, trials[name], result
        )


def test_asha_by_hand():
    asha = Asha(Budget(900, 100, 3.0), FID)
    assert [asha.decide(name, 100, score) for name, score in
            [("a", 5.0), ("b", 9.0), ("c", 4.0), ("d", 4.8)]] == [
        "CONTINUE",  # the first always goes on
        "STOP",  # worse than the only one there
        "CONTINUE",
        "STOP",  # the best third of 4, 5 and 9 ends at 4.67
    ]  # fmt: skip
    assert asha.decide("a", 300, 5.0) == "CONTINUE"
    assert asha.decide("c", 300, worst(FID)) == "STOP"
    assert asha.decide("a", 900, 1.0) == "STOP"  # its end


@FEW
@given(st.lists(st.floats(-1e9, 1e9) | st.just(float("nan")), min_size=1), st.floats(0, 1))
def test_percentile_is_numpys(values, share):
    with np.errstate(all="ignore"):
        expected = np.nanpercentile(values, share * 100) if not all(np.isnan(values)) else np.nan
    assert percentile(values, share) == pytest.approx(expected, rel=1e-9, abs=1e-6, nan_ok=True)


def test_trials_are_judged_at_whole_batches():
    budget = Budget(15_000, 1_666, 3.0)
    assert decision_points(budget, "asha", 64) == (1728, 5056, 15_040)  # 14,994 is its end
    assert decision_points(budget, "asha") == (1666, 4998, 14_994, 15_000)
    assert decision_points(Budget(1000), "none", 64) == (1024,)
    assert decision_points(Budget(1000, interval=300), "pbt", 64) == (320, 640, 960, 1024)
    points = (1728, 5056, 15_040)
    assert [next_point(points, n) for n in (0, 1728, 5100, 15_040)] == [1728, 5056, 15_040, None]


def test_a_segment_ends_at_the_next_decision_that_is_not_told():
    points = (1728, 5056, 15_040)
    cases = {(0, 0): 1728, (640, 0): 1728, (1728, 0): 1728, (1728, 1728): 5056,
             (2560, 1728): 5056, (5056, 1728): 5056, (15_040, 15_040): 15_040}  # fmt: skip
    assert {case: segment_end(points, *case) for case in cases} == cases


@FEW
@given(st.integers(1, 500), st.integers(1, 5000), st.integers(1, 256))
def test_every_point_of_a_population_is_due(interval, more, batch):
    """Rounded to whole batches one by one, the second would come too early for Ray."""
    budget = Budget(interval + more, interval=interval)
    points = decision_points(budget, "pbt", batch)
    given_to_ray = Budget(budget.images, interval=whole_interval(budget, batch))
    changed_at = 0
    for point in points[:-1]:
        assert perturbation_due(point, changed_at, given_to_ray)
        changed_at = point


class FakeTrial:
    status, experiment_tag = "RUNNING", ""

    def __init__(self, name, checkpoints):
        self.trial_id, self.config = name, {}
        self.run_metadata = SimpleNamespace(checkpoint_manager=checkpoints)

    def is_finished(self):
        return False


class Population:
    """What Ray's PBT asks of its controller and trials."""

    search_alg = None

    def __init__(self, names):
        checkpoints = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.trials = [FakeTrial(name, checkpoints) for name in names]

    def get_trials(self):
        return self.trials

    def _schedule_trial_save(self, trial, result):
        return SimpleNamespace()


def ray_population(names, **options):
    population = Population(names)
    scheduler = PopulationBasedTraining(
        time_attr="images_seen",
        metric="FID",
        mode="min",
        hyperparam_mutations={"alpha": [1, 2]},
        **options,
    )
    for trial in population.trials:
        trial.config["alpha"] = 1
        scheduler.on_trial_add(population, trial)
    return population, scheduler


scores = st.lists(st.integers(0, 30) | st.just(float("nan")), min_size=1, max_size=12)


@FEW
@given(scores, st.sampled_from([0.1, 0.25, 0.4, 0.5]))
def test_quantiles_are_rays(values, share):
    names = [f"t{number}" for number in range(len(values))]
    population, scheduler = ray_population(names, quantile_fraction=share)
    rewards = {}
    for trial, value in zip(population.trials, values, strict=True):
        state = scheduler._trial_state[trial]
        rewards[trial.trial_id] = state.last_score = -float(value)
    lower, upper = scheduler._quantiles()
    ours = quantiles(rewards, share)
    assert ours.lower == [trial.trial_id for trial in lower]
    assert ours.upper == [trial.trial_id for trial in upper]


@FEW
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 90), st.integers(0, 50)), max_size=40),
    st.sampled_from([0, 75]),
)
def test_a_population_is_looked_at_as_ray_does(steps, grace):
    """Who exploits whom, when: an asynchronous population, report by report."""
    names = [f"t{number}" for number in range(5)]
    budget = Budget(10_000, grace, interval=50)
    population, scheduler = ray_population(
        names, perturbation_interval=budget.interval, burn_in_period=grace
    )
    exploited: list = []

    def exploit(controller, trial, donor):
        exploited.append((trial.trial_id, donor.trial_id))
        ours_changed[trial.trial_id] = ours_changed[donor.trial_id]
        state = scheduler._trial_state
        state[trial].last_perturbation_time = state[donor].last_perturbation_time

    rewards: dict[str, float] = {}
    ours_changed = dict.fromkeys(names, 0)
    seen = dict.fromkeys(names, 0)
    saved: set[str] = set()
    with mock.patch.object(scheduler, "_exploit", exploit):
        for number, images, score in steps:
            trial, name = population.trials[number], names[number]
            seen[name] += images
            expected: list = []
            if perturbation_due(seen[name], ours_changed[name], budget):
                rewards[name], ours_changed[name] = -float(score), seen[name]
                # Equal ones in the order in which trials were added, as Ray has them.
                lower, upper = quantiles({n: rewards[n] for n in names if n in rewards})
                (saved.add if name in upper else saved.discard)(name)
                # Only a donor that saved at its own last look can be taken.
                expected = [donor for donor in upper if donor in saved] if name in lower else []
            before = len(exploited)
            with mock.patch.object(ray_pbt, "_FutureTrainingResult", tuple):
                scheduler.on_trial_result(
                    population, trial, {"images_seen": seen[name], "FID": score}
                )
            happened = exploited[before:]
            assert all(target == name and donor in expected for target, donor in happened)
            if expected and saved >= set(upper):
                assert len(happened) == 1


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
    random.seed(seed)
    theirs, _ = ray_pbt._explore(point, mutations(space), 0.0, arithmetic.FACTORS, None)
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


def simulated(trials: int, budget: Budget, seed: int) -> int:
    """Images of an ASHA sweep whose trials keep their order, one trial at a time."""
    generator, asha, images = random.Random(seed), Asha(budget, FID), 0
    points = decision_points(budget, "asha")
    for number in range(trials):
        score = generator.random()
        for point in points:
            if asha.decide(str(number), point, score) == "STOP":
                break
        images += point
    return images


def test_the_cost_of_a_sweep_is_about_right():
    head = "metric: FID\nbudget: {images: 9000, grace: 1000, reduction: 3}\nscheduler: asha\n"
    space = space_of("  objective.alpha: {uniform: [0, 1]}", head + "trials: 16\nfields:\n")
    found = cost(space, 16)
    runs = [simulated(16, space.budget, seed) for seed in range(200)]
    assert found.least <= min(runs)
    assert max(runs) <= found.most == 16 * 9000
    # Trials that pass one rung pass the next more often than a chance of its own would say.
    assert np.mean(runs) == pytest.approx(found.expected, rel=0.15)


def test_what_was_spent_is_counted_in_images():
    assert spent([(0, 1728), (1728, 5056), (5056, 5056), (0, 64)]) == 5120
    head = "metric: FID\nbudget: {images: 900, total: 2000}\ntrials: 4\nfields:\n"
    space = space_of("  objective.alpha: {uniform: [0, 1]}", head)
    assert may_begin(space, 1999)
    assert not may_begin(space, 2000)
    assert cost(space, 4).most == 2000
