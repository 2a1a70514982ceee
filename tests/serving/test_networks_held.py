"""What a replica holds makes the images of ``sid-ray generate``, and its teacher's own."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sid_ray.commands.generate import generate_pictures
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.diffusion.solvers import heun
from sid_ray.errors import UserError
from sid_ray.evaluation.samplers import seeded_latents, to_uint8
from sid_ray.serving.contract import WantedImage
from sid_ray.serving.networks_held import HeldNetworks, as_files, batch_ladder, padded_size
from sid_ray.types import Condition
from sid_ray.weights.folder import load_model
from sid_ray.weights.sources import resolve_source
from tests.support.generators import write_generator

PROMPTS = ("cat face", "red heart")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_generator(tmp_path_factory.mktemp("digits"), "digits-sid")


@pytest.fixture(scope="module")
def held_digits(digits):
    return HeldNetworks(str(digits), most=8)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    return write_generator(tmp_path_factory.mktemp("emoji"), "emoji-lsg")


@pytest.fixture(scope="module")
def held_emoji(emoji):
    return HeldNetworks(str(emoji), most=4)


def pixels(path_or_png) -> np.ndarray:
    file = io.BytesIO(path_or_png) if isinstance(path_or_png, bytes) else path_or_png
    with Image.open(file) as picture:
        return np.asarray(picture).astype(int)


def served(held, wanted) -> list[np.ndarray]:
    return [pixels(each.png) for each in as_files(held.paint(wanted))]


def furthest(found, expected) -> int:
    return max(abs(a - b).max() for a, b in zip(found, expected, strict=True))


def test_images_are_those_of_generate(digits, held_digits, tmp_path):
    generate_pictures(digits, range(8), None, (), tmp_path, batch=8)
    expected = [pixels(tmp_path / f"seed{seed:06d}.png") for seed in range(8)]
    wanted = [WantedImage("generator", seed) for seed in range(8)]
    assert furthest(served(held_digits, wanted), expected) == 0
    # Others beside it, in another order, in batches of other sizes: rounding at most.
    assert furthest(served(held_digits, wanted[5:2:-1]), expected[5:2:-1]) <= 1
    assert furthest(served(held_digits, wanted[6:7]), expected[6:7]) <= 1


def test_classes_are_those_asked_for_or_drawn_by_seed(digits, held_digits, tmp_path):
    generate_pictures(digits, range(8), range(10), (), tmp_path, batch=8)
    expected = [pixels(tmp_path / f"seed{seed:06d}.png") for seed in range(8)]
    wanted = [WantedImage("generator", seed, class_=seed) for seed in range(8)]
    assert furthest(served(held_digits, wanted), expected) == 0
    drawn = [each.class_ for each in as_files(held_digits.paint([WantedImage("generator", 3)] * 2))]
    assert drawn[0] == drawn[1] and drawn[0] in range(10)
    again = served(held_digits, [WantedImage("generator", 3, class_=drawn[0])] * 2)
    assert furthest(again, served(held_digits, [WantedImage("generator", 3)] * 2)) == 0


def test_prompts_are_read_as_generate_reads_them(emoji, held_emoji, tmp_path):
    generate_pictures(emoji, range(4), None, PROMPTS, tmp_path, batch=4)
    expected = [pixels(tmp_path / f"seed{seed:06d}.png") for seed in range(4)]
    wanted = [WantedImage("generator", seed, prompt=PROMPTS[seed % 2]) for seed in range(4)]
    assert furthest(served(held_emoji, wanted), expected) == 0
    assert furthest(served(held_emoji, wanted[2:3]), expected[2:3]) <= 1


def test_embeddings_of_prompts_are_kept_within_bounds(held_emoji):
    text = held_emoji.generator.text
    before, text.max_prompts = text.max_prompts, 3
    try:
        for seed in range(10):
            held_emoji.paint([WantedImage("generator", seed, prompt=f"prompt {seed}")])
        assert set(text.kept) == {"", "prompt 7", "prompt 8", "prompt 9"}
    finally:
        text.max_prompts = before


def test_the_teacher_samples_as_it_does_in_reports(held_digits):
    wanted = [WantedImage("teacher", seed, class_=7) for seed in range(4)]
    net, _ = load_model(resolve_source("builtin:digits-teacher"))
    labels = torch.zeros(4, 10)
    labels[:, 7] = 1
    with torch.no_grad():
        made = heun(net, EDMSchedule(), seeded_latents(range(4), (1, 8, 8)), Condition(labels), 18)
    expected = list(to_uint8(made)[:, 0].numpy().astype(int))
    assert furthest(served(held_digits, wanted), expected) == 0


def test_a_guided_teacher_uses_the_generators_text_encoder(held_emoji):
    wanted = [
        WantedImage("teacher", 0, prompt="cat face"),
        WantedImage("teacher", 0, prompt="red heart"),
    ]
    cat, heart = served(held_emoji, wanted)
    assert abs(cat - heart).max() > 50
    assert abs(cat - served(held_emoji, wanted)[0]).max() == 0


def test_what_it_cannot_make_is_refused_in_words(held_digits):
    with pytest.raises(UserError, match="class 10: this generator knows 0-9"):
        held_digits.paint([WantedImage("generator", 0, class_=10)])
    with pytest.raises(UserError, match="makes its images in 1"):
        held_digits.paint([WantedImage("generator", 0, steps=4)])


def test_batches_have_few_sizes_and_little_padding():
    assert batch_ladder(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    for most in (1, 5, 64, 1024):
        assert batch_ladder(most)[-1] == most
        for count in range(1, most + 1):
            assert count <= padded_size(count, most) <= max(count, 1.5 * count)
