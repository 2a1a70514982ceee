"""sid-ray generate: pictures that depend on their seed alone."""

import dataclasses
import gc
import hashlib
import json
import re
import shutil
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import sid_ray
from sid_ray.commands.arguments import number_list, without_repeats
from sid_ray.commands.generate import Painter, claimed, generate, generate_pictures
from sid_ray.commands.generate_options import GenerateOptions
from sid_ray.config.distill_config import replace
from sid_ray.denoisers.edm2 import EDM2Denoiser
from sid_ray.errors import UserError
from sid_ray.evaluation import judge
from sid_ray.evaluation.pictures import PictureWriter
from sid_ray.evaluation.samplers import Inputs
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import generator_description
from sid_ray.weights.components import Named
from sid_ray.weights.description import ModelDescription, save_model
from sid_ray.weights.folder import load_model
from sid_ray.weights.sources import resolve_source
from tests.checkpoint.test_manifest import write
from tests.denoisers.tiny_pipeline import write_pipeline
from tests.support.networks import TINY_EDM2


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


class Doubling:
    """A codec whose pictures have three channels and twice the size."""

    def decode_uint8(self, latents):
        pixels = latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)
        return (pixels * 127.5 + 128).clip(0, 255).to(torch.uint8)


@pytest.fixture
def latents(tmp_path):
    """A generator of latents [4, 8, 8], which names no teacher."""
    network = dataclasses.replace(TINY_EDM2, img_channels=4, label_dim=0)
    weights = EDM2Denoiser(network).state_dict()
    description = ModelDescription("edm2", network.to_json(), {"sigma": 2.5})
    save_model(tmp_path / "latents", weights, description)
    return tmp_path / "latents"


def test_latents_are_decoded(latents, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    asked = []

    def open_vae(source, convention, device, precision):
        asked.append((source, convention))
        return Doubling()

    monkeypatch.setattr(judge, "open_vae", open_vae)
    decoder = tmp_path / "decoder"
    write_pipeline(decoder)
    generate_pictures(latents, range(3), None, (), tmp_path / "a", 2, Named(vae=str(decoder)))
    shutil.copytree(decoder / "vae", latents / "vae")  # its own
    generate_pictures(latents, range(3), None, (), tmp_path / "b", 2)
    assert asked == [(str(decoder / "vae"), "edm2"), (str(latents), "edm2")]
    with Image.open(tmp_path / "a" / "seed000000.png") as picture:
        assert (picture.size, picture.mode) == ((16, 16), "RGB")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_latents_without_a_decoder_are_refused(latents, tmp_path):
    with pytest.raises(UserError, match=r"makes latents: .*--vae FOLDER"):
        generate_pictures(latents, [0], None, (), tmp_path / "a", batch=1)
    assert not (tmp_path / "a").exists()


@pytest.fixture
def text_generator(tmp_path):
    """A generator of a SiD-LSG run whose teacher was a file, with the text encoder elsewhere."""
    pytest.importorskip("diffusers")
    write_pipeline(tmp_path / "parts")
    net, described = load_model(tmp_path / "parts")
    config = replace(
        recipe("emoji-lsg"),
        teacher__source=str(tmp_path / "lsg.pkl"),
        teacher__text_encoder=str(tmp_path / "parts"),
        teacher__vae=str(tmp_path / "parts"),
    )
    save_model(tmp_path / "net", net.state_dict(), generator_description(config, described))
    return tmp_path / "net"


def test_the_generator_of_python_reads_text(text_generator, tmp_path):
    generator = sid_ray.load_generator(text_generator, batch=2)
    assert generator.reads_text and not generator.classes
    cat, hat = generator([1, 1], prompts=["a cat", "a hat"])
    assert not torch.equal(cat, hat)
    assert torch.equal(generator([1], prompts="a cat")[0], cat)
    with pytest.raises(UserError, match="reads text: give prompts"):
        generator([1])
    with pytest.raises(UserError, match="reads text, no classes"):
        generator([1], labels=1, prompts="a cat")
    moved = (tmp_path / "parts").rename(tmp_path / "moved")
    named = sid_ray.load_generator(text_generator, batch=2, text_encoder=moved, vae=moved)
    assert torch.equal(named([1], prompts="a cat")[0], cat)


def test_a_generator_finds_the_text_encoder_and_vae_of_its_run(text_generator, tmp_path):
    """By what its model.json notes, or where they are named: they may have moved."""
    generate_pictures(text_generator, [1], None, ["a cat"], tmp_path / "a", 1)
    moved = (tmp_path / "parts").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"reads text .*parts.*: give --text-encoder FOLDER"):
        generate_pictures(text_generator, [1], None, ["a cat"], tmp_path / "b", 1)
    named = Named(str(moved), str(moved))
    generate_pictures(text_generator, [1], None, ["a cat"], tmp_path / "b", 1, named)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def told_lines(run, out, *args, **kwargs) -> list[tuple[int, int]]:
    """What generate_pictures says of its progress."""
    said = []
    generate_pictures(run, *args, out=out, tell=lambda *pair: said.append(pair), **kwargs)
    return said


