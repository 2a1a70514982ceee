"""Made-up sweeps as their folders say them: nothing of it was trained."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

from sid_ray.recipes.registry import recipe
from sid_ray.sweep.arithmetic import decision_points
from sid_ray.sweep.repeats import add_repeat, repeats_of
from sid_ray.sweep.sampling import random_point
from sid_ray.sweep.space import Space
from sid_ray.sweep.space_file import parse_space
from sid_ray.sweep.trials import TRIALS, Leg, Segment, TrialRecord, read_trials
from tests.support.sweeps import Asha

SID = """\
recipe: digits-sid
metric: FD-digits-cnn
budget: {images: 14_400, grace: 1_600, reduction: 3}
scheduler: asha
trials: 16
fields:
  objective.alpha: {uniform: [0.6, 1.4]}
  training.generator_lr: {loguniform: [2e-5, 5e-4]}
  training.fake_score_lr: {loguniform: [2e-5, 5e-4]}
  training.group_size: {choice: [8, 16, 32]}
"""
LSG = """\
recipe: sd15-lsg-kappa1.5
metric: [FID, CLIP]
budget: {images: 40_000}
searcher: optuna
trials: 24
fields:
  guidance.strategy: {choice: [long-short, long, short]}
  guidance.scale:
    - {loguniform: [1.25, 6.0], when: {guidance.strategy: [long-short, long]}}
    - {uniform: [0.0, 0.9], when: {guidance.strategy: short}}
  objective.text_dropout: {uniform: [0.0, 0.3], when: {guidance.strategy: [long-short, short]}}
  training.generator_lr: {loguniform: [3e-7, 1e-5]}
"""
PBT = """\
recipe: digits-sid
metric: FD-digits-cnn
budget: {images: 12_800, interval: 3_200}
scheduler: pbt
trials: 4
fields:
  objective.alpha: {uniform: [0.6, 1.4]}
  training.generator_lr: {loguniform: [2e-5, 5e-4]}
"""


def events(folder: Path) -> list[dict]:
    """The whole lines of a sweep's trials.jsonl, read by other means than the project's."""
    return [json.loads(line) for line in (folder / TRIALS).read_bytes().split(b"\n")[:-1]]


def record(name: str, scores: dict, state="finished", at=100, point=None, run="r") -> TrialRecord:
    """A trial with one segment."""
    return TrialRecord(name, [Leg(run, point or {}, 0, at)], [Segment(run, at, scores)], state)


class Ledger:
    """Writes a sweep's folder, an event at a time."""

    def __init__(self, folder: Path, text: str, state: str = "finished"):
        self.folder, self.text = folder, text
        self.space: Space = parse_space(text, "space")
        folder.mkdir(parents=True)
        self.state(state)

    def state(self, state: str) -> None:
        about = {
            "name": self.folder.name,
            "space": self.text,
            "recipe": self.space.recipe,
            "metrics": [metric.name for metric in self.space.metrics],
            "started": "2026-01-01T00:00:00",
            "state": state,
        }
        (self.folder / "sweep.json").write_text(json.dumps(about))

    def tell(self, event: str, trial: str, **values) -> None:
        with (self.folder / TRIALS).open("a") as file:
            file.write(json.dumps({"event": event, "trial": trial, **values}) + "\n")

    def begin(self, trial: str, point: dict, run: str = "") -> None:
        self.tell("begin", trial, run=run or f"{self.folder.name}-{trial}", point=point)

    def segment(self, trial: str, images: int, seconds: float = 10.0, **scores: float) -> None:
        named = {name.replace("_", "-"): value for name, value in scores.items()}
        self.tell("segment", trial, images_seen=images, scores=named, seconds=seconds)

    def end(self, trial: str, state: str, images: int, why: str = "") -> None:
        self.tell("end", trial, state=state, why=why, images_seen=images)


