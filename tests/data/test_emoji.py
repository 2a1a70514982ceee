"""The emoji that ship: what is in the file, and what a source makes of it."""

from __future__ import annotations

import torch

from sid_ray.config.sections import DataConfig
from sid_ray.data.emoji import SHAPE, load_emoji
from sid_ray.data.source import open_source
from sid_ray.diffusion.rng import generator_for
from sid_ray.types import Pick


def category_of(caption: str) -> str:
    emoji = load_emoji()
    return emoji.category_names[emoji.categories[emoji.captions.index(caption)]]


def test_pictures_captions_and_categories():
    emoji = load_emoji()
    assert emoji.images.shape == (1918, *SHAPE)
    assert emoji.images.dtype == torch.float32
    assert emoji.images.min() == -1
    assert emoji.images.max() == 1
    assert len(set(emoji.captions)) == 1918
    assert all(caption == caption.strip() and ":" not in caption for caption in emoji.captions)
    counts = emoji.categories.bincount(minlength=len(emoji.category_names))
    assert len(counts) == 10
    assert counts.min() >= 50
    assert counts.max() <= 1918 // 5


def test_captions_say_what_the_pictures_show():
    emoji = load_emoji()
    mean = {c: emoji.images[emoji.captions.index(c)].mean((1, 2)) for c in emoji.captions}
    assert mean["red square"].argmax() == 0
    assert mean["green square"].argmax() == 1
    assert mean["blue square"].argmax() == 2
    white = emoji.images[emoji.captions.index("grinning face")][:, 0, 0]
    assert (white > 0.95).all()  # transparent corners lie on white
    assert category_of("grinning face") == "faces"
    assert category_of("flag of Japan") == category_of("flag of Scotland") == "flags"
    assert category_of("woman astronaut") == "people"
    assert category_of("hammer") == "objects"


def test_a_source_draws_a_picture_with_its_own_caption():
    emoji, asked = load_emoji(), []

    def embed(prompts):
        asked.extend(prompts)
        return torch.zeros(len(prompts), 2, 3)

    source = open_source(DataConfig(name="emoji"), SHAPE, embed)
    batch = source.batch(Pick(torch.rand(5, generator=generator_for(0, 0))))
    for image, caption in zip(batch.images, asked, strict=True):
        assert torch.equal(image, emoji.images[emoji.captions.index(caption)])
    assert batch.labels is None
    assert batch.text.shape == (5, 2, 3)
