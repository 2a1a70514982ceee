"""What a run cannot load is refused in one line before it starts, by doctor and distill alike.

A small pipeline of Stable Diffusion's shape is damaged or exchanged in the ways people meet.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sid_ray.actors import trainer
from sid_ray.cli import main
from sid_ray.commands.checks import FAILED, Patient, examine
from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunRecord, check_same_text_encoder
from sid_ray.weights.components import fingerprint_of_text, text_encoder_sha256
from sid_ray.weights.description import Components
from sid_ray.weights.networks import describe, load
from tests.denoisers.tiny_pipeline import write_pipeline

UNET = "unet/diffusion_pytorch_model"
PARTS = {"unet": UNET, "vae": "vae/diffusion_pytorch_model", "text_encoder": "text_encoder/model"}


class StartedError(Exception):
    """The run would have started."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "pipeline"
    write_pipeline(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pipeline"))


@pytest.fixture
def lsg(made, tmp_path) -> Path:
    """A file as SiD-LSG's: the U-Net alone, pickled with diffusers' classes."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(made / "unet")
    path = tmp_path / "lsg.pkl"
    path.write_bytes(pickle.dumps({"ema": unet}))
    return path


@pytest.fixture
def answers(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[str, str]]:
    """(doctor's line on the teacher, distill's) of a teacher; "" where nothing is wrong."""

    def started(*args):
        raise StartedError

    monkeypatch.setattr(trainer, "run_training", started)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")

    def ask(teacher: Path | str, *flags: object) -> tuple[str, str]:
        args = ["emoji-lsg", "--teacher.source", str(teacher), "--data.name", "prompts"]
        args += ["--data.source", str(prompts), "--output.folder", str(tmp_path / "runs")]
        args += ["--evaluation.every", "0", "--evaluation.no-final-report", *map(str, flags)]
        held: list[Patient] = []
        monkeypatch.setattr(
            "sid_ray.commands.doctor.run_doctor", lambda c, r, d: held.append(Patient(c, r))
        )
        with pytest.raises(SystemExit):
            main(["doctor", *args])
        findings = [finding for _, finding in examine(held[0], ["teacher"])]
        said = "\n".join(finding.text for finding in findings if finding.state == FAILED)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as stop:
                main(["distill", *args])
        except StartedError:
            return said, ""
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("sid-ray: ") and line.count("\n") == 1
        return said, line.removeprefix("sid-ray: ").strip()

    return ask


def config(folder: Path, part: str, **changes) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def with_lora(folder: Path) -> Path:
    path = folder.parent / "lora.safetensors"
    save_file({"unet.down_blocks.0.to_q.lora_A.weight": torch.ones(2, 2)}, path)
    return path


def tensors_of(folder: Path, *names: str) -> Path:
    path = folder.parent / "tensors.safetensors"
    save_file({name: torch.ones(2, 2) for name in names}, path)
    return path


def vae_file(folder: Path) -> Path:
    return tensors_of(folder, *load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))


def in_eight_bits(folder: Path) -> None:
    path = folder / f"{UNET}.safetensors"
    save_file({n: v.to(torch.float8_e4m3fn) for n, v in load_file(path).items()}, path)


def only_controlnet(folder: Path) -> None:
    config(folder, "unet", _class_name="ControlNetModel")
    (folder / "unet").rename(folder / "controlnet")


def in_one_file(folder: Path) -> Path:
    path = folder.parent / "v1-5.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)}, path)
    return path


def as_ckpt(folder: Path) -> Path:
    path = folder.parent / "v1-5.ckpt"
    values = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)}
    torch.save({"state_dict": values, "global_step": 1}, path)
    return path


def file_of(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    return write


def replaced(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def wider_text(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    values = json.loads((folder / "text_encoder" / "config.json").read_text())
    CLIPTextModel(CLIPTextConfig(**values | {"hidden_size": 32})).save_pretrained(
        folder / "text_encoder"
    )


def nine_channels(folder: Path) -> None:
    config(folder, "unet", in_channels=9)
    path = folder / f"{UNET}.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.zeros(8, 9, 3, 3)
    save_file(weights, path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3438167540\n"
CASES: dict[str, tuple[Callable[[Path], Path | None], str]] = {
    "inpainting": (nine_channels, "9 input and 4 output channels"),
    "sizes, but not SDXL's": (
        lambda f: config(f, "unet", addition_embed_type="text_time"),
        "projection_class_embeddings_input_dim, addition_time_embed_dim, cross_attention_dim of",
    ),
    "another embedding": (
        lambda f: config(f, "unet", addition_embed_type="text_image"),
        "'addition_embed_type' = 'text_image' is not supported",
    ),
    "unknown class": (
        lambda f: config(f, "unet", _class_name="PixArtTransformer2DModel"),
        "unknown network class 'PixArtTransformer2DModel'",
    ),
    "ControlNet": (
        lambda f: config(f, "unet", _class_name="ControlNetModel"),
        "ControlNetModel steers another network",
    ),
    "video": (
        lambda f: config(f, "unet", _class_name="UNet3DConditionModel"),
        "UNet3DConditionModel makes video",
    ),
    "quantised": (
        lambda f: config(f, "unet", quantization_config={"load_in_4bit": True}),
        "quantised weights",
    ),
    "eight bits": (in_eight_bits, "conv_in.bias' as F8_E4M3, quantised weights"),
    "scheduler alone": (
        lambda f: [shutil.rmtree(f / n) for n in (*PARTS, "tokenizer")] and None,
        "no network at .*, which holds scheduler: a folder with .* is needed",
    ),
    "ControlNet alone": (only_controlnet, r"which holds controlnet \(ControlNetModel\)"),
    "wider network": (
        lambda f: config(f, "unet", block_out_channels=[16, 32]),
        "does not fit the network: it holds .* of another shape",
    ),
    "option of another library": (
        lambda f: config(f, "unet", frob=1),
        "not a U-Net option: 'frob'",
    ),
    "no size": (lambda f: config(f, "unet", sample_size=None), "sample_size"),
    "cut": (lambda f: cut(f / f"{UNET}.safetensors"), "not a whole safetensors file"),
    "empty": (replaced(f"{UNET}.safetensors", b""), "is empty: fetch it again"),
    "LFS": (replaced(f"{UNET}.safetensors", LFS), "Git LFS pointer.*git lfs pull"),
    "LFS text": (replaced("text_encoder/model.safetensors", LFS), "text_encoder.*Git LFS pointer"),
    "cut text": (
        lambda f: cut(f / "text_encoder" / "model.safetensors"),
        "text_encoder.*not a whole safetensors file",
    ),
    "no weights": (
        lambda f: (f / f"{UNET}.safetensors").rename(f / "unet" / "model.onnx") and None,
        "no weights in .*unet.*; model.onnx is not read",
    ),
    "no text weights": (
        lambda f: (f / "text_encoder" / "model.safetensors").unlink(),
        "no weights in .*text_encoder: model.safetensors is missing",
    ),
    "no text encoder": (
        lambda f: shutil.rmtree(f / "text_encoder"),
        "has no text encoder beside it.*--teacher.text-encoder FOLDER",
    ),
    "no merges": (
        lambda f: (f / "tokenizer" / "merges.txt").unlink(),
        "no tokenizer in .*merges.txt is missing",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "no tokenizer in .*tokenizer"),
    "another text encoder": (wider_text, "embeddings of width 32, the network reads 24"),
    "text encoder of another class": (
        lambda f: config(f, "text_encoder", architectures=["T5EncoderModel"]),
        "describes T5EncoderModel, expected CLIPTextModel",
    ),
    "LoRA": (with_lora, "holds a LoRA.*--teacher.lora"),
    "one file": (in_one_file, "v1-5.safetensors: it is no .*Stable Diffusion"),
    "ckpt": (as_ckpt, "v1-5.ckpt: it is no .*Stable Diffusion"),
    "GGUF": (file_of("x.gguf", b"GGUF\x03\0\0\0" * 9), "is a GGUF file.*quantised"),
    "web page": (file_of("x.pkl", b"\n<!DOCTYPE html><html>..."), "is a web page, not weights"),
    "no bytes": (file_of("x.pkl", b""), "is empty"),
    "LFS file": (file_of("x.pkl", LFS), "Git LFS pointer"),
    "text": (file_of("x.safetensors", b"hello" * 30), "not a whole safetensors file"),
    "part": (lambda f: f / f"{UNET}.safetensors", "is a part of a folder .*give the folder"),
    "text encoder as teacher": (lambda f: f / "text_encoder", "CLIPTextModel is a text encoder"),
    "VAE file as teacher": (vae_file, "holds a VAE.*--teacher.vae"),
    "ControlNet file": (
        lambda f: tensors_of(f, "control_model.input_blocks.0.0.weight"),
        "holds a ControlNet",
    ),
    "GGUF folder": (
        lambda f: file_of("q/x.gguf", b"GGUF\x03\0\0\0" * 9)(f).parent,
        "holds x.gguf, quantised weights",
    ),
    "VAE as teacher": (lambda f: f / "vae", "AutoencoderKL is an auto-encoder.*--teacher.vae"),
    "another family": (
        lambda f: Path("builtin:digits-teacher"),
        "'vp', but teacher builtin:digits-teacher is an edm network",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_doctor_and_distill_refuse_the_same(case, folder, answers):
    change, message = CASES[case]
    said, refused = answers(change(folder) or folder)
    assert said == refused
    assert re.search(message, said), said


def test_a_whole_pipeline_starts(folder, answers):
    assert answers(folder) == ("", "")


# What is read as well ---------------------------------------------------------------------------


def halved(folder: Path) -> None:
    """Only half-precision files, as in many repositories of the hub."""
    for stem in PARTS.values():
        path = folder / f"{stem}.safetensors"
        weights = {n: v.half() if v.is_floating_point() else v for n, v in load_file(path).items()}
        save_file(weights, folder / f"{stem}.fp16.safetensors")
        path.unlink()


def sharded(folder: Path) -> None:
    for stem in PARTS.values():
        path = folder / f"{stem}.safetensors"
        weights = load_file(path)
        names, found = sorted(weights), {}
        for index, half in enumerate((names[::2], names[1::2])):
            file = f"{path.stem}-{index + 1:05d}-of-00002.safetensors"
            save_file({n: weights[n] for n in half}, path.parent / file)
            found |= dict.fromkeys(half, file)
        path.unlink()
        Path(f"{path}.index.json").write_text(json.dumps({"weight_map": found}))


def pickled(folder: Path) -> None:
    for part, stem in PARTS.items():
        path = folder / f"{stem}.safetensors"
        name = "pytorch_model.bin" if part == "text_encoder" else f"{path.stem}.bin"
        torch.save(load_file(path), path.parent / name)
        path.unlink()


@pytest.mark.parametrize("change", [halved, sharded, pickled])
def test_pipelines_in_other_files_are_read(change, folder, made, answers):
    """By the check and by the run: the same numbers, but for their precision."""
    from sid_ray.denoisers.autoencoder import load_vae
    from sid_ray.denoisers.clip_text import load_text

    change(folder)
    assert answers(folder) == ("", "")
    tolerance = 2e-3 if change is halved else 0
    pairs = [
        (load(str(folder))[0].state_dict(), load(str(made))[0].state_dict()),
        (load_vae(folder).state_dict(), load_vae(made).state_dict()),
        ({"text": load_text(folder).null()}, {"text": load_text(made).null()}),
    ]
    for found, expected in pairs:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == torch.float32
            assert torch.allclose(found[name], value, atol=10 * tolerance, rtol=tolerance), name


def test_the_most_exact_weights_are_read(folder, made):
    path = folder / f"{UNET}.safetensors"
    weights = load_file(path)
    save_file({n: v.half() * 0 for n, v in weights.items()}, folder / f"{UNET}.fp16.safetensors")
    torch.save(weights, folder / f"{UNET}.bin")
    path.unlink()
    found = load(str(folder))[0].state_dict()
    assert all(torch.equal(found[f"unet.{n}"], v) for n, v in weights.items())
    (folder / f"{UNET}.bin").unlink()
    assert describe(folder).notes == {"variant": "fp16"}


# A teacher without the parts beside it ------------------------------------------------------------


def test_a_file_of_the_unet_alone_names_what_it_lacks(lsg, answers):
    said, refused = answers(lsg)
    assert said == refused
    assert "lsg.pkl reads text and has no text encoder beside it" in said


@pytest.mark.parametrize("named", ["", "text_encoder"])
def test_the_text_encoder_may_lie_elsewhere(lsg, made, answers, named):
    assert answers(lsg, "--teacher.text-encoder", made / named) == ("", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--teacher.text-encoder", "/not/there"), "no text_encoder at /not/there"),
        (("--teacher.text-encoder", "{lsg}"), "no text_encoder at .*lsg.pkl"),
        (("--teacher.text-encoder", "{made}", "--teacher.vae", "/no"), "no vae at /no"),
        (("--teacher.text-encoder", "builtin:emoji-teacher"), "embeddings of width"),
        (("--teacher.text-encoder", "s3x://a"), "no source of kind s3x://"),
    ],
)
def test_a_text_encoder_that_cannot_serve_is_named(lsg, made, answers, flags, message):
    said, refused = answers(lsg, *(flag.format(lsg=lsg, made=made) for flag in flags))
    assert said == refused
    assert re.search(message, said), said


def test_a_vae_of_other_latents_is_named(lsg, made, folder, answers):
    from diffusers import AutoencoderKL

    values = json.loads((folder / "vae" / "config.json").read_text()) | {"latent_channels": 8}
    AutoencoderKL.from_config(values).save_pretrained(folder / "vae")
    flags = ("--teacher.text-encoder", made, "--teacher.vae", folder)
    said, refused = answers(lsg, *flags)
    assert said == refused
    assert "is of 8 latent channels, the network of 4" in said


def test_parts_that_a_teacher_does_not_use_are_refused(made, answers):
    said, refused = answers("builtin:emoji-teacher", "--data.name", "emoji", "--teacher.vae", made)
    assert said == refused
    assert "makes pixels, no latents" in said


def text_fingerprint(folder: Path) -> str:
    return fingerprint_of_text(Components(folder), "stable-diffusion")


def test_the_fingerprint_of_a_text_encoder_stays(made):
    """Runs have recorded it: of the weights, and of the small files one after the other."""
    weights = hashlib.sha256((made / f"{PARTS['text_encoder']}.safetensors").read_bytes())
    small = hashlib.sha256((made / "text_encoder" / "config.json").read_bytes())
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        small.update((made / "tokenizer" / name).read_bytes())
    both = f"{weights.hexdigest()} {small.hexdigest()}"
    assert text_fingerprint(made) == hashlib.sha256(both.encode()).hexdigest()
    assert text_encoder_sha256(made, "stable-diffusion") == weights.hexdigest()


def test_a_run_keeps_its_text_encoder_by_its_content(folder, made, tmp_path):
    """It may move; another one, or another tokenizer, is another run."""
    first = text_fingerprint(made)
    assert text_fingerprint(folder) == text_fingerprint(folder / "text_encoder")
    assert text_fingerprint(folder) == first
    check_same_text_encoder(RunRecord("{}"), first)  # of a run that began before it was noted
    check_same_text_encoder(RunRecord("{}", text_encoder=first), first)
    path = folder / "tokenizer" / "merges.txt"
    path.write_text(path.read_text() + "a b\n")
    changed = text_fingerprint(folder)
    with pytest.raises(UserError, match=r"is not the one .*--teacher\.text-encoder"):
        check_same_text_encoder(RunRecord("{}", text_encoder=first), changed)
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {next(iter(weights)): next(iter(weights.values())) + 1}, path)
    assert len({first, changed, text_fingerprint(folder)}) == 3


def test_the_parts_place_is_no_identity():
    here, there = (
        replace(recipe("emoji-lsg"), teacher__text_encoder=place, teacher__vae=place)
        for place in ("/a", "s3://b/c")
    )
    assert here.identity() == there.identity()
