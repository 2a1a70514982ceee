"""The protocol of evaluations: what is looked at, what the scores are, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sid_ray.config.distill_config import DistillConfig, asked_metrics, ray_resources, replace
from sid_ray.config.sections import DataConfig, EvaluationConfig
from sid_ray.data.digits import load_digits
from sid_ray.data.source import DataSource, open_source
from sid_ray.errors import UserError
from sid_ray.evaluation.judge import Judge, codec_of, seed_blocks
from sid_ray.evaluation.samplers import Inputs, index_of
from sid_ray.metrics.features import load_feature_space
from sid_ray.metrics.kid import SUBSETS, choose_subsets, kernel_distance
from sid_ray.metrics.precision_recall import PrecisionRecall, precision_recall
from sid_ray.metrics.scores import features_of
from sid_ray.storage.store import Store
from sid_ray.types import Condition
from sid_ray.weights.folder import ModelDescription
from tests.support.data_writer import layout, write_set

IMAGES = load_digits()[0]
SOURCE = open_source(DataConfig(), (1, 8, 8))


def noisy(inputs: Inputs) -> torch.Tensor:
    """A 'generator': real digits of the asked classes in noise that is the seed's own."""
    classes = inputs.cond.labels.argmax(1)
    first = torch.stack([IMAGES[load_digits()[1] == c][0] for c in range(10)])
    return first[classes] + 0.4 * inputs.latents


def judge(**chosen) -> Judge:
    return Judge(EvaluationConfig(num_images=600, **chosen), SOURCE)


def looks(judge: Judge, seeds: range | None = None):
    return [judge.look(noisy, part) for part in seed_blocks(seeds or judge.seeds)]


@pytest.fixture(scope="module")
def everything() -> tuple[Judge, list]:
    found = judge(metrics="fd,kid,is,pr")
    return found, looks(found)


def test_the_scores_are_those_of_the_metrics_on_the_same_pictures(everything):
    judge, held = everything
    found = judge.scores(held)
    pictures = torch.cat([judge.images(noisy, part) for part in seed_blocks(judge.seeds)])
    assert pictures.dtype == torch.uint8
    made = features_of(judge.extractor, pictures)[0]
    space = load_feature_space("digits-cnn")
    real = features_of(judge.extractor, next(SOURCE.pictures()))[0]
    mean, covariance = made.astype(float).mean(0), np.cov(made.astype(float).T)
    gap = mean - space.mean
    roots = np.linalg.eigvals(covariance @ space.covariance).astype(complex) ** 0.5
    distance = gap @ gap + np.trace(covariance + space.covariance) - 2 * roots.real.sum()
    assert found["FD-digits-cnn"] == pytest.approx(distance, rel=1e-6)
    inside = precision_recall(made, real)
    assert (found["precision-digits-cnn"], found["recall-digits-cnn"]) == inside
    chosen = choose_subsets(600, 1797, SUBSETS, 600)  # as many as there are, where these are few
    kernel = kernel_distance(made, real, chosen).mean
    assert found["KD-digits-cnn"] == pytest.approx(kernel, rel=1e-6)
    assert 1 < found["IS-digits-cnn"] <= 10


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_whoever_looks_first_the_scores_are_the_same_bits(everything, order):
    one, held = judge(metrics="fd,is,pr"), everything[1]
    parts = list(seed_blocks(one.seeds))
    made = {block: one.look(noisy, parts[block]) for block in order}
    assert one.scores([made[block] for block in range(3)]) == one.scores(held)


def test_samples_are_compared_on_the_device_that_looked_at_them(everything, monkeypatch):
    found, seen = everything, []

    def compare(made, real, **where):
        seen.append(where)
        return PrecisionRecall(0.5, 0.5)

    monkeypatch.setattr("sid_ray.metrics.precision_recall.precision_recall", compare)
    monkeypatch.setattr(found[0], "device", torch.device("cuda:0"))
    found[0].scores(found[1])
    assert seen == [{"device": "cuda:0"}]


