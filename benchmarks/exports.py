"""Exports of trained runs beside `sid-ray generate`, opened as people open them.

    python -m benchmarks.exports runs/lsg runs/digits --prompt "red heart|star" --seeds 0-3

Of each run: what its network allows of a native export, `--fuse` and `--format onnx`. Columns: the
largest difference of pixels in [0, 1] from sid_ray's images before they are rounded to 8 bits, as
the command says it; the same of the call that `diffusers` has for a generator of one step, made
here in a process without sid_ray (`-`: the folder is no pipeline, or takes several steps); whether
the card's lines, as printed, make a picture in such a process from another folder; megabytes; the
command's processor seconds. Ends with exit code 1 where anything failed or differs by more than
rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from sid_ray.commands.arguments import number_list, typed_prompts
from sid_ray.commands.generate import OneStepNetwork
from sid_ray.device.numerics import set_numerics
from sid_ray.evaluation.samplers import Inputs, seeded_latents, seeded_noises

HIDDEN = "import sys; sys.modules |= dict.fromkeys(({}), None)\n"
CALL = """
import numpy as np, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
if sys.argv[2]:
    pipe.load_lora_weights(sys.argv[2])
given = np.load(sys.argv[3])
images = pipe(
    list(given["prompts"]), num_inference_steps=1, guidance_scale=0,
    latents=torch.from_numpy(given["latents"]), output_type="np",
).images
np.save(sys.argv[4], images)
"""
BOUND = 1e-5


def clean(program: str, hidden: Sequence[str], arguments: Sequence[object], place: Path) -> None:
    """Runs Python in a folder, isolated, without the ``hidden`` modules. Raises
    CalledProcessError.
    """
    code = HIDDEN.format("".join(f"{name!r}, " for name in hidden)) + program
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    subprocess.run(command, cwd=place, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def exported(run: str, folder: Path, words: Sequence[str]) -> float:
    """Processor seconds of the command. Raises CalledProcessError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "sid_ray.cli", "export", run, str(folder), *words]
    subprocess.run(command, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@torch.no_grad()
def own_images(net: OneStepNetwork, seeds: Sequence[int], prompts: Sequence[str]) -> np.ndarray:
    """Those of `sid-ray generate`, [N, H, W, C] in [0, 1]: its network, noise and VAE."""
    cond = net.conditions(None, prompts)(seeds)
    sampler, steps = net.sampler
    noises = seeded_noises(seeds, net.shape, steps)
    made = net.codec.decode(sampler(Inputs(seeded_latents(seeds, net.shape), cond, noises)))
    return (made / 2 + 0.5).clip(0, 1).permute(0, 2, 3, 1).numpy()


def called(folder: Path, net: OneStepNetwork, seeds: Sequence[int], texts: Sequence[str]) -> float:
    """How far images of diffusers' own call are from ours."""
    with tempfile.TemporaryDirectory() as named:
        place = Path(named)
        prompts = [texts[seed % len(texts)] for seed in seeds]
        latents = seeded_latents(seeds, net.shape).numpy()
        np.savez(place / "given.npz", prompts=np.array(prompts), latents=latents)
        lora = folder if not (folder / "model_index.json").exists() else ""
        whole = folder / "base" if lora else folder
        clean(CALL, ["sid_ray"], [whole, lora, place / "given.npz", place / "made.npy"], place)
        return float(np.abs(np.load(place / "made.npy") - own_images(net, seeds, texts)).max())


def card_runs(folder: Path, graph: bool) -> str:
    """The picture's name that the card's own lines leave beside the folder's link."""
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    with tempfile.TemporaryDirectory() as named:
        place = Path(named)
        (place / folder.name).symlink_to(folder.resolve())
        clean(lines, ["sid_ray", *(["torch", "diffusers"] if graph else [])], [], place)
        (made,) = (path.name for path in place.iterdir() if path.name.startswith("image"))
        return made


def rows_of(run: str, out: Path, prompt: str, seeds: str) -> Iterator[list[object]]:
    net = OneStepNetwork(run, 1)
    texts = typed_prompts(prompt) if net.family.reads_text else []
    chosen = list(number_list(seeds, "seeds", 64))
    words = ["--seeds", seeds, *(["--prompt", prompt] if texts else [])]
    kinds: dict[str, list[str]] = {"native": [], "fused": ["--fuse"], "onnx": ["--format", "onnx"]}
    if net.description.adapter is None:
        del kinds["fused"]
    steps = int((net.description.one_step or {}).get("num_steps", 1))
    for kind, flags in kinds.items():
        folder = out / f"{Path(run).name}-{kind}"
        seconds = exported(run, folder, [*words, *flags, "--force"])
        said = json.loads((folder / "sid_ray.json").read_text())["largest_difference"]
        pipeline = bool(texts) and kind != "onnx" and steps == 1
        far = called(folder, net, chosen, texts) if pipeline else None
        card = card_runs(folder, kind == "onnx")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        wrong = far is not None and not far < BOUND
        shown = "-" if far is None else f"{far:.1e}{' WRONG' if wrong else ''}"
        row = [Path(run).name, kind, steps, f"{said:.1e}", shown, card, f"{size:.1f}"]
        yield [*row, f"{seconds:.0f} s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("exports"))
    parser.add_argument("--prompt", default="red heart|pizza|cat face|full moon")
    parser.add_argument("--seeds", default="0-3")
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    asked.out.mkdir(parents=True, exist_ok=True)
    set_numerics()
    print("| run | export | steps | command's | diffusers' call | card | MB | CPU time |")
    print("|---|---|---:|---:|---:|---|---:|---:|")
    wrong = False
    for run in asked.runs:
        for row in rows_of(run, asked.out, asked.prompt, asked.seeds):
            print("|", " | ".join(map(str, row)), "|", flush=True)
            wrong |= "WRONG" in str(row)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
