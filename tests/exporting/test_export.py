"""Exports open without sid_ray and make the generator's images; what goes wrong leaves nothing."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sid_ray.cli import exit_code_of
from sid_ray.commands.export import check_opens
from sid_ray.config.sections import ScheduleConfig
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.exporting import compared, kinds
from sid_ray.exporting.card import base_opened, fenced, in_prose
from sid_ray.exporting.stock_folder import copy_component, copy_tokenizer
from sid_ray.weights.description import ModelDescription, save_model
from sid_ray.weights.licence import Licence, licence_in, licence_of, repository_of
from sid_ray.weights.networks import load_path
from sid_ray.weights.sources import resolve_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write_generator(folder: Path, teacher: str, steps: int = 1, **schedule: Any) -> None:
    """A teacher's own weights, a little moved, as a generator of so many steps."""
    network, own = load_path(resolve_source(teacher))
    noise = family_of(own.family).noise
    one_step = noise.one_step(ScheduleConfig(kind=noise.kind, **schedule)) | {"num_steps": steps}
    torch.manual_seed(1)
    weights = {
        name: value + 0.05 * value.abs().mean() * torch.randn_like(value)
        for name, value in network.state_dict().items()
    }
    notes = {"teacher": teacher}
    save_model(folder, weights, ModelDescription(own.family, own.network, one_step, notes))


def run_card(folder: Path) -> Image.Image:
    """The picture that the card's own lines make, in a process without sid_ray."""
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = "import sys; sys.modules['sid_ray'] = None\n" + lines
    command = [sys.executable, "-I", "-c", code]
    subprocess.run(command, cwd=folder.parent, check=True, capture_output=True)
    (made,) = folder.parent.glob("image*.png")
    picture = Image.open(made)
    picture.load()
    made.unlink()
    return picture


def apart(one: Image.Image, other: Image.Image) -> float:
    """Of two pictures, the mean difference in levels of 8 bits."""
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


@pytest.fixture
def digits(tmp_path) -> Path:
    write_generator(tmp_path / "digits", "builtin:digits-teacher", 2)
    return tmp_path / "digits"


def export(*words: str | Path) -> int:
    return exit_code_of(["export", *map(str, words)])


def test_digits_open_with_their_loader(digits, tmp_path, capsys):
    assert export(digits, "out", "--labels", "0-9", "--seeds", "0-9") == 0
    assert "differ from sid_ray's own images by at most" in capsys.readouterr().out
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "README.md", "generate.py", "grid.png", "model.json", "model.safetensors", "sid_ray.json",
    }  # fmt: skip
    assert json.loads((out / "sid_ray.json").read_text())["largest_difference"] < 1e-5
    card = (out / "README.md").read_text()
    assert 'license: "cc-by-4.0"\n' in card
    assert "`cc-by-4.0`, applies to the weights: Optical Recognition of Handwritten" in card
    assert np.asarray(run_card(out)).std() > 30
    assert not [path for path in tmp_path.iterdir() if "part" in path.name or path.name[0] == "."]


def test_another_network_is_found_out_and_removed(digits, tmp_path, monkeypatch, capsys):
    write = kinds.Loader.write

    def wrong(kind: Any, folder: Path, network: torch.nn.Module) -> None:
        write(kind, folder, network)
        text = (folder / "model.json").read_text()
        (folder / "model.json").write_text(text.replace('"sigma": 2.5', '"sigma": 2.51'))

    monkeypatch.setattr(kinds.Loader, "write", wrong)
    assert export(digits, "out") == 1
    said = capsys.readouterr().err
    assert "more than rounding" in said and "nothing is left in out" in said
    assert not (tmp_path / "out").exists()
    assert export(digits, "out", "--no-check") == 0


def test_a_program_that_fails_is_told_in_a_line(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compared, "OUTSIDE", tmp_path / "nowhere.py")
    assert export(digits, "out") == 1
    assert "does not run by itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_way_stays(digits, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    for words in ((), ("--force",)):
        assert export(digits, mine, "--no-check", *words) == 2
        assert "is no export" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]
    assert export(digits, "out", "--no-check") == 0
    (tmp_path / "out" / "old").touch()
    assert export(digits, "out", "--no-check") == 2
    assert "--force" in capsys.readouterr().err
    assert export(digits, "out", "--no-check", "--force") == 0
    assert not (tmp_path / "out" / "old").exists()


