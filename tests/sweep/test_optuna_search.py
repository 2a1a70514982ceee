"""Points that Optuna proposes: a function of the ledger, in the space, and better than chance."""

import statistics

from sid_ray.recipes.registry import recipe
from sid_ray.sweep.sampling import optuna_point, random_point
from tests.sweep.ledgers import record
from tests.sweep.spaces import space_of

BASE = recipe("digits-sida")
FIELDS = """\
  objective.alpha: {uniform: [0.6, 1.4]}
  training.generator_lr: {loguniform: [1e-5, 1e-3]}
  objective.logvar: {choice: [true, false]}
  objective.adversarial_weight: {loguniform: [1e-3, 1e-1], when: {objective.logvar: true}}
"""


def scored(number, point, score, state="finished", at=900, name="FD-digits-cnn"):
    return record(f"{number:03}", {name: score}, state, at, point)


def test_a_point_is_a_function_of_the_ledger():
    space = space_of(FIELDS)
    told = [scored(0, optuna_point(space, BASE, [], 0), 5.0)]
    for number in range(1, 8):
        point = optuna_point(space, BASE, told, number)
        assert point == optuna_point(space, BASE, told, number)
        assert ("objective.adversarial_weight" in point) == point["objective.logvar"]
        state = ["finished", "stopped", "diverged", "running", "failed"][number % 5]
        told.append(scored(number, point, float(number), state))


def test_the_first_point_is_the_recipes():
    point = optuna_point(space_of(FIELDS), BASE, [], 0)
    assert point["objective.alpha"] == BASE.objective.alpha
    assert point["training.generator_lr"] == BASE.training.generator_lr


def miss(point):
    return abs(point["objective.alpha"] - 1.3) + (not point["objective.logvar"])


def test_proposals_come_nearer_than_draws():
    """Stopped trials teach as well: the further one came, the better it was."""
    space = space_of(FIELDS)
    told = []
    for number in range(24):
        point = optuna_point(space, BASE, told, number)
        value = miss(point)
        state, at = ("finished", 900) if value < 0.3 else ("stopped", 100)
        told.append(scored(number, point, value, state, at))
    late = [miss(trial.point) for trial in told[12:]]
    drawn = [miss(random_point(space, BASE, 0, number)) for number in range(12, 24)]
    assert statistics.mean(late) < 0.6 * statistics.mean(drawn)


def test_several_metrics():
    space = space_of(
        "  objective.alpha: {uniform: [0, 1.4]}\n",
        "metric: [FID, CLIP]\nbudget: {images: 6400}\ntrials: 8\nfields:\n",
    )
    told = []
    for number in range(10):
        point = optuna_point(space, BASE, told, number)
        alpha = point["objective.alpha"]
        state = "diverged" if number == 3 else "finished"
        told.append(record(str(number), {"FID": alpha, "CLIP": alpha}, state, 900, point))
    assert len({trial.point["objective.alpha"] for trial in told}) == 10
