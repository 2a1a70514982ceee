"""What ships is what its cards say."""

import json
from pathlib import Path

import pytest
import torch

import sid_ray
from sid_ray.config import DataConfig
from sid_ray.data.digits import load_digits
from sid_ray.data.source import open_source
from sid_ray.errors import UserError
from sid_ray.metrics.features import load_feature_space
from sid_ray.sampling import generator_sampler, heun, sample_in_batches, seeded_inputs
from sid_ray.schedules import EDMSchedule
from sid_ray.weights.folder import load_model
from sid_ray.weights.sources import builtin_models, resolve_source

ASSETS = Path(sid_ray.__file__).parent / "assets"


def test_the_teacher_is_small_and_as_good_as_its_card_says():
    folder = resolve_source("builtin:digits-teacher")
    teacher, description = load_model(folder)
    assert sum(p.numel() for p in teacher.parameters()) < 800_000
    notes, space = description.notes, load_feature_space("digits-cnn")
    assert notes["feature_space"] == space.name
    source, schedule = open_source(DataConfig(), (1, 8, 8)), EDMSchedule()
    inputs = seeded_inputs(source, range(2048))
    one = sample_in_batches(generator_sampler(teacher, schedule), inputs)
    assert space.frechet_distance(one) == pytest.approx(notes["frechet_distance_1"], rel=1e-3)
    few = inputs.take(torch.arange(512))
    many = sample_in_batches(lambda i: heun(teacher, schedule, i.latents, i.cond), few)
    # A quarter of the card's images, to be quick: the estimate's bias lifts 1.79 to 7.17.
    assert space.frechet_distance(many) == pytest.approx(7.17, rel=0.02)
    card = (folder / "README.md").read_text()
    for key in ("images_seen", "seed", "frechet_distance_35"):
        assert f"{notes[key]:,}" in card or str(notes[key]) in card


def test_the_feature_space_knows_its_reference():
    space = load_feature_space("digits-cnn")
    images, classes = load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.min() == -1
    assert images.max() == 1
    assert space.frechet_distance(images) == pytest.approx(0, abs=1e-4)
    assert space.frechet_distance(torch.zeros_like(images)) > 100
    hits = (space.network(images).argmax(1) == classes).float().mean()
    assert hits > 0.97


def test_shipped_files_are_small():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6 * 2**20
    for path in ASSETS.glob("*/model.json"):
        json.loads(path.read_text())


def test_names_that_do_not_ship_are_refused():
    assert builtin_models() == ["digits-teacher"]
    with pytest.raises(UserError, match="there are: digits-teacher"):
        resolve_source("builtin:nothing")
    with pytest.raises(UserError, match="unknown feature space"):
        load_feature_space("inception")
