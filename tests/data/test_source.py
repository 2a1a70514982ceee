"""Data sets as a training step sees them."""

from __future__ import annotations

import pytest
import torch

from sid_ray.config.sections import DataConfig
from sid_ray.data.source import LABELS_ONLY, DataSource, open_source, read_prompts
from sid_ray.errors import UserError
from sid_ray.types import Batch, Pick

SHAPE = (4, 16, 16)


def embed(prompts) -> torch.Tensor:
    """[B, 2, 3], the prompt's length everywhere."""
    return torch.tensor([float(len(p)) for p in prompts])[:, None, None].expand(-1, 2, 3)


def test_prompts_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  two dogs  \r\n\ta naïve café\n", encoding="utf-8")
    source = open_source(DataConfig(name="prompts", source=str(path)), SHAPE, embed)
    assert source.prompts == ("a cat", "two dogs", "a naïve café")
    assert source.shape == SHAPE
    assert len(source) == 3
    batch = source.batch(Pick(torch.tensor([0.0, 0.5, 0.99])))
    assert batch.text.shape == (3, 2, 3)
    assert batch.text[:, 0, 0].tolist() == [5, 8, 12]
    assert batch.labels is None
    assert batch.images is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "holds no prompts"),
        (b"\n  \n", "holds no prompts"),
        (b"\xff\xfe\x00caf\xe9", "not UTF-8"),
    ],
    ids=["missing", "empty", "blank", "binary"],
)
def test_a_file_without_prompts_is_named(tmp_path, content, words):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as raised:
        open_source(DataConfig(name="prompts", source=str(path)), SHAPE)
    assert str(path) in str(raised.value)


def test_a_folder_and_nothing_are_no_prompts(tmp_path):
    with pytest.raises(UserError, match="irectory"):
        read_prompts(str(tmp_path))
    with pytest.raises(UserError, match=r"data\.source is empty"):
        read_prompts("")


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("a cat")
    assert read_prompts("~/p.txt") == ("a cat",)


@pytest.mark.parametrize("name", LABELS_ONLY)
def test_sets_of_labels_alone_draw_classes_evenly(name):
    source = open_source(DataConfig(name=name), SHAPE)
    shape, label_dim = LABELS_ONLY[name]
    assert source.shape == shape, "the set's own, not the teacher's"
    count = 2 * max(label_dim, 1)
    batch = source.batch(Pick((torch.arange(count) + 0.5) / count))
    assert batch.images is None
    assert batch.text is None
    if not label_dim:
        assert batch.labels is None
        return
    assert batch.labels.shape == (count, label_dim)
    assert torch.equal(batch.labels.sum(0), torch.full((label_dim,), 2.0))
    assert torch.equal(batch.labels.sum(1), torch.ones(count))


def test_digits_give_each_image_its_own_label():
    source = open_source(DataConfig(name="digits"), SHAPE)
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(0))
    batch = source.batch(Pick(uniform))
    index = source.index(uniform)
    assert batch.images.shape == (200, 1, 8, 8)
    assert torch.equal(batch.images, source.images[index])
    assert torch.equal(batch.labels.argmax(1), source.classes[index])


def test_every_sample_can_be_drawn_and_none_beyond():
    """Also by the largest float32 below one, where len * uniform rounds up in float32."""
    source = DataSource((1, 1, 1), prompts=[str(i) for i in range(2**20)])
    last = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))
    assert source.index(torch.cat([torch.zeros(1), last])).tolist() == [0, 2**20 - 1]
    small = DataSource((1, 1, 1), label_dim=3)
    assert small.index(torch.tensor([0.0, 0.34, 0.67, 1.0])).tolist() == [0, 1, 2, 2]


def test_prompts_without_an_encoder_give_no_text():
    """What is enough to check a teacher against."""
    source = DataSource(SHAPE, prompts=("a", "b"))
    assert source.batch(Pick(torch.tensor([0.1]))) == Batch()
