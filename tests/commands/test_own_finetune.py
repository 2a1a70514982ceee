"""The page from one's own fine-tune to one step: its commands and Python, on a tiny pipeline."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import sid_ray
from sid_ray.commands.arguments import expand_aliases, parse
from sid_ray.config.distill_config import DistillConfig
from sid_ray.recipes.registry import recipe
from tests.denoisers.tiny_pipeline import write_pipeline

PAGE = (Path(__file__).parents[2] / "docs" / "own-finetune.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "PNDMScheduler"),
    "safety_checker": (None, None),
    "feature_extractor": (None, None),
}
# A run of seconds on CPUs in place of one on a GPU.
SMALL = (
    "--images 8 --training.batch-size 8 --training.precision float32 --adapter.rank 4 "
    "--adapter.alpha 4 --resources.num-workers 1 --output.checkpoint-every 8 "
    "--output.report-every 8"
)


def test_the_page_has_every_step_in_order():
    words = [line.split()[1] for line in COMMANDS]
    assert words == ["doctor", "doctor", "plan", "distill", "ui", "generate"]
    assert all(line.startswith("sid-ray ") for line in COMMANDS)


def test_what_the_page_advises_are_fields():
    """Flags within the tables and the text."""
    flags = set(re.findall(r"`(--(?:adapter|training|resources|teacher|objective)\.[^`]+)`", PAGE))
    assert len(flags) > 8
    for text in flags:
        words = shlex.split(text)
        parse(DistillConfig, expand_aliases(words), "sid-ray", recipe("sd15-lora"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a person has: base, LoRA, a DreamBooth folder, prompts."""
    made = tmp_path_factory.mktemp("own")
    for name in (HUB, "dreambooth"):
        write_pipeline(made / name, sample_size=16)
        index = {"_class_name": "StableDiffusionPipeline", **PARTS}
        (made / name / "model_index.json").write_text(json.dumps(index))
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(made / HUB / "unet")
    torch.manual_seed(1)
    lora = {}
    for name, layer in unet.named_modules():
        if name.endswith("to_q"):
            lora[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features) / 8
            lora[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2) / 8
    save_file(lora, made / "style.safetensors")
    (made / "prompts.txt").write_text("a cat\na red dog\nphoto of a dog\na photo\n")
    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pages_commands_and_its_python_run(folder):
    root = str(Path(sid_ray.__file__).parents[1])
    environment = os.environ | {"SID_RAY_CACHE": str(folder / "cache"), "PYTHONPATH": root}

    def called(*words: str) -> str:
        ended = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    for line in COMMANDS:
        words = shlex.split(line)[1:]
        if words[0] == "ui":
            continue  # a server
        if words[0] in ("doctor", "plan", "distill") and "--teacher.source" not in words:
            words += ["--teacher.source", HUB]
        if words[0] in ("doctor", "distill"):
            words += [*shlex.split(SMALL), "--resources.no-use-gpu"]
        called(sys.executable, "-m", "sid_ray.cli", *words)
    assert len(list((folder / "pictures").glob("seed*.png"))) == 8
    assert (folder / "runs" / "style" / "model" / "model.safetensors").exists()
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    called(sys.executable, "-c", script)
    assert (folder / "one-step.png").stat().st_size > 0
    assert (folder / "one-step-pipeline" / "unet" / "config.json").exists()
