"""The CLIP score on a small network of its layout, made by the test; no published weights here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from sid_ray.errors import UserError
from sid_ray.metrics.clip import DEVIATION, MEAN, Clip, clip_score, load_clip
from sid_ray.metrics.sums import BLOCK, FeatureSums, merged
from tests.support.small_clip import write_clip

TEXTS = ["smiling face", "red heart", "a cat"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return load_clip(folder)


def photos(count: int) -> Tensor:
    whole = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    return torch.stack([whole[:, 9 * i : 9 * i + 48, 30 * i : 30 * i + 70] for i in range(count)])


@torch.no_grad()
def test_equals_the_networks_own_similarity(clip):
    images = photos(3)
    ids = clip.tokenizer(TEXTS, padding=True, return_tensors="pt").input_ids
    assert int(ids.max()) < 4096
    seen = clip.network(input_ids=ids, pixel_values=clip.pixels(images))
    own = seen.logits_per_image.diagonal() / clip.network.logit_scale.exp()
    sums = FeatureSums.of_block(clip.look(images, TEXTS), 0)
    assert clip_score(sums) == pytest.approx(float(own.mean()), rel=1e-5)
    assert clip.identity.startswith("clip-")
    one_image = clip.cosines(images[:1].expand(3, -1, -1, -1), TEXTS)
    assert len(set(one_image.tolist())) == 3  # texts are told apart


def test_images_are_prepared_as_pillow_does(clip):
    images = photos(2)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
    found = (clip.pixels(images) * deviation + mean) * 255
    for image, each in zip(images, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        resized = picture.resize((70 * 32 // 48, 32), Image.Resampling.BICUBIC)
        expected = np.asarray(resized.crop((7, 0, 39, 32)), np.float32)
        assert np.abs(each.permute(1, 2, 0).numpy() - expected).max() < 2.01


@pytest.mark.parametrize("actors", [1, 2, 5])
def test_any_number_of_actors_gives_the_same_bits(clip, actors):
    images = torch.randint(0, 256, (2 * BLOCK + 9, 3, 16, 16), dtype=torch.uint8)
    texts = [TEXTS[i % 3] for i in range(len(images))]
    blocks = [
        FeatureSums.of_block(clip.look(part, texts[BLOCK * i : BLOCK * (i + 1)]), i)
        for i, part in enumerate(images.split(BLOCK))
    ]
    shares = [blocks[actor::actors] for actor in range(actors)]
    found = merged(merged(share) for share in reversed(shares) if share)
    assert clip_score(found) == clip_score(merged(blocks))


def test_what_does_not_fit_is_refused(clip, tmp_path):
    with pytest.raises(UserError, match="3 images and 2 texts"):
        clip.look(photos(3), TEXTS[:2])
    with pytest.raises(UserError, match=r"expected uint8 \[batch, 3"):
        clip.look(photos(3).float(), TEXTS)
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_clip(tmp_path)