def test_a_full_disk_leaves_the_export_before(digits, tmp_path, monkeypatch, capsys):
    assert export(digits, "out", "--no-check") == 0
    before = (tmp_path / "out" / "README.md").stat().st_mtime_ns

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    monkeypatch.setattr(kinds, "save_model", full)
    assert export(digits, "out", "--no-check", "--force") == 2
    assert "free some" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "out"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fuse",), "no adapter"),
        (("--only-network",), "for pipelines of diffusers"),
        (("--variant", "fp16"), "for pipelines of diffusers"),
        (("--labels", "12"), "the network knows 0-9"),
        (("--seeds", "0-99"), "at most 64"),
        (("--dtype", "int8"), "expected one of"),
    ],
)
def test_what_makes_no_sense_is_refused(digits, tmp_path, words, said, capsys):
    assert export(digits, "out", *words) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_teachers_and_addresses_are_refused(capsys):
    assert export("builtin:digits-teacher", "out") == 2
    assert "not a one-step generator" in capsys.readouterr().err
    assert export("builtin:digits-teacher", "s3://bucket/out") == 2
    assert "on this machine's disk" in capsys.readouterr().err


def test_what_a_base_says_of_itself(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: []\n---\nlicense: no\n")
    assert licence_of("", tmp_path) == Licence("apache-2.0")
    assert licence_of("", tmp_path / "nowhere") == licence_of("", None) == Licence()
    owners = {"digits-teacher": "E. Alpaydin and C. Kaynak"}
    owners |= dict.fromkeys(("emoji-teacher", "emoji-flow"), "Copyright Twitter, Inc and other")
    for name, owner in owners.items():  # whatever lies beside them
        found = licence_of(f"builtin:{name}", tmp_path)
        assert str(found) == "cc-by-4.0" and owner in found.attribution
        assert owner in found.told()
        assert licence_in("\n".join(["---", *found.lines(), "---"])) == found
    other = "---\nlicense: other\nlicense_name: flux-dev\nlicense_link: LICENSE.md\n---\n"
    assert licence_in(other) == Licence("other", "flux-dev")
    found = licence_in(other, "you/big")
    assert found.lines()[2] == (
        'license_link: "https://huggingface.co/you/big/blob/main/LICENSE.md"'
    )
    for rubbish in (
        "",
        "license: mit",
        "---\n[\n---\n",
        "---\nlicense: [a]\n---\n",
        "---\n- a\n---",
    ):
        assert licence_in(rubbish) == Licence()
    assert repository_of("hf://owner/name@v1") == "owner/name"
    assert repository_of("builtin:emoji-teacher") == ""
    assert base_opened("hf://owner/name") == '"owner/name"'
    assert base_opened("hf://owner/name@v1") == '"owner/name", revision="v1"'
    assert base_opened("/home/me/tune") == '"tune"'


def test_nothing_says_where_a_base_was_loaded_from(tmp_path):
    private = {"_name_or_path": "/home/me/base", "name_or_path": "/home/me/base", "kept": 1}
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (base / name).write_text(json.dumps(private))
    save_file({"x": torch.ones(1)}, base / "diffusion_pytorch_model.safetensors")
    copy_component(base, tmp_path / "part")
    copy_tokenizer(base, tmp_path / "tokens")
    for path in (tmp_path / "part" / "config.json", tmp_path / "tokens" / "tokenizer_config.json"):
        assert json.loads(path.read_text()) == {"kept": 1}


@pytest.mark.parametrize("said", [{"dtype": "float16"}, {"torch_dtype": "float16"}, {}])
def test_an_encoder_in_half_precision_opens_in_that_of_the_network(said, tmp_path):
    """Where people name no dtype, as in ``from_pretrained(DIR)``."""
    transformers = pytest.importorskip("transformers")
    base = resolve_source("builtin:emoji-teacher") / "text_encoder"
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | said))
    before = transformers.CLIPTextModel.from_pretrained(tmp_path / "base")
    assert before.dtype == torch.float16
    copy_component(tmp_path / "base", tmp_path / "part")
    assert transformers.CLIPTextModel.from_pretrained(tmp_path / "part").dtype == torch.float32


@pytest.mark.slow
def test_a_generator_of_pixels_opens_in_a_stock_pipeline(tmp_path):
    """The whole way, of text, in diffusers: an auto-encoder hands the pixels through."""
    pytest.importorskip("diffusers")
    write_generator(tmp_path / "emoji", "builtin:emoji-teacher")
    assert export("emoji", "out", "--prompt", "red heart") == 0
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]
    assert run_card(tmp_path / "out").size == (16, 16)


