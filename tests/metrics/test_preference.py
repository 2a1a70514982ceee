"""PickScore, HPSv2 and CMMD on small CLIP networks of the published ones' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel

from sid_ray.config.distill_config import DistillConfig, located, replace
from sid_ray.config.metric_weights import named_weights, with_places
from sid_ray.config.sections import DataConfig, EvaluationConfig
from sid_ray.data.source import DataSource, open_source
from sid_ray.denoisers.clip_text import load_tokenizer
from sid_ray.errors import UserError
from sid_ray.evaluation.judge import Judge
from sid_ray.metrics.clip_embeddings import FACTOR, SIGMA, gaussian_discrepancy
from sid_ray.metrics.spec import metric_spec
from sid_ray.metrics.sums import BLOCK
from sid_ray.metrics.transformers_folder import load_network
from sid_ray.recipes.registry import recipe
from tests.support.small_clip import write_clip

TEXTS = ["a red heart", "smiling face", "cat"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[Path, CLIPModel]:
    """A folder, and the network that was saved there."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, write_clip(folder, scale=3.0)


def photos(count: int) -> Tensor:
    """uint8 [count, 3, 40, 40]: parts of a photograph."""
    whole = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)
    places = [(7 * i % 380, 11 * i % 590) for i in range(count)]
    return torch.stack([whole[:, y : y + 40, x : x + 40] for y, x in places])


def chosen(name: str, folder: Path, **others: Any) -> EvaluationConfig:
    return EvaluationConfig(metrics=name, metric_weights=f"{name}={folder}", **others)


def gauge_of(name: str, folder: Path) -> Any:
    open_gauge = metric_spec(name).open
    assert open_gauge is not None
    return open_gauge(chosen(name, folder), CPU)


def published_pixels(images: Tensor) -> Tensor:
    """As Transformers' own processor prepares them for a network of 32 pixels."""
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return processor(pictures, return_tensors="pt").pixel_values


@pytest.mark.parametrize("name", ["pickscore", "hpsv2"])
@torch.no_grad()
def test_a_preference_is_the_networks_own_logit(clip, name):
    """Of image and prompt, by Transformers' whole forward pass."""
    folder, network = clip
    ids = load_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt")
    seen = network(**ids, pixel_values=published_pixels(photos(3)))
    found = gauge_of(name, folder).look(photos(3), TEXTS)
    assert found.shape == (3, 1) and found.dtype == np.float32
    expected = seen.logits_per_image.diagonal().numpy()
    assert abs(expected).max() > 1  # the scale is in it
    # Pillow rounds after each direction of a resize, here it is done once: a level of 255 apart.
    assert found[:, 0] == pytest.approx(expected, abs=0.02 * np.exp(3.0))
    assert found[:, 0] != pytest.approx(gauge_of(name, folder).look(photos(3), TEXTS[::-1])[:, 0])


@pytest.mark.parametrize(("name", "score"), [("pickscore", "PickScore"), ("hpsv2", "HPSv2")])
def test_the_score_of_many_is_the_mean_in_any_split(clip, name, score):
    source = open_source(DataConfig(name="emoji"), (3, 16, 16))
    judge = Judge(chosen(name, clip[0], feature_space="emoji-cnn"), source)
    images = photos(BLOCK + 9)[:, :, :16, :16]
    texts = [TEXTS[i % 3] for i in range(len(images))]
    blocks = [slice(0, BLOCK), slice(BLOCK, BLOCK + 9)]
    looks = [judge.look_at(images[part], texts[part]) for part in blocks]
    again = [judge.look_at(images[part], texts[part]) for part in reversed(blocks)]
    found = judge.scores(looks)[score]
    assert found == judge.scores(reversed(again))[score]
    values = np.concatenate([look.own[name] for look in looks])
    assert found == pytest.approx(float(values.astype(np.float64).mean()), rel=1e-6)


def published_distance(x: NDArray, y: NDArray) -> float:
    """The formula as published, of every pair, in float64."""

    def mean(a: NDArray, b: NDArray) -> float:
        apart = a[:, None].astype(np.float64) - b[None]
        return float(np.exp(-(apart**2).sum(2) / (2 * 10**2)).mean())

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_the_distance_is_the_published_formula():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(shift, 1, (n, 6)) for shift, n in ((0.0, 30), (0.6, 50)))
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y))
    assert gaussian_discrepancy(x, y) == pytest.approx(published_distance(x, y), rel=1e-8)
    assert gaussian_discrepancy(x, y) == pytest.approx(gaussian_discrepancy(y, x), rel=1e-9)
    assert gaussian_discrepancy(x, x) == 0
    assert (SIGMA, FACTOR) == (10, 1000)


