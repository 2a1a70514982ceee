"""A diffusers folder of SD3, FLUX and SANA as a run opens it: network, prompts, auto-encoder."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.data.encode import plan_text
from sid_ray.denoisers import flow_prompts, stored_text
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.training.assemble import data_of, find_start
from sid_ray.types import Condition, Pick
from sid_ray.weights.components import fingerprint_of_text, open_text, open_vae
from sid_ray.weights.networks import load
from tests.denoisers.tiny_flow import write_flow_pipeline

FAMILIES = ("sd3", "flux", "sana")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flow_prompts, "instruction", lambda: "longer: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("made")
    for name in FAMILIES:
        write_flow_pipeline(home / name, name)
    return home


def config_for(folder: Path, tmp_path: Path, name: str) -> DistillConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na red dog\n")
    return replace(
        DistillConfig(),
        teacher__source=str(folder),
        data__name="prompts",
        data__source=str(prompts),
        schedule__kind=family_of(name).noise.kind,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_opens_a_whole_folder(made, tmp_path, name):
    config = config_for(made / name, tmp_path, name)
    start = find_start(config)
    family = family_of(start.description.family)
    assert (family.name, start.components.text) == (name, made / name)
    data = data_of(config, start.description, start.components)
    batch = data.source.batch(Pick(torch.tensor([0.1, 0.9])))
    assert batch.text.shape == (2, *data.null_text.shape)
    assert len({row.sum().item() for row in (*batch.text, data.null_text)}) == 3
    net, _ = load(str(made / name))
    latents = torch.randn(2, *family.shape(start.description.network))
    schedule = family.noise.schedule(config.schedule)
    level = schedule.step_level(0, 1, 2, latents)
    with torch.no_grad():
        found = net(latents, level, Condition(text=batch.text)).x0
        other = net(latents, level, Condition(text=batch.text.flip(0))).x0
    assert found.shape == latents.shape and not torch.allclose(found, other)
    codec = open_vae(str(start.components.vae), family.latent_convention().name, "cpu")
    assert codec.decode_uint8(found).shape == (2, 3, *codec.picture_shape(latents.shape[1:])[1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_prepared_prompts_are_read_by_the_next_process(made, tmp_path, name, monkeypatch):
    """No encoder is opened by it: its weights need not even be there."""
    config = config_for(made / name, tmp_path, name)
    start = find_start(config)
    first = data_of(config, start.description, start.components)
    prompts = type(family_of(name).prompts())
    monkeypatch.setattr(prompts, "open", None)
    again = data_of(config, start.description, start.components)
    pick = Pick(torch.tensor([0.1, 0.9]))
    assert torch.equal(again.source.batch(pick).text, first.source.batch(pick).text)
    assert torch.equal(again.null_text, first.null_text)


def test_encoders_are_loaded_by_one_process_of_a_machine_at_a_time(made, tmp_path, monkeypatch):
    """Eight workers that each load T5-XXL at once need eight times its memory."""
    config = config_for(made / "flux", tmp_path, "flux")
    start, opened = find_start(config), []
    encoders, lock, held = type(family_of("flux").prompts()), stored_text.locked, []
    open_encoders = encoders.open

    @contextmanager
    def locked(path):
        with lock(path):
            held.append(path)
            yield
            held.clear()

    def opening(*args):
        opened.append(len(held))
        return open_encoders(*args)

    monkeypatch.setattr(stored_text, "locked", locked)
    monkeypatch.setattr(encoders, "open", opening)
    data_of(config, start.description, start.components)
    assert opened == [1]


@pytest.mark.parametrize("name", FAMILIES)
def test_preparation_knows_the_shape_before_it_loads_encoders(made, name, monkeypatch):
    family = family_of(name)
    with monkeypatch.context() as patch:
        patch.setattr(type(family.prompts()), "open", None)
        shape = plan_text(str(made / name)).shape
    assert shape == family.load_text(made / name).null().shape


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_preparation_embeds_in_the_precision_of_runs(made, monkeypatch, device, dtype):
    found = []

    def open_encoders(self, folder, device, dtype, layout):
        found.append(dtype)
        return lambda prompts: torch.zeros(len(prompts), *layout.shape)

    monkeypatch.setattr(type(family_of("sana").prompts()), "open", open_encoders)
    open_text.__wrapped__(str(made / "sana"), device).open_encoders()
    assert found == [dtype]


def test_a_run_says_that_its_prompts_have_no_room(made, tmp_path, monkeypatch, capsys):
    config = config_for(made / "sana", tmp_path, "sana")
    start = find_start(config)
    monkeypatch.setenv(stored_text.CAP, str(2**-20))
    told: list[str] = []
    data_of(config, start.description, start.components, tell=told.append)
    data_of(config, start.description, start.components)  # an evaluation
    assert [line.partition(" prompts")[0] for line in told] == ["embeddings of 3"]
    assert capsys.readouterr().err.count("embeddings of 3 prompts take 1 GiB") == 1


def test_a_folder_that_lacks_an_encoder_is_refused_before_the_run(made, tmp_path):
    folder = Path(shutil.copytree(made / "flux", tmp_path / "flux"))
    found = [find_start(config_for(at, tmp_path, "flux")) for at in (folder, made / "flux")]
    first, second = (fingerprint_of_text(start.components, "flux") for start in found)
    assert first == second
    (folder / "tokenizer_2" / "tokenizer.json").write_text("{}")
    assert fingerprint_of_text(found[0].components, "flux") != first
    with pytest.raises(UserError, match=r"tokenizer_2 does not hold a T5 tokenizer"):
        find_start(config_for(folder, tmp_path, "flux"))
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(UserError, match=r"no T5EncoderModel in .*text_encoder_2"):
        find_start(config_for(folder, tmp_path, "flux"))