# Every family, in one step and in four ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "sd3", "flux", "sana"])
def test_pipelines(name, steps, tmp_path, capsys):
    from tests.weights.test_adapters_in_diffusers import write_base

    write_base(tmp_path / "base", name)
    write_generator(tmp_path / "gen", str(tmp_path / "base"), steps)
    assert export("gen", "out", "--prompt", "a red cat|dog", "--variant", "fp16") == 0
    assert list((tmp_path / "out").glob("*/diffusion_pytorch_model.fp16.safetensors"))
    whole = run_card(tmp_path / "out")
    assert min(whole.size) >= 16
    (tmp_path / "base" / "model_index.json").unlink(missing_ok=True)  # SDXL's has one
    assert export("gen", "alone", "--prompt", "a red cat", "--only-network") == 2
    assert "no folder of diffusers with a model_index.json" in capsys.readouterr().err
    shutil.copy(tmp_path / "out" / "model_index.json", tmp_path / "base")
    assert export("gen", "alone", "--prompt", "a red cat", "--only-network") == 0
    assert not (tmp_path / "alone" / "vae").exists()
    assert apart(run_card(tmp_path / "alone"), whole) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "sd3", "flux", "sana"])
def test_adapters(name, tmp_path, capsys):
    pytest.importorskip("peft")
    from tests.weights.adapters import write_adapter
    from tests.weights.test_adapters_in_diffusers import write_base

    write_base(tmp_path / "base", name)
    write_adapter(tmp_path / "lora", tmp_path / "base")
    assert export("lora", "fused", "--prompt", "a red cat", "--fuse", "--dtype", "float16") == 0
    (tmp_path / "base" / "model_index.json").unlink(missing_ok=True)  # SDXL's has one
    assert export("lora", "out", "--prompt", "a red cat") == 2
    assert "give --fuse" in capsys.readouterr().err
    shutil.copy(tmp_path / "fused" / "model_index.json", tmp_path / "base")
    assert export("lora", "out", "--prompt", "a red cat") == 0
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
    assert apart(run_card(tmp_path / "out"), run_card(tmp_path / "fused")) < 1


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_emoji_flow(steps, tmp_path):
    write_generator(tmp_path / "gen", "builtin:emoji-flow", steps)
    assert export("gen", "out", "--prompt", "red heart") == 0
    assert run_card(tmp_path / "out").size == (16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["emoji-teacher", "emoji-flow"])
def test_an_adapter_of_pixels_brings_its_base(base, tmp_path):
    pytest.importorskip("peft")
    from tests.weights.adapters import write_adapter

    source = f"builtin:{base}"
    write_adapter(tmp_path / "lora", resolve_source(source), notes={"teacher": source})
    assert export("lora", "out", "--prompt", "red heart") == 0
    index = json.loads((tmp_path / "out" / "base" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert export("lora", "fused", "--prompt", "red heart", "--fuse") == 0
    assert apart(run_card(tmp_path / "out"), run_card(tmp_path / "fused")) < 0.1


# What comes while an export is made ---------------------------------------------------------------


def test_what_has_come_meanwhile_stays(digits, tmp_path, monkeypatch, capsys):
    save = kinds.save_model

    def slow(*given: Any) -> None:
        save(*given)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "letter.txt").write_text("dear")

    monkeypatch.setattr(kinds, "save_model", slow)
    assert export(digits, "out", "--no-check", "--force") == 2
    assert "is no export" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("base", "merged", "said"),
    [
        ("", False, "does not say what its base is"),
        ("s3://bucket/sd15", False, "is no folder of diffusers"),
        ("nowhere", False, "is no folder of diffusers with a model_index.json"),
        ("hf://owner/name", True, "with a LoRA merged into it"),
        ("hf://owner/name/sub/teacher@v2", False, "is a part of its repository"),
        ("hf://owner/name/unet", False, "is a part of its repository"),
    ],
)
def test_bases_that_nobody_could_open(base, merged, said):
    with pytest.raises(UserError, match=rf"{said}.*: give --fuse"):
        check_opens(base, merged, "give --fuse", "out")
    check_opens("hf://owner/name@v1", False, "give --fuse", "out")


def test_a_base_that_is_called_like_the_export(tmp_path):
    """The card's lines open both by their names, and push tells the export's from the base's."""
    (tmp_path / "base" / "sd15").mkdir(parents=True)
    (tmp_path / "base" / "sd15" / "model_index.json").touch()
    base = str(tmp_path / "base" / "sd15")
    with pytest.raises(UserError, match=r"both called sd15.*another name"):
        check_opens(base, False, "give --fuse", "sd15")
    check_opens(base, False, "give --fuse", "mine")
    check_opens("hf://owner/sd15", False, "give --fuse", "sd15")


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("a cat", "`a cat`"),
        ("a\n\n```python\ncat", "```` a ```python cat ````"),
        ("a `cat`", "`` a `cat` ``"),
    ],
)
def test_what_is_typed_is_code_in_one_line(typed, code):
    assert in_prose(typed) == code


def test_a_command_stays_in_its_block():
    assert fenced("a") == "```\na\n```"
    assert fenced("a '\n```\n'") == "````\na '\n```\n'\n````"