def asha_ledger(folder: Path, trials: int = 16, state: str = "finished", text: str = SID) -> Ledger:
    """Trials that ASHA stops; the score is a function of learning rate and alpha; one diverges."""
    ledger = Ledger(folder, text, state)
    space, base = ledger.space, recipe("digits-sid")
    points = decision_points(space.budget, "asha", base.training.batch_size)
    judge = Asha(space.budget, space.metrics[0])
    for number in range(trials):
        name, point = f"{number:05d}", random_point(space, base, 2, number)
        ledger.begin(name, point)
        if number == 3:
            ledger.end(name, "diverged", 800, "generator_loss grew 50 times")
            continue
        for images in points:
            far = math.log(point["training.generator_lr"] / 1e-4) ** 2
            near = 1 + 2 * far + 3 * (point["objective.alpha"] - 1) ** 2
            score = (
                near * (0.5 + 4000 / images) * random.Random(f"{number}/{images}").uniform(1, 1.1)
            )
            ledger.segment(name, images, images / 90, FD_digits_cnn=score)
            if judge.decide(name, images, score) == "STOP":
                ledger.end(name, "finished" if images == points[-1] else "stopped", images)
                break
    return ledger


def with_seeds(folder: Path) -> Ledger:
    """A sweep whose best trial and recipe were repeated with two seeds more but for one."""
    ledger = asha_ledger(folder, text=SID + "seeds: [0, 1, 2]\n")
    space, told = ledger.space, read_trials(folder).trials.values()
    for repeat in repeats_of("made", space, recipe("digits-sid"), told):
        if not repeat.ended and repeat.run != "made-recipe-seed2":
            scores = {"FD-digits-cnn": 6.125 + repeat.seed}
            add_repeat(folder, replace(repeat, images_seen=6_400, scores=scores))
    return ledger


def lsg_ledger(folder: Path, trials: int = 24) -> Ledger:
    """Two scores that pull against each other, and fields that not all trials have."""
    ledger = Ledger(folder, LSG)
    base = recipe("sd15-lsg-kappa1.5")
    for number in range(trials):
        point = random_point(ledger.space, base, 0, number)
        ledger.begin(str(number), point)
        scale = point["guidance.scale"] + (2 if point["guidance.strategy"] == "short" else 0)
        noise = random.Random(number).uniform(0, 1.5)
        for images in (20_000, 40_000):
            fid = 8 + 1.2 * scale + 3 * noise + 40_000 / images
            ledger.segment(str(number), images, FID=fid, CLIP=0.30 + 0.004 * scale - 0.002 * noise)
        ledger.end(str(number), "finished", 40_000)
    return ledger


def pbt_ledger(folder: Path) -> Ledger:
    """Four trials; at 3,200 b takes a, at 6,400 d takes b's second leg, at 9,600 c takes d's."""
    ledger = Ledger(folder, PBT)
    base = recipe("digits-sid")
    points = {name: random_point(ledger.space, base, 0, n) for n, name in enumerate("abcd")}
    scores = {"a": 3.0, "b": 6.0, "c": 5.0, "d": 7.0}
    taken = {3_200: ("b", "a", ""), 6_400: ("d", "b", "-leg2"), 9_600: ("c", "d", "-leg2")}
    for name, point in points.items():
        ledger.begin(name, point)
    for images in (3_200, 6_400, 9_600, 12_800):
        for name in points:
            scores[name] *= {"a": 0.95, "b": 0.8, "c": 0.9, "d": 0.7}[name]
            ledger.segment(name, images, FD_digits_cnn=scores[name])
        if images in taken:
            name, donor, leg = taken[images]
            scores[name] = scores[donor]
            points[name] = {field: 1.1 * value for field, value in points[donor].items()}
            ledger.tell(
                "exploit",
                name,
                from_trial=donor,
                from_run=f"{folder.name}-{donor}{leg}",
                images_seen=images,
                run=f"{folder.name}-{name}-leg2",
                point=points[name],
            )
    for name in points:
        ledger.end(name, "finished", 12_800)
    return ledger