def test_a_seeds_picture_does_not_depend_on_its_neighbours():
    one = judge()
    whole = one.images(noisy, range(100))
    assert torch.equal(one.images(noisy, range(40, 60)), whole[40:60])
    conditions = SOURCE.labels(index_of(SOURCE, range(100)))
    assert set(conditions.tolist()) == set(range(10))  # drawn from the data


def test_the_first_metric_keeps_the_best_weights():
    assert judge(metrics="pr,fd").primary == "precision-digits-cnn"
    assert judge(metrics="fd").primary == "FD-digits-cnn"
    assert Judge(EvaluationConfig(feature_space="lite0-320"), SOURCE).primary == "FD-Lite0-320"


def test_a_prepared_set_is_a_reference(tmp_path):
    pixels = next(SOURCE.pictures())
    write_set(
        Store(str(tmp_path / "set")), "images", layout(len(pixels), 100), image=pixels.numpy()
    )
    own = judge(metrics="fd,pr")
    other = judge(metrics="fd,pr", reference=str(tmp_path / "set"))
    other.check()
    held = looks(own)
    mine, theirs = own.scores(held), other.scores(held)

    # The shipped statistics are of float32 features from another processor, whose kernels round
    # otherwise; a set of other images or another order of channels is off by far more.
    assert theirs["FD-digits-cnn"] == pytest.approx(mine["FD-digits-cnn"], rel=1e-6)
    assert theirs["recall-digits-cnn"] == mine["recall-digits-cnn"]
    assert other.protocol(range(5))["reference_fingerprint"]


def test_statistics_of_a_file_are_a_reference_for_the_frechet_distance_alone(tmp_path):
    space, path = load_feature_space("digits-cnn"), tmp_path / "real.npz"
    np.savez(path, mu=space.mean, sigma=space.covariance)
    named = judge(reference=str(path))
    named.check()
    held = looks(named)
    assert named.scores(held) == judge().scores(held)
    with pytest.raises(UserError, match=r"kid and pr need real images.*prepared data set"):
        judge(metrics="kid", reference=str(path)).check()
    with pytest.raises(UserError, match=r"no.npz is no file"):
        judge(reference=str(tmp_path / "no.npz")).check()


def test_what_has_no_real_images_is_refused_before_anything_is_made():
    labels = DataSource((3, 32, 32), 10)
    with pytest.raises(UserError, match=r"evaluation.reference is empty.*no images"):
        Judge(EvaluationConfig(feature_space="lite0"), labels).check()
    with pytest.raises(UserError, match=r"needs evaluation.clip_weights"):
        judge(metrics="clip")
    with pytest.raises(UserError, match=r"clip.*this data set has none"):
        judge(metrics="clip", clip_weights="x")


def test_latents_need_their_vae():
    network = {"img_resolution": 8, "img_channels": 4, "label_dim": 10}
    with pytest.raises(UserError, match=r"makes latents.*evaluation.vae"):
        codec_of(ModelDescription("edm2", network), "")


@pytest.mark.parametrize(
    ("text", "what"), [("fdd", "unknown metric 'fdd'.*did you mean"), (" , ", "is empty")]
)
def test_metrics_are_refused_by_name(text, what):
    with pytest.raises(UserError, match=f"(?i){what}"):
        asked_metrics(text)


def test_resources_are_rays():
    assert ray_resources("GPU=1, evaluator=0.5") == {"GPU": 1, "evaluator": 0.5}
    assert ray_resources("") == {}
    for wrong in ("GPU", "GPU=0", "=1", "CPU=x", "CPU=inf"):
        config = replace(DistillConfig(), evaluation__resources=wrong, teacher__source="x")
        with pytest.raises(UserError, match=r"expected NAME=NUMBER"):
            dataclasses.replace(config, recipe="x").check()


def test_conditions_move_with_their_inputs():
    inputs = Inputs(torch.zeros(2, 1), Condition(torch.ones(2, 3)), None)
    moved = inputs.to(torch.device("meta"))
    assert moved.latents.is_meta
    assert moved.cond.labels.is_meta
    assert moved.more_noise is None
