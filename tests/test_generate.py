"""sid-ray generate: pictures that depend on their seed alone."""

import hashlib

import pytest
from PIL import Image

from sid_ray.errors import UserError
from sid_ray.generate import generate_pictures
from sid_ray.weights.sources import resolve_source
from tests.test_checkpoint import write


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write(folder, 64)
    return folder


def digests(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("seed*.png")}


def test_the_same_seed_gives_the_same_picture_in_any_call(run, tmp_path):
    generate_pictures(run, range(12), range(10), (), tmp_path / "a", batch=8)
    generate_pictures(run, [11, 3], range(10), (), tmp_path / "b", batch=8)
    all_of_them, some = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert len(all_of_them) == 12
    assert len(set(all_of_them.values())) == 12
    assert some == {name: all_of_them[name] for name in ("seed000003.png", "seed000011.png")}


def test_pictures_and_grid_have_their_sizes(run, tmp_path):
    generate_pictures(run, range(12), None, (), tmp_path, batch=8)
    with Image.open(tmp_path / "seed000000.png") as picture:
        assert picture.size == (8, 8)
        assert picture.mode == "L"
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (10 * 41, 2 * 41)


def test_wrong_classes_and_networks_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="--labels holds 10; the network knows 0-9"):
        generate_pictures(run, [0], [10], (), tmp_path, batch=1)
    teacher = resolve_source("builtin:digits-teacher")
    with pytest.raises(UserError, match="not a one-step generator"):
        generate_pictures(teacher, [0], None, (), tmp_path, batch=1)
