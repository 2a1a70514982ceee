"""An adapter finds what it lies over, and says it where that is another base or not there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from sid_ray.checkpoint.manifest import MANIFEST
from sid_ray.checkpoint.warm_start import check_donor_adapters
from sid_ray.cli import main
from sid_ray.commands.generate import OneStepNetwork
from sid_ray.config.distill_config import DistillConfig
from sid_ray.config.distill_config import replace as changed
from sid_ray.denoisers.adapters import Adapter
from sid_ray.denoisers.edm import EDMDenoiser
from sid_ray.errors import UserError
from sid_ray.evaluation.blocks import Bench, Job
from sid_ray.evaluation.subject import find_subject
from sid_ray.types import Condition
from sid_ray.weights.base import BASE
from sid_ray.weights.description import ModelDescription, read_description, save_model
from sid_ray.weights.folder import load_model
from sid_ray.weights.networks import load_path
from sid_ray.weights.over_base import check_start, network_of_tensors, tensors_of
from sid_ray.weights.sources import resolve_source
from tests.checkpoint.test_manifest import write
from tests.denoisers.tiny_flow import write_flow_pipeline
from tests.denoisers.tiny_pipeline import write_pipeline
from tests.support import ldm_files as ldm
from tests.support.checkpoints import read_manifest
from tests.support.networks import TINY
from tests.weights.adapters import write_adapter

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def base(tmp_path) -> Path:
    write_pipeline(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    write_adapter(tmp_path / "run" / "model", base)
    return tmp_path / "run" / "model"


def tuned(base: Path, folder: Path) -> Path:
    """A fine-tune: the same network with other weights."""
    shutil.copytree(base, folder)
    weights = load_file(folder / WEIGHTS)
    save_file({name: 1.01 * value for name, value in weights.items()}, folder / WEIGHTS)
    return folder


def images_of(network: torch.nn.Module, description: ModelDescription) -> torch.Tensor:
    from sid_ray.training.assemble import generation_of

    rng = torch.Generator().manual_seed(0)
    schedule, _ = generation_of(description)
    text = torch.randn(2, 77, 24, generator=rng)
    x_t = torch.randn(2, 4, 16, 16, generator=rng)
    return network(x_t, schedule.step_level(0, 1, 2, x_t), Condition(text=text)).x0


def refused(capsys, *arguments: str) -> str:
    """The line of a command that the user has to mend."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    found = capsys.readouterr().err.strip()
    assert len(found.splitlines()) == 1, found
    return found


@torch.no_grad()
def test_a_moved_base_is_named_and_gives_the_same_images(base, adapter, tmp_path, capsys):
    first = images_of(*load_model(adapter))
    base.rename(tmp_path / "moved")
    line = refused(capsys, "generate", str(adapter), "--prompt", "a cat", "--out", "o")
    assert "is an adapter; its base: no network at" in line and "--base" in line
    found = images_of(*load_model(adapter, base=tmp_path / "moved"))
    assert torch.equal(found, first)
    assert not capsys.readouterr().err, "the same base elsewhere is nothing to say"


@torch.no_grad()
def test_a_fine_tune_is_said_and_not_refused(base, adapter, tmp_path, capsys):
    """With its own text encoder and VAE, of which one note of the run knows nothing."""
    other = tuned(base, tmp_path / "tuned")
    generator = OneStepNetwork(adapter, 2, base=str(other))
    assert (generator.components.text, generator.components.vae) == (other, other)
    _ = generator.sampler
    line = capsys.readouterr().err
    assert "has other weights (sha256" in line and len(line.splitlines()) == 1
    assert not torch.equal(
        images_of(*load_model(adapter, base=other)), images_of(*load_model(adapter))
    )
    over_own = OneStepNetwork(adapter, 2)
    assert over_own.components.text == base


def test_a_base_that_changed_since_is_said(base, adapter, capsys):
    weights = load_file(base / WEIGHTS)
    save_file({name: 1.01 * value for name, value in weights.items()}, base / WEIGHTS)
    load_model(adapter)
    assert "has other weights (sha256" in capsys.readouterr().err


def test_what_cannot_be_a_base_is_refused(base, adapter, tmp_path, capsys):
    asked = ("generate", str(adapter), "--prompt", "a cat", "--out", "o", "--base")
    assert "is an adapter of" in refused(capsys, *asked, "builtin:digits-teacher")
    write_pipeline(tmp_path / "wide", block_out_channels=(8, 24))
    assert "block_out_channels" in refused(capsys, *asked, str(tmp_path / "wide"))
    assert "no network at" in refused(capsys, *asked, str(tmp_path / "nowhere"))
    assert "is an adapter, no base" in refused(capsys, *asked, str(adapter))
    network, own = load_path(base)
    whole = tmp_path / "whole"
    save_model(whole, network.state_dict(), replace(own, one_step={"timestep": 625}))
    line = refused(capsys, "generate", str(whole), "--base", str(base), "--out", "o")
    assert "is a whole network" in line
    text = (adapter / "model.json").read_text().replace('"teacher"', '"pupil"')
    (adapter / "model.json").write_text(text)
    assert "does not say of which base" in refused(capsys, *asked[:-1])


def test_a_base_with_other_heads_of_training_is_refused(tmp_path):
    """No image depends on them, but the adapter's network has them: its file fits no other."""
    for name, augment_dim in (("base", 0), ("augmented", 9)):
        network = replace(TINY, augment_dim=augment_dim)
        described = ModelDescription("edm", network.to_json())
        save_model(tmp_path / name, EDMDenoiser(network).state_dict(), described)
    for name, other in (("base", "augmented"), ("augmented", "base")):
        adapter = tmp_path / f"over-{name}"
        write_adapter(adapter, tmp_path / name)
        load_model(adapter)
        with pytest.raises(UserError, match=r"augment_dim \d.* is an edm network with augment_dim"):
            load_model(adapter, base=tmp_path / other)


