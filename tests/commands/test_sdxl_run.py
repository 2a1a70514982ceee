"""A tiny SDXL from a folder to scores: two workers, a resume, pictures, an evaluation, a plan."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.denoisers.tiny_pipeline import write_xl_pipeline
from tests.support.checkpoints import newest_whole, verify
from tests.support.distill_runs import finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BATCH = 8
PROMPTS = "a cat\na red dog\nphoto of a dog\na photo\nred cat\ndog\na red cat\ncat\n"


def called(*arguments: str) -> str:
    """What a command prints, of one that ends well."""
    found = finish([sys.executable, "-m", "sid_ray.cli", *arguments])
    assert found["code"] == 0, found["out"] + found["err"]
    return found["out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a teacher, prompts, and two runs: "whole" in one go, "parts" in two."""
    made = tmp_path_factory.mktemp("sdxl")
    write_xl_pipeline(made / "teacher", sample_size=8)  # pictures of the extractor's size
    (made / "prompts.txt").write_text(PROMPTS)
    for run, images in (("whole", 2), ("parts", 1), ("parts", 2)):
        called(
            "distill", "sdxl-4step-zero", *teacher(made), "--run", run,
            "--output.folder", str(made), "--images", str(images * BATCH),
            "--training.batch-size", str(BATCH), "--training.group-size", "4",
            "--training.precision", "float32", "--resources.num-workers", "2",
            "--resources.no-use-gpu", "--resources.zero-stage", "2",
            "--output.checkpoint-every", str(BATCH), "--output.report-every", str(BATCH),
        )  # fmt: skip
    return made


def teacher(folder: Path) -> list[str]:
    return [
        "--teacher.source", str(folder / "teacher"), "--data.source", str(folder / "prompts.txt")
    ]  # fmt: skip


def test_a_resumed_run_has_the_bits_of_one_in_one_go(folder):
    whole, parts = (newest_whole(folder / run)[0] for run in ("whole", "parts"))
    assert verify(whole).images_seen == verify(parts).images_seen == 2 * BATCH
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert len(files) == 5, "a part a role and worker, and the averaged generator"
    trained = 0
    for file in files:
        expected, found = load_file(whole / file), load_file(parts / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), file
        trained += sum("add_embedding" in name for name in expected)
    assert trained, "what is told the sizes is trained"


def test_pictures_scores_and_a_plan(folder):
    run = str(folder / "whole")
    called("generate", run, "--prompt", "a cat", "--seeds", "0-1", "--out", str(folder / "out"))
    assert len(list((folder / "out").glob("seed*.png"))) == 2
    scored = called(
        "evaluate", run, "--num-images", "72", "--feature-space", "emoji-cnn",
        "--batch-size", "24", "--actors", "1",
    )  # fmt: skip
    assert "emoji-cnn" in scored
    planned = called("plan", "sdxl-4step-zero", *teacher(folder), "--gpus", "2")
    assert "three networks of 60,668 parameters" in planned