@torch.no_grad()
def test_embeddings_are_the_networks_own_of_length_one(clip):
    folder, network = clip
    found = gauge_of("cmmd", folder).look(photos(4), None)
    own = network.get_image_features(published_pixels(photos(4))).pooler_output
    own = own / own.norm(dim=1, keepdim=True)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4), rel=1e-6)
    assert found == pytest.approx(own.numpy(), abs=0.03)
    grey = photos(2)[:, :1]
    same = gauge_of("cmmd", folder).look(grey.expand(-1, 3, -1, -1), None)
    assert np.array_equal(gauge_of("cmmd", folder).look(grey, None), same)


def test_cmmd_of_a_run_is_against_its_real_images(clip, monkeypatch, tmp_path):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path))
    real = photos(80)[:, :, :16, :16]
    source = DataSource((3, 16, 16), 10, torch.arange(80) % 10, real / 127.5 - 1)
    judge = Judge(chosen("cmmd", clip[0], feature_space="emoji-cnn"), source)
    judge.check()
    made = photos(300)[:, :, 16:32, 16:32]
    looks = [judge.look_at(made[:BLOCK]), judge.look_at(made[BLOCK:])]
    gauge = gauge_of("cmmd", clip[0])
    ours = gauge.look(next(source.pictures()), None)
    expected = published_distance(np.concatenate([e.own["cmmd"] for e in looks]), ours)
    assert judge.scores(looks)["CMMD"] == pytest.approx(expected, rel=1e-6)
    assert judge.scores(looks) == judge.scores([judge.look_at(made[:BLOCK]), looks[1]])


def test_a_metric_without_its_network_is_refused(clip, tmp_path):
    source = open_source(DataConfig(name="emoji"), (3, 16, 16))
    for name, place in (("pickscore", "PickScore_v1"), ("hpsv2", "HPSv2-hf"), ("cmmd", "336")):
        with pytest.raises(UserError, match=f"metric {name} needs its network.*{place}"):
            Judge(EvaluationConfig(metrics=name, feature_space="emoji-cnn"), source)
        with pytest.raises(UserError, match=r"has no config\.json"):
            gauge_of(name, tmp_path)
    with pytest.raises(UserError, match="this data set has none"):
        Judge(chosen("pickscore", clip[0]), open_source(DataConfig(), (1, 8, 8)))


def test_weights_that_do_not_fit_are_refused(clip, tmp_path):
    """A library would draw what is missing anew, and say so in a warning."""
    from safetensors.torch import load_file, save_file

    write_clip(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("visual_projection.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing.*visual_projection\.weight"):
        gauge_of("cmmd", tmp_path)


def test_a_pickled_state_dict_is_read_without_running_it(clip, tmp_path):
    """As of clip-vit-large-patch14-336, whose weights are no safetensors."""
    saved = write_clip(tmp_path, seed=3)
    (tmp_path / "model.safetensors").unlink()
    old = {"text_model.embeddings.position_ids": torch.arange(20)[None]}
    torch.save(saved.state_dict() | old, tmp_path / "pytorch_model.bin")
    network, digest = load_network(tmp_path, "clip", "CLIPModel", "a test")
    assert len(digest) == 64
    for name, value in saved.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("pickscore", "METRIC=PLACE"),
        ("=x", "METRIC=PLACE"),
        ("pickscor=x", "unknown metric"),
        ("cmmd=a,cmmd=b", "names cmmd twice"),
    ],
)
def test_what_names_no_network_is_refused(text, what):
    with pytest.raises(UserError, match=what):
        named_weights(text)
    with pytest.raises(UserError, match=what):
        replace(recipe("digits-sid"), evaluation__metric_weights=text).check()


def test_paths_become_absolute_and_addresses_stay():
    text = "cmmd=clip=l,pickscore=hf://yuvalkirstain/PickScore_v1"
    found = located(replace(DistillConfig(), evaluation__metric_weights=text))
    places = named_weights(found.evaluation.metric_weights)
    assert places["cmmd"] == str(Path("clip=l").absolute())
    assert places["pickscore"] == "hf://yuvalkirstain/PickScore_v1"
    assert with_places("", str.upper) == ""
