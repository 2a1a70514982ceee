"""A prepared set as training sees it: pixels with their own labels, and nothing more than asked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.config.sections import DataConfig
from sid_ray.data.decode import Decoded
from sid_ray.data.prepared import PreparedSource, Reading, open_prepared
from sid_ray.data.source import data_fingerprint
from sid_ray.denoisers.codecs import EDM2_RAW_MEAN, EDM2_RAW_STD, Standard
from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR
from sid_ray.errors import UserError
from sid_ray.groups import GroupPlan
from sid_ray.storage.store import Store
from sid_ray.training.assemble import check_data, data_of
from sid_ray.training.draws import Maker, draws_of
from sid_ray.training.draws_ahead import Coming, DrawsAhead, HostLane
from sid_ray.types import Batch, Pick
from sid_ray.weights.folder import ModelDescription
from tests.support.data_writer import layout, numbered_images, numbers_of, write_set
from tests.support.networks import TINY

COUNT, SHAPE = 90, (3, 8, 8)
PLAN = GroupPlan(24, 6, 6, 1)
LABELS = np.arange(COUNT) % 7 // 3  # classes 0, 1 and 2, of other sizes each


@pytest.fixture
def at(tmp_path):
    """Writes a set and gives its store."""
    numbers = itertools.count()

    def at(kind, rows=16, count=COUNT, **columns) -> Store:
        store = Store.at(tmp_path / f"set{next(numbers)}")
        store.create()
        write_set(store, kind, layout(count, rows, 2), **columns)
        return store

    return at


@pytest.fixture
def images(at) -> Store:
    return at("images", label_dim=3, image=numbered_images(COUNT), label=LABELS)


@pytest.fixture
def opened():
    found = []

    def opened(store, plan=PLAN, embed=None, encoder=None, standard=None, **options):
        data = DataConfig(name="prepared", source=str(store), xflip=options.get("xflip", False))
        reading = Reading(plan, **({"pixels": True} | options))
        found.append(open_prepared(data, SHAPE, embed, encoder, standard, reading))
        return found[-1]

    yield opened
    for source in found:
        source.close()


def batches(source: PreparedSource, plan: GroupPlan, rank=0, stream=FAKE_SCORE, seen=24) -> Batch:
    """All of a rank's micro-steps, padding left out, one after another."""
    draws = draws_of(source, plan, 0, torch.device("cpu"))
    parts = [draws(stream, seen, step)[1] for step in plan.micro_steps(rank) if step.weight]
    return Batch(*(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True)))


def whole(opened, store, world_size, micro_batch, seen, **options) -> Batch:
    """A batch as so many ranks see it, in the order of its groups."""
    plan = GroupPlan(24, 6, micro_batch, world_size)
    of_group = {}
    for rank in range(world_size):
        source = opened(store, plan, rank=rank, **options)
        for group, *fields in zip(
            range(rank, 4, world_size),
            *(f.split(6) for f in batches(source, plan, rank, seen=seen) if f is not None),
            strict=True,
        ):
            of_group[group] = fields
    return Batch(*map(torch.cat, zip(*(of_group[g] for g in range(4)), strict=True)))


@pytest.mark.parametrize("micro_batch", [24, 6, 2])
def test_what_is_read_ahead_of_a_step_is_what_it_would_read(opened, images, micro_batch):
    """The worker waits for an iteration's data, then asks; the thread asks for the next before."""
    plan = GroupPlan(24, 6, micro_batch, 1)
    plain = draws_of(opened(images, plan), plan, 0, torch.device("cpu"))
    coming = Coming(plan, 0, lambda seen: seen != 48)  # one iteration has one phase alone
    for start in (0, 24):  # a roll-back closes both and opens them anew
        source = opened(images, plan)
        ahead = DrawsAhead(Maker(source, plan, 0), coming, HostLane())
        for seen in range(start, start + 24 * 4, 24):
            assert source.wait(seen)
            for stream in (FAKE_SCORE, GENERATOR)[: 1 + (seen != 48)]:
                for micro_step in plan.micro_steps(0):
                    _, found = ahead(stream, seen, micro_step)
                    _, expected = plain(stream, seen, micro_step)
                    assert torch.equal(found.labels, expected.labels)
                    assert (found.images is None) == (stream == GENERATOR)
                    if found.images is not None:
                        assert torch.equal(found.images, expected.images)
        source.close()
        ahead.close()


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 12), (2, 3), (3, 6), (4, 2)])
def test_any_workers_get_the_same_images_with_their_labels(opened, images, world_size, micro_batch):
    expected = whole(opened, images, 1, 6, 72)
    found = whole(opened, images, world_size, micro_batch, 72)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.images, expected.images)
    pixels = (found.images * 127.5 + 127.5).round().to(torch.uint8).numpy()
    numbers = numbers_of(pixels)
    assert np.array_equal(pixels, numbered_images(COUNT)[numbers])
    assert np.array_equal(found.labels.argmax(1), LABELS[numbers])