@pytest.mark.parametrize(("there", "here"), [("float32", "8bit"), ("8bit", "float32")])
def test_an_adapter_over_a_base_held_otherwise_is_no_start(there, here, tmp_path):
    """A and B belong to the numbers that they were trained to change."""
    adapter = Adapter(4, 4.0, ("to_q",))
    teacher = ModelDescription("sd3", {}, notes={BASE: "a" * 64})
    start = replace(teacher, adapter=adapter.to_json() | {"base": there})
    check_start("run", start, adapter, teacher, there)
    advice = "auto" if there == "float32" else there
    words = f"held in {there}, this run's is held in {here}: set adapter.base {advice}, or"
    with pytest.raises(UserError, match=words):
        check_start("run", start, adapter, teacher, here)


def test_a_donor_over_a_base_held_otherwise_is_refused(tmp_path):
    def config(base: str, precision: str = "bfloat16") -> DistillConfig:
        return changed(
            DistillConfig(), adapter__rank=4, adapter__base=base, training__precision=precision
        )

    folder, _, _ = write(tmp_path, 192)
    manifest = read_manifest(folder)

    def check(theirs: DistillConfig, own: DistillConfig) -> None:
        (folder / MANIFEST).write_text(replace(manifest, config=theirs.to_json()).to_json())
        check_donor_adapters(str(folder), own)

    check(config("8bit"), config("8bit"))
    check(config("auto"), config("bfloat16"))  # which it computes in
    for theirs, own in ((config("8bit"), config("auto")), (config("auto"), config("8bit"))):
        with pytest.raises(
            UserError, match=r"its adapter\.base is '.*', this run's is '.*': a run"
        ):
            check(theirs, own)
    with pytest.raises(UserError, match=r"adapter\.base is 'float32', this run's is 'bfloat16'"):
        check(config("auto"), config("bfloat16", "float32"))


def test_a_relative_teacher_is_looked_for_from_here(base, tmp_path, capsys, monkeypatch):
    write_adapter(tmp_path / "run" / "model", base, notes={"teacher": "base"})
    load_model(tmp_path / "run" / "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = ("generate", str(tmp_path / "run" / "model"), "--prompt", "a cat", "--out", "o")
    assert "no network at base" in refused(capsys, *asked)


def test_a_teacher_in_one_file_predicts_what_the_adapter_was_made_for(tmp_path):
    """A file of version 2 does not say it: the run was told."""
    unet = ldm.make_unet(ldm.SD2)
    tensors = ldm.with_upsamplers(ldm.ldm_unet(unet)) | ldm.ldm_open_clip(
        ldm.make_text(1024, "gelu")
    )
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "v2.safetensors")
    made = tmp_path / "model"
    notes = {"teacher": str(tmp_path / "v2.safetensors")}
    write_adapter(made, resolve_source(notes["teacher"], "v_prediction"), notes=notes)
    network, description = load_model(made)
    assert network.prediction_type == description.network["prediction_type"] == "v_prediction"


@torch.no_grad()
def test_a_teacher_of_another_size_is_laid_out_at_the_adapters(tmp_path):
    """A run at teacher.resolution notes the size in its network, and the teacher as it is."""
    write_flow_pipeline(tmp_path / "base", "sana")
    write_adapter(tmp_path / "model", tmp_path / "base")
    own = read_description(tmp_path / "model")
    larger = replace(own, network={**own.network, "latent_size": 16})
    (tmp_path / "model" / "model.json").write_text(larger.to_json())
    network, description = load_model(tmp_path / "model")
    assert description.network["latent_size"] == 16
    assert network.state_dict().keys() == load_model(tmp_path / "model")[0].state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("source", ["builtin:digits-teacher", "builtin:emoji-teacher"])
def test_other_processes_compute_the_same(source, tmp_path):
    """Evaluation hands a network to actors as tensors: an adapter's with its base, to the bit."""
    folder = resolve_source(source)
    made = write_adapter(tmp_path / "model", folder)
    network, description = load_model(tmp_path / "model")
    tensors = tensors_of(network)
    found = network_of_tensors(description, tensors)
    assert not any(value.is_meta for value in (*found.parameters(), *found.buffers()))
    for one, other in ((network, found), (network, made)):
        values = tensors_of(other)
        assert values.keys() == tensors.keys()
        assert all(torch.equal(value, values[name]) for name, value in tensors_of(one).items())
    whole, own = load_path(folder)
    again = network_of_tensors(own, tensors_of(whole)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.state_dict().items())


def test_scores_over_another_base_are_others(tmp_path, capsys):
    """Blocks are kept by the base, too, and scores over another one are not told the run."""
    digits = resolve_source("builtin:digits-teacher")
    write_adapter(tmp_path / "model", digits)
    network, own = load_path(digits)
    tuned = {name: 1.01 * value for name, value in network.state_dict().items()}
    save_model(tmp_path / "tuned", tuned, own)
    keys = set()
    for named in ("", str(tmp_path / "tuned"), str(digits)):
        subject = find_subject(str(tmp_path / "model"), named)
        job = Job(subject, changed(DistillConfig(), evaluation__feature_space="digits-cnn"), True)
        assert job.about()["base_sha256"] == subject.base_sha256
        bench = Bench(job, load_model(subject.network, base=subject.base)[0])
        keys.add((bench.key("cpu"), subject.base_sha256))
    assert len(keys) == 2
    assert "base_sha256" not in Job(find_subject(str(digits)), DistillConfig()).about()
