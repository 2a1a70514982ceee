"""Adapters over one frozen teacher, for one GPU of 24 GiB: a recipe a family, of those beside it.

No SiD with adapters is published. SwiftBrush (arXiv:2312.05239) trains the fake score of its
one-step Stable Diffusion as an adapter of rank 64 and alpha 108 at a learning rate of 1e-3: these
three numbers stand here, for both roles' rank and alpha. The generator's rate is chosen here, as
are batch, length and half precision, which are for one GPU; guidance, noise levels and the rest are
those of the recipe that each begins from. Prompts are the user's.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from sid_ray.config.distill_config import replace
from sid_ray.recipes.flow import FLOW
from sid_ray.recipes.published import Published, Recipe
from sid_ray.recipes.sdxl import UNPUBLISHED
from sid_ray.recipes.stable_diffusion import STABLE_DIFFUSION

RANK, ALPHA, FAKE_SCORE_LR = 64, 108.0, 1e-3  # SwiftBrush
GENERATOR_LR = 1e-4  # chosen: a hundred times that of the whole network (docs/adapters.md)
BATCH, IMAGES = 64, 400_000
NOTE = (
    "rank, alpha and the fake score's learning rate are SwiftBrush's; the generator's, batch size, "
    "length and precision not published"
)


class LoraRun(NamedTuple):
    """One distillation: its name, and the recipe of whole networks that it begins from."""

    name: str
    whole: str
    title: str


RUNS = (
    LoraRun("sd15-lora", "sd15-lsg-kappa2", "Stable Diffusion 1.5, one step"),
    LoraRun("sdxl-4step-lora", "sdxl-4step-zero", "SDXL, 4 steps"),
    LoraRun("sana-1600m-1024-lora", "sana-1600m-1024-dit", "SANA 1.6B, 4 steps"),
    LoraRun("sd35-medium-lora", "sd35-medium-dit", "Stable Diffusion 3.5 Medium, 4 steps"),
    LoraRun("flux-dev-512-lora", "flux-dev-512-dit", "FLUX.1-dev at 512 pixels, 4 steps"),
)
WHOLE = {entry.config.recipe: entry for entry in (*STABLE_DIFFUSION, *UNPUBLISHED, *FLOW)}


def lora_recipe(run: LoraRun) -> Recipe:
    whole = WHOLE[run.whole]
    assert whole.published is not None
    config = replace(
        whole.config,
        recipe=run.name,
        adapter__rank=RANK,
        adapter__alpha=ALPHA,
        training__images=IMAGES,
        training__batch_size=BATCH,
        training__group_size=1,
        training__fake_score_lr=FAKE_SCORE_LR,
        training__generator_lr=GENERATOR_LR,
        training__precision="bfloat16",
    )
    published = Published(method=whole.published.method, notes=NOTE)
    summary = f"adapters of rank {RANK} on {run.title}: one GPU"
    return dataclasses.replace(whole, config=config, published=published, summary=summary)


LORA = tuple(map(lora_recipe, RUNS))
