"""What ships is what its cards say."""

import json
import re
from pathlib import Path

import pytest
import torch

import sid_ray
from sid_ray.config.sections import DataConfig
from sid_ray.data.digits import load_digits
from sid_ray.data.source import open_source
from sid_ray.denoisers.clip_text import load_text
from sid_ray.denoisers.guidance import Guided
from sid_ray.denoisers.registry import family_of
from sid_ray.denoisers.stable_diffusion import load_schedule
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.diffusion.solvers import ddim, heun
from sid_ray.errors import UserError
from sid_ray.evaluation.samplers import (
    generator_sampler,
    inputs_of_seeds,
    sample_in_batches,
    seeded_inputs,
    seeded_uniform,
)
from sid_ray.metrics.features import load_feature_space
from sid_ray.weights.folder import load_model
from sid_ray.weights.networks import describe
from sid_ray.weights.sources import builtin_models, resolve_source

ASSETS = Path(sid_ray.__file__).parent / "assets"
GUIDANCE = 2.0  # of the flow teacher in its card


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
    # A quarter of the card's images, to be quick: the estimate's bias lifts 1.87 to 7.17.
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


def test_the_text_to_image_teacher_is_as_good_as_its_card_says():
    folder = resolve_source("builtin:emoji-teacher")
    assert describe(folder).family == "stable-diffusion"
    teacher, description = load_model(folder)
    assert description.network["sample_size"] == 16
    assert sum(p.numel() for p in teacher.parameters()) < 1_600_000
    schedule, text = load_schedule(folder), load_text(folder)
    source = open_source(DataConfig(name="emoji"), (3, 16, 16), text.embed)
    space, seeds = load_feature_space("emoji-cnn"), range(2048)
    chosen = source.index(seeded_uniform(seeds))
    inputs, classes = inputs_of_seeds(source, seeds, chosen), source.labels(chosen)
    one = sample_in_batches(generator_sampler(teacher, schedule), inputs)
    distance, hits = card_row(folder, "one evaluation, from timestep 625")
    assert space.frechet_distance(one) == pytest.approx(distance, rel=2e-3)
    assert space.class_accuracy(one, classes) == pytest.approx(hits, abs=2e-3)
    few = torch.arange(32)  # to be quick
    guided = Guided(teacher, 2.0, text.null())
    made = sample_in_batches(
        lambda i: ddim(guided, schedule, i.latents, i.cond, 25), inputs.take(few)
    )
    _, hits = card_row(folder, "DDIM, 25 steps, guidance scale 2")
    assert space.class_accuracy(made, classes[few]) == pytest.approx(hits, abs=0.15)


def test_the_flow_teacher_is_as_good_as_its_card_says():
    folder = resolve_source("builtin:emoji-flow")
    teacher, description = load_model(folder)
    assert sum(p.numel() for p in teacher.parameters()) < 3_000_000
    family = family_of(description.family)
    assert not family.makes_latents(description.network), "pixels"
    family.check_text(description.network, folder)
    noise, text = family.noise, family.load_text(folder, network=description.network)
    chosen = noise.of_network(folder, description.network, 16)
    source = open_source(DataConfig(name="emoji"), (3, 16, 16), text.embed)
    space, seeds = load_feature_space("emoji-cnn"), range(2048)
    index = source.index(seeded_uniform(seeds))
    inputs, classes = inputs_of_seeds(source, seeds, index), source.labels(index)
    one = sample_in_batches(generator_sampler(teacher, noise.schedule(chosen)), inputs)
    distance, hits = card_row(folder, "generator's start, 1 evaluation")
    assert space.frechet_distance(one) == pytest.approx(distance, rel=2e-3)
    assert space.class_accuracy(one, classes) == pytest.approx(hits, abs=2e-3)
    few = torch.arange(32)  # to be quick
    run, null = noise.sampler(chosen, 28, GUIDANCE).run, text.null()
    made = sample_in_batches(lambda i: run(teacher, i.latents, i.cond, null), inputs.take(few))
    _, hits = card_row(folder, f"Euler, 28 steps, guidance scale {GUIDANCE:g}")
    assert space.class_accuracy(made, classes[few]) == pytest.approx(hits, abs=0.15)


def card_row(folder: Path, name: str) -> tuple[float, float]:
    """(Frechet distance, class accuracy) of a row of a card."""
    cells = re.search(
        rf"^\| {re.escape(name)} \| (.*) \|$", (folder / "README.md").read_text(), re.M
    )
    assert cells is not None, f"no row {name}"
    distance, hits = cells[1].split(" | ")
    return float(distance), float(hits.rstrip("%")) / 100


def test_every_asset_has_a_card_and_twemoji_its_attribution():
    for folder in ASSETS.iterdir():
        card = (folder / "README.md").read_text()
        front, _, text = card.rpartition("---\n\n") if card.startswith("---\n") else ("", "", card)
        assert text.startswith(f"# {folder.name}\n")
        if folder.name.startswith("emoji"):
            assert "Twemoji" in text
            assert "CC-BY 4.0" in text
        if (folder / "model.json").exists():  # its exports' cards say so
            assert front.startswith("---\nlicense: cc-by-4.0\nattribution: ")


def test_shipped_files_are_small():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 13 * 2**20
    for name, most in (("emoji-teacher", 4), ("emoji-flow", 6)):
        teacher = [path for path in files if name in path.parts]
        assert sum(path.stat().st_size for path in teacher) < most * 2**20
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files), "readable by everyone"
    for path in ASSETS.glob("*/model.json"):
        json.loads(path.read_text())


def test_names_that_do_not_ship_are_refused():
    assert builtin_models() == ["digits-teacher", "emoji-flow", "emoji-teacher"]
    with pytest.raises(UserError, match="there are: digits-teacher, emoji-flow, emoji-teacher"):
        resolve_source("builtin:nothing")
    with pytest.raises(UserError, match="unknown feature space"):
        load_feature_space("inception")