def test_pictures_come_as_they_are_made_and_a_cut_command_goes_on(run, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    said = told_lines(run, whole, range(20), None, (), batch=8)
    assert said == [(0, 20), (8, 20), (16, 20), (20, 20)]
    out, calls = tmp_path / "out", []
    images = Painter.images

    def cut(self, seeds):
        calls.append(list(seeds))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return images(self, seeds)

    monkeypatch.setattr(Painter, "images", cut)
    with pytest.raises(KeyboardInterrupt):
        generate_pictures(run, range(20), None, (), out, batch=8)
    assert len(digests(out)) == 16
    first = (out / "seed000000.png").stat().st_mtime_ns
    (out / "seed000003.png").write_bytes((out / "seed000003.png").read_bytes()[:40])
    flipped = bytearray((out / "seed000005.png").read_bytes())
    flipped[50] ^= 1
    (out / "seed000005.png").write_bytes(flipped)
    said = told_lines(run, out, range(20), None, (), batch=8)
    assert said[0] == (16, 20) and said[-1] == (20, 20)
    assert calls[3:] == [[3, 5, 16, 17, 18, 19]]
    assert (out / "seed000000.png").stat().st_mtime_ns == first
    assert digests(out) == digests(whole)
    assert (out / "grid.png").read_bytes() == (whole / "grid.png").read_bytes()
    assert not list(out.glob("*.part"))


def test_no_batch_is_held_once_its_pictures_are_written(run, tmp_path, monkeypatch):
    batches, alive = [], []

    class Painted(Painter):
        def images(self, seeds):
            gc.collect()
            alive.append(sum(batch() is not None for batch in batches))
            images = torch.zeros(len(seeds), 1, 2, 2, dtype=torch.uint8)
            batches.append(weakref.ref(images))
            return images

    monkeypatch.setattr("sid_ray.commands.generate.Painter", Painted)
    generate_pictures(run, range(640), None, (), tmp_path / "a", batch=64)
    assert len(batches) == 10
    assert max(alive) <= 1, alive  # the last one may wait for its writer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 4}, "made with batch 8, now 4"),
        ({"classes": [1, 2]}, "made with labels null, now [1, 2]"),
    ],
)
def test_pictures_of_other_settings_are_never_mixed(run, tmp_path, change, words):
    usual = {"classes": None, "prompts": (), "batch": 8}
    generate_pictures(run, range(9), out=tmp_path, **usual)
    before = digests(tmp_path)
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        generate_pictures(run, range(4), out=tmp_path, **usual | change)
    assert "--overwrite" in str(refused.value)
    assert digests(tmp_path) == before
    generate_pictures(run, range(4), out=tmp_path, overwrite=True, **usual | change)
    assert len(digests(tmp_path)) == 4


