"""DINOv2 on networks of its layout, made by the tests; no published weights are here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model

from sid_ray.errors import UserError
from sid_ray.metrics.dinov2 import DEVIATION, MEAN, resampled_positions
from sid_ray.metrics.extractors import extract, load_extractor


def tiny(image_size: int) -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=image_size
    )
    return Dinov2Model(config).eval()


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
    return (images / 255 - mean) / deviation


@torch.no_grad()
def test_features_are_the_class_token(tmp_path):
    """At the network's own size: nothing is resized, and Transformers' forward is the reference."""
    network = tiny(224)
    network.save_pretrained(tmp_path)
    extractor = load_extractor("dinov2", weights=tmp_path)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    found = extract(extractor, images)
    expected = network(pixel_values=normalised(images)).pooler_output
    torch.testing.assert_close(found.features, expected, rtol=1e-5, atol=1e-5)
    assert found.logits is None and (extractor.dim, extractor.classes) == (32, 0)
    assert extractor.space == "DINOv2" and extractor.identity.startswith("dinov2-")


@torch.no_grad()
def test_other_sizes_are_resized_images_and_positions(tmp_path):
    network = tiny(518)
    network.save_pretrained(tmp_path)
    extractor = load_extractor("dinov2", weights=tmp_path)
    assert extractor.network.embeddings.position_embeddings.shape == (1, 1 + 16 * 16, 32)
    images = torch.randint(0, 256, (1, 1, 60, 40), dtype=torch.uint8)
    large = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True)
    expected = network(pixel_values=normalised(large.expand(-1, 3, -1, -1))).pooler_output
    found = extract(extractor, images).features
    # Transformers resamples positions without the offset, so the two are near and not equal
    assert 1e-6 < (found - expected).norm() / expected.norm() < 0.05


def test_positions_are_sampled_with_the_offset():
    """A ramp over the stored grid is sampled at (i + 0.5) * 37 / 16.1 - 0.5, but for 0.05 that the
    bicubic kernel adds; without the offset the last places would be 0.2 away.
    """
    ramp = torch.arange(37.0).repeat(37, 1).reshape(1, -1, 1)
    stored = torch.cat([torch.full((1, 1, 1), -5.0), ramp], 1)
    found = resampled_positions(stored, 16)
    assert found.shape == (1, 1 + 16 * 16, 1) and found[0, 0] == -5
    row = found[0, 1:, 0].reshape(16, 16)[3, 1:-1]
    places = torch.arange(1, 15) + 0.5
    torch.testing.assert_close(row, places * 37 / 16.1 - 0.5, rtol=0, atol=0.06)
    assert (row - (places * 37 / 16 - 0.5)).abs().max() > 0.12


def test_folders_that_do_not_fit_are_refused(tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(UserError, match=r"needs a folder with config\.json"):
            load_extractor("dinov2", weights=folder)
    config = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    CLIPTextModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a clip_text_model network, expected dinov2"):
        load_extractor("dinov2", weights=tmp_path)