def test_an_epoch_holds_every_image_once_and_with_mirrors_twice(opened, images):
    for xflip in (False, True):
        plan = GroupPlan(30, 6, 30, 1)
        source = opened(images, plan, xflip=xflip)
        seen = range(0, COUNT * (1 + xflip), 30)
        found = torch.cat([batches(source, plan, seen=n).images for n in seen])
        pixels = (found * 127.5 + 127.5).round().to(torch.uint8).numpy()
        have = {image.tobytes() for image in pixels}
        original = numbered_images(COUNT)
        expected = {image.tobytes() for image in original}
        if xflip:
            expected |= {np.ascontiguousarray(image[:, :, ::-1]).tobytes() for image in original}
        assert have == expected
        assert len(pixels) == len(have)


def test_the_generator_and_data_free_runs_touch_no_pixels(opened, images):
    """Not even the files: labels come from the manifest's histogram."""
    for path in images.folder.glob("*.parquet"):
        path.unlink()
    free, adversarial = opened(images, pixels=False), opened(images)
    assert not free.reads
    assert adversarial.reads
    for source, stream in ((free, FAKE_SCORE), (free, GENERATOR), (adversarial, GENERATOR)):
        batch = batches(source, PLAN, stream=stream)
        assert batch.images is None
        assert batch.labels.shape == (24, 3)
        assert not source._readers


def test_labels_follow_the_histogram(opened, images):
    source = opened(images)
    uniform = (torch.arange(COUNT) + 0.5) / COUNT
    batch = source.batch(Pick(uniform, None, GENERATOR))
    assert batch.labels.sum(0).tolist() == np.bincount(LABELS).tolist()
    assert source.labels(torch.tensor([0, COUNT - 1])).tolist() == [0, 2]


# Latents --------------------------------------------------------------------------------------


@pytest.fixture
def latents(at):
    """Mean i and deviation 0.5 for sample i."""
    mean = np.broadcast_to(np.arange(COUNT)[:, None, None, None], (COUNT, 2, 4, 4))
    moments = np.concatenate([mean, np.full_like(mean, 0.5, np.float64)], 1)
    return at("latents", label_dim=3, latent=moments, label=LABELS)


def test_latents_are_drawn_anew_at_each_visit_and_standardised(opened, latents):
    standard = Standard((2.0, 4.0), (1.0, -1.0))
    source = opened(latents, standard=lambda: standard)
    again = opened(latents, GroupPlan(24, 6, 2, 1), standard=lambda: standard)
    found = batches(source, PLAN, seen=0)
    split = batches(again, GroupPlan(24, 6, 2, 1), seen=0)
    assert torch.equal(found.images, split.images)
    scale, bias = (torch.tensor(values)[:, None, None] for values in standard)
    raw = (found.images - bias) / scale
    mean = raw.flatten(1).mean(1).round()  # the noise of 32 values is too small to change it
    noise = (raw - mean[:, None, None, None]) / 0.5
    assert noise.mean().abs() < 0.15
    assert abs(noise.std() - 1) < 0.15
    assert np.array_equal(LABELS[mean.long()], found.labels.argmax(1).numpy())
    visits = torch.cat([batches(source, PLAN, seen=n).images for n in range(0, 360, 24)])
    assert len(np.unique(visits.numpy().round(4), axis=0)) == 360


def test_edm2_standardises_latents_with_its_own_statistics(opened, at):
    moments = np.zeros((COUNT, 8, 4, 4))
    moments[:, :4] = np.array(EDM2_RAW_MEAN)[:, None, None]
    moments[:, 4:] = np.array(EDM2_RAW_STD)[:, None, None]
    store = at("latents", latent=moments)
    network = {"img_resolution": 4, "img_channels": 4, "label_dim": 0}
    config = replace(
        DistillConfig(recipe="r"),
        objective__name="sida",
        data__name="prepared",
        data__source=str(store),
        training__batch_size=48,
        training__group_size=12,
        training__images=10_000,
    )
    teacher = ModelDescription("edm2", network)
    check_data(config, teacher)
    source = data_of(config, teacher).source
    plan = config.group_plan(1)
    found = torch.cat([batches(source, plan, seen=n).images for n in range(0, 480, 48)])
    source.close()
    assert found.mean().abs() < 0.01
    assert abs(found.std() - 0.5) < 0.005


# Prompts --------------------------------------------------------------------------------------

PROMPTS = [f"a picture of {i}" for i in range(COUNT)]


def embed(prompts) -> torch.Tensor:
    """[B, 2, 3], the number in the prompt everywhere."""
    numbers = [float(prompt.rsplit(" ", 1)[1]) for prompt in prompts]
    return torch.tensor(numbers)[:, None, None].expand(-1, 2, 3)