def test_pictures_of_an_unknown_or_another_generator_are_never_mixed(run, latents, tmp_path):
    generate_pictures(run, range(2), None, (), tmp_path / "out", batch=2)
    record = tmp_path / "out" / "generated.json"
    kept = record.read_text()
    record.unlink()
    with pytest.raises(UserError, match="of an unknown generator"):
        generate_pictures(run, range(2), None, (), tmp_path / "out", batch=2)
    found = json.loads(kept)
    found["made_of"]["weights_sha256"] = "0" * 64
    record.write_text(json.dumps(found))
    with pytest.raises(UserError, match="of another generator"):
        generate_pictures(run, range(2), None, (), tmp_path / "out", batch=2)


def test_places_that_are_no_folder_for_pictures_are_refused(run, tmp_path):
    (tmp_path / "file").touch()
    for out, words in ((tmp_path / "file", "is a file"), (run / "x", "holds run.json")):
        if out.name == "x":
            out.mkdir()
            (out / "run.json").touch()
        with pytest.raises(UserError, match=words):
            generate_pictures(run, range(2), None, (), out, batch=2)


def test_two_commands_never_mix_their_pictures(run, tmp_path):
    out = tmp_path / "out"
    made_of = {"batch": 2}
    with claimed(out, made_of, "one", overwrite=False), claimed(out, made_of, "one", False):
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another command is writing pictures"):
                generate_pictures(run, range(2), None, (), out, batch=2, overwrite=overwrite)
    assert not digests(out)
    generate_pictures(run, range(2), None, (), out, batch=2)
    assert len(digests(out)) == 2


def test_a_place_below_a_file_is_refused_with_what_helps(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory: name a folder that can be written"):
        generate_pictures(run, range(2), None, (), tmp_path / "file" / "x", batch=2)


def test_pictures_of_a_gpu_say_so_and_those_of_a_cpu_are_as_before(run):
    """Folders of earlier versions, which know no device, go on."""
    assert "device" not in Painter(run, None, (), 8).made_of()
    painter = Painter(run, None, (), 8)
    painter.device = torch.device("cuda")
    assert painter.made_of()["device"] == "cuda"


def test_noise_is_drawn_on_the_cpu_and_pictures_come_back_to_it(run, monkeypatch):
    """So a seed's noise is the same on every device."""
    moved, painter = [], Painter(run, None, (), 4)

    def to(self, device):
        moved.append((self.latents.device.type, device))
        return self

    monkeypatch.setattr(Inputs, "to", to)
    assert painter.images(range(3)).device.type == "cpu"
    assert moved == [("cpu", painter.device)]


def test_a_gpu_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"^--device cuda: no NVIDIA driver.*run on CPUs$"):
        generate(GenerateOptions(str(run), out=tmp_path / "x", device="cuda"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("beside", [False, True])
def test_pictures_are_the_same_whoever_writes_them(tmp_path, beside):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    with PictureWriter(beside) as writer:
        writer.write(images[:3], [tmp_path / f"{n}.png" for n in range(3)])
        writer.write(images[3:], [tmp_path / f"{n}.png" for n in (3, 4)])
        assert writer.written == (3 if beside else 5)
    assert writer.written == 5
    for number, image in enumerate(images):
        with Image.open(tmp_path / f"{number}.png") as picture:
            assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), image)
    (tmp_path / "file").touch()
    with pytest.raises(OSError), PictureWriter(beside) as writer:
        writer.write(images[:1], [tmp_path / "file" / "0.png"])


def test_a_seed_that_stands_twice_is_one_picture():
    for text, seeds in (("1,1,2", [1, 2]), ("5,3-8,0-9", [5, 3, 4, 6, 7, 8, 0, 1, 2, 9])):
        assert list(without_repeats(number_list(text, "seeds"))) == seeds
