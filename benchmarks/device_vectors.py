"""Writes the reference vectors of `sid-ray doctor --device`: sid_ray/assets/device-vectors.

    python -m benchmarks.device_vectors

Outputs, losses and gradients of each case in float64 on a CPU. Bounds are ALLOWED times what the
same computation is off by in float32, bfloat16 and float16 on this CPU, and no less than LEAST:
other processors add up in another order, so that errors are alike in size and not in their digits.
TF32 is seen by that: it is off by more than any bound of float32 (the last column).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import sid_ray
from sid_ray.commands.device import vectors
from sid_ray.commands.device.vectors import VectorCase, outcome_of, precisions_of, relative
from tests.support.tf32 import TF32

ALLOWED = 6.0
LEAST = {"float32": 2e-5, "bfloat16": 1e-2, "float16": 2e-3}
SONG = {
    "img_resolution": 8, "img_channels": 1, "label_dim": 10, "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0,
}  # fmt: skip
RESIDUAL = {
    "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
ADM = SONG | {"model_type": "DhariwalUNet"}
EDM2 = {
    "img_resolution": 8, "img_channels": 4, "label_dim": 10, "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 16,
    "logvar_channels": 16, "dropout": 0.0,
}  # fmt: skip
TEXT = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1,
    "cross_attention_dim": 24, "norm_num_groups": 4, "prediction_type": "epsilon",
}  # fmt: skip
KAPPA = {f"objective__kappa{number}": 1.5 for number in (1, 2, 3, 4)}
CASES = (
    VectorCase("EDM, DDPM++ network", "edm", SONG, 1),
    VectorCase("EDM, NCSN++ network", "edm", SONG | RESIDUAL, 2),
    VectorCase("EDM, ADM network", "edm", ADM, 3),
    VectorCase("EDM2 network", "edm2", EDM2, 4),
    VectorCase("Stable Diffusion network", "stable-diffusion", TEXT, 5),
    VectorCase("SiD on EDM", "edm", SONG, 6, changes={"objective__alpha": 1.2}),
    VectorCase("SiD on EDM2", "edm2", EDM2, 7,
        changes={"objective__alpha": 1.0, "objective__logvar": True}),
    VectorCase("SiDA on EDM2", "edm2", EDM2, 8, changes={
        "objective__name": "sida", "objective__alpha": 1.0, "objective__logvar": True,
        "objective__discriminator_weight": 100.0}),
    VectorCase("VSD on EDM", "edm", SONG, 9, changes={"objective__name": "vsd"}),
    VectorCase("SiD-LSG on Stable Diffusion", "stable-diffusion", TEXT, 10,
        changes={"objective__name": "lsg", "objective__alpha": 1.0, **KAPPA}),
)  # fmt: skip


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative(found[name], value) for name, value in expected.items()}


def bounded(case: VectorCase, expected: dict[str, Tensor]) -> VectorCase:
    """The case with its bounds; prints what they were made of."""
    cpu = torch.device("cpu")
    wanted = dataclasses.replace(case, bounds={name: {} for name in LEAST})
    bounds: dict[str, dict[str, float]] = {}
    for precision in precisions_of(wanted):
        own = errors(outcome_of(case, cpu, precision), expected)
        bounds[precision] = {
            name: float(f"{max(ALLOWED * error, LEAST[precision]):.1e}")
            for name, error in own.items()
        }
        shown = ", ".join(f"{name} {error:.1e}" for name, error in own.items())
        print(f"| {case.name} | {precision} | {shown} |")
    with TF32():
        own = errors(outcome_of(case, cpu, "float32"), expected)
    times = {name: error / bounds["float32"][name] for name, error in own.items()}
    worst = max(times, key=times.__getitem__)
    print(f"| {case.name} | TF32 | {worst} {own[worst]:.1e}, {times[worst]:.0f} times the bound |")
    return dataclasses.replace(case, bounds=bounds)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sid_ray.__file__).parent / "assets" / vectors.FOLDER
    folder.mkdir(exist_ok=True)
    print("| case | precision | relative error of what comes out |\n|---|---|---|")
    cases, tensors = [], {}
    for case in CASES:
        expected = outcome_of(case, torch.device("cpu"), "float32", wide=True)
        tensors |= {f"{case.name}/{name}": value.float() for name, value in expected.items()}
        cases.append(dataclasses.asdict(bounded(case, expected)))
    text = json.dumps({"torch": torch.__version__.partition("+")[0], "cases": cases}, indent=1)
    (folder / vectors.CASES).write_text(text + "\n")
    save_file(tensors, folder / vectors.TENSORS)
    print(f"\n{sum(path.stat().st_size for path in folder.iterdir()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
