"""The model card, letter by letter for one recipe, and what differs for others."""

from sid_ray.checkpoint.model_card import model_card
from sid_ray.config.distill_config import replace
from sid_ray.recipes.registry import recipe
from sid_ray.weights.description import ModelDescription

DESCRIPTION = ModelDescription("edm", {"img_resolution": 8, "img_channels": 1}, {"sigma": 2.5})
SCORES = {"IS-digits-cnn": 8.5, "IS-digits-cnn_deviation": 0.1, "FD-digits-cnn": 3.14159}

DIGITS = """\
---
library_name: sid_ray
pipeline_tag: unconditional-image-generation
tags:
- diffusion-distillation
- few-step
- sid
---

# digits-sid

A generator of family `edm`: it makes an image of 8x8 from noise with one network evaluation. \
Distilled by sid_ray from the diffusion model `builtin:digits-teacher`.

## How it was made

* recipe: `digits-sid`
* objective: Score identity Distillation (SiD), without real images
* teacher: `builtin:digits-teacher`
* data: `digits`
* images seen: 30,016
* alpha: 1
* weights: averaged, half-life 5,000 images
* seed: 0

## How to use it

```
sid-ray generate FOLDER --seeds 0-63 --out samples
```

FOLDER holds this file, `model.safetensors` and `model.json`. A seed makes the same image on \
every machine of the same kind.

## How good it is

Scores of 2,048 images, seeds 0 to 2,047. They compare with others of the same name, number of \
images and reference only.

| score | value | feature space | better |
|---|---:|---|---|
| FD-digits-cnn | 3.142 | digits-cnn | smaller |
| IS-digits-cnn | 8.5 | digits-cnn | larger |
| IS-digits-cnn_deviation | 0.1 | digits-cnn | - |

## Licence and file

The teacher's licence, `cc-by-4.0`, applies to the weights: Optical Recognition of Handwritten \
Digits by E. Alpaydin and C. Kaynak, CC BY 4.0; a network trained on it. SHA-256 of \
`model.safetensors`:

```
abc123
```
"""


def test_the_card_of_digits():
    assert model_card(recipe("digits-sid"), DESCRIPTION, 30_016, SCORES, "abc123") == DIGITS


def test_a_text_model_has_prompts_scales_and_its_base():
    config = replace(
        recipe("emoji-lsg"),
        teacher__source="hf://someone/sd-small@main/unet.safetensors",
        data__source="s3://user:secret@bucket/prompts",
        objective__num_steps=4,
    )
    card = model_card(config, ModelDescription("stable-diffusion", {}), 64, {}, "abc123")
    for words in (
        "pipeline_tag: text-to-image",
        "base_model: someone/sd-small\n",
        "it makes latents of 64x64 from noise with 4 network evaluations",
        "* guidance scales kappa 1 to 4: 1.5, 1.5, 1.5, 1.5\n",
        '--seeds 0-63 --prompt "..." --out',
        "* data: `s3://bucket/prompts`\n",
        "No scores were taken.",
    ):
        assert words in card, card


def test_nothing_of_a_machine_stands_in_a_card():
    config = replace(
        recipe("digits-sida"),
        teacher__source="/home/somebody/teachers/mine.safetensors",
        data__name="prepared",
        data__source="/home/somebody/data",
    )
    card = model_card(config, DESCRIPTION, 64, {"FID": 2.0}, "abc123")
    assert "somebody" not in card and "`mine.safetensors`" in card
    assert "* data: `prepared`\n" in card and "* adversarial weight: 0.01\n" in card
    assert "| FID | 2 | Inception | smaller |" in card
