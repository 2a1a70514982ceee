"""Where trials are judged and what a sweep costs, against Ray Tune's own ASHA."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.sweep.arithmetic import (
    cost,
    decision_points,
    may_begin,
    next_point,
    rungs,
    segment_end,
)
from sid_ray.sweep.space import Metric, SweepBudget
from tests.support.sweeps import Asha
from tests.sweep.spaces import space_of

FID = Metric("FID", "min")
FEW = settings(deadline=None, max_examples=50)


@FEW
@given(
    st.integers(1, 10_000),
    st.integers(1, 10_000_000),
    st.sampled_from([1.5, 2.0, 3.0, 4.0, 10.0]),
)
def test_rungs_are_rays(grace, more, reduction):
    budget = SweepBudget(grace + more, grace, reduction)
    bracket = Asha(budget, FID).ray._brackets[0]
    assert list(rungs(grace, budget.images, reduction)) == [
        milestone for milestone, _ in reversed(bracket._rungs)
    ]


def test_rungs_by_hand():
    assert rungs(1667, 15_000, 3.0) == (1667, 5001)
    assert rungs(1666, 15_000, 3.0) == (1666, 4998, 14_994)
    assert rungs(1, 1000, 10.0) == (1, 10, 100)  # Ray's rounding: 1000 is missing


def test_trials_are_judged_at_whole_batches():
    budget = SweepBudget(15_000, 1_666, 3.0)
    assert decision_points(budget, "asha", 64) == (1728, 5056, 15_040)  # 14,994 is its end
    assert decision_points(budget, "asha") == (1666, 4998, 14_994, 15_000)
    assert decision_points(SweepBudget(1000), "none", 64) == (1024,)
    assert decision_points(SweepBudget(1000, interval=300), "pbt", 64) == (320, 640, 960, 1024)
    points = (1728, 5056, 15_040)
    assert [next_point(points, n) for n in (0, 1728, 5100, 15_040)] == [1728, 5056, 15_040, None]


def test_a_segment_ends_at_the_next_decision_that_is_not_told():
    points = (1728, 5056, 15_040)
    cases = {(0, 0): 1728, (640, 0): 1728, (1728, 0): 1728, (1728, 1728): 5056,
             (2560, 1728): 5056, (5056, 1728): 5056, (15_040, 15_040): 15_040}  # fmt: skip
    assert {case: segment_end(points, *case) for case in cases} == cases


def simulated(trials: int, budget: SweepBudget, seed: int) -> int:
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


def test_no_trial_begins_when_the_total_is_spent():
    head = "metric: FID\nbudget: {images: 900, total: 2000}\ntrials: 4\nfields:\n"
    space = space_of("  objective.alpha: {uniform: [0, 1]}", head)
    assert may_begin(space, 1999)
    assert not may_begin(space, 2000)
    assert cost(space, 4).most == 2000