def test_prompts_come_by_position_each_phase_in_its_own_order(opened, at):
    source = opened(at("prompts", prompt=PROMPTS), embed=embed, pixels=False)
    orders = {}
    for stream in (FAKE_SCORE, GENERATOR):
        plan = PLAN
        texts = [batches(source, plan, stream=stream, seen=n).text for n in range(0, 96, 24)]
        orders[stream] = torch.cat(texts)[:COUNT, 0, 0].tolist()
        assert sorted(orders[stream]) == list(range(COUNT))
    assert orders[FAKE_SCORE] != orders[GENERATOR]
    assert source.shape == SHAPE


def test_prompts_belong_to_their_images(opened, at):
    store = at("images", image=numbered_images(COUNT), prompt=PROMPTS)
    source = opened(store, embed=embed)
    batch = batches(source, PLAN)
    pixels = (batch.images * 127.5 + 127.5).round().to(torch.uint8).numpy()
    assert np.array_equal(numbers_of(pixels), batch.text[:, 0, 0].long().numpy())
    assert batches(source, PLAN, stream=GENERATOR).images is None


def test_embeddings_of_the_teachers_own_encoder_are_taken(opened, at):
    text = np.arange(COUNT)[:, None, None] + np.full((COUNT, 2, 3), 0.25)
    store = at("prompts", prompt=PROMPTS, text=text, text_sha256="ours")
    for sha256, part in (("ours", 0.25), ("another", 0.0)):
        source = opened(store, embed=embed, encoder=lambda s=sha256: s, pixels=False)
        assert torch.equal(batches(source, PLAN).text % 1, torch.full((24, 2, 3), part))
        index = torch.tensor([5, 80, 5, 17])
        assert source.text(index)[:, 1, 1].tolist() == [i + part for i in index.tolist()]
    alone = at("prompts", text=text, text_sha256="ours")
    with pytest.raises(UserError, match="its embeddings are another encoder's"):
        opened(alone, embed=embed, encoder=lambda: "another", pixels=False)


# What does not fit ----------------------------------------------------------------------------


def config_of(store, name="prepared", **changes) -> DistillConfig:
    source = str(store) if store else ""
    config = replace(DistillConfig(recipe="r"), data__name=name, data__source=source)
    return replace(config, teacher__source="somewhere", **changes)


def teacher_of(**changes) -> ModelDescription:
    return ModelDescription("edm", TINY.to_json() | {"img_channels": 3, "label_dim": 3} | changes)


def test_what_fits_is_accepted(images):
    for objective in ("sid", "sida"):
        config = config_of(images, objective__name=objective, data__xflip=True)
        check_data(config, teacher_of())
        check_data(config, teacher_of(label_dim=0))


@pytest.mark.parametrize(
    ("kind", "teacher", "changes", "words"),
    [
        ("images", {"label_dim": 10}, {}, "has 10 classes, data set 'prepared' has 3"),
        ("images", {"label_dim": 2}, {}, "has 2 classes, data set 'prepared' has 3"),
        ("images", {"img_resolution": 16}, {}, "16 pixels a side, data set 'prepared' has 8"),
        ("images", {}, {"data__name": "cifar10"}, r"cifar10 is \[3, 32, 32\] with 10"),
        ("images", {}, {"data__name": "prompts"}, "holds images without prompts"),
        ("latents", {}, {"data__xflip": True}, "data.xflip mirrors images"),
        (
            "latents",
            {"img_channels": 2, "img_resolution": 4},
            {"objective__name": "sida"},
            "holds latents; teacher somewhere is of pixels",
        ),
        ("", {}, {}, r"data\.source is empty"),
        ("", {}, {"data__name": "digits", "data__xflip": True}, "data.xflip is for prepared sets"),
        ("labels", {}, {"objective__name": "sida"}, "sid-ray data prepare .* --data.source"),
    ],
)
def test_what_does_not_fit_is_named(at, images, latents, kind, teacher, changes, words):
    stores = {"images": images, "latents": latents, "": None}
    if kind == "labels":
        stores["labels"] = at("labels", label_dim=3, label=LABELS)
    with pytest.raises(UserError, match=words) as raised:
        check_data(config_of(stores[kind], **changes), teacher_of(**teacher))
    assert "\n" not in str(raised.value)


def test_a_place_without_a_set_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(UserError, match="sid-ray data prepare"):
            check_data(config_of(place), teacher_of())


def test_a_fingerprint_is_of_the_samples_wherever_they_lie(at, tmp_path):
    one, two = (at("labels", label_dim=3, label=LABELS) for _ in range(2))
    other = at("labels", label_dim=3, label=LABELS[::-1])
    found = [
        data_fingerprint(DataConfig(name="prepared", source=str(s))) for s in (one, two, other)
    ]
    assert found[0] == found[1] != found[2]
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n")
    data = DataConfig(name="prompts", source=str(path))
    before = data_fingerprint(data)
    path.write_text("a dog\n")
    assert data_fingerprint(data) != before
    assert data_fingerprint(DataConfig(name="digits")) == ""
    assert config_of(one).identity() == config_of(two).identity()


def test_nothing_is_made_of_nothing():
    assert Decoded().take(np.arange(3)) == Decoded()
