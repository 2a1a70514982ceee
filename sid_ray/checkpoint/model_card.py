"""The README.md of a generator's folder, in the form that Hugging Face calls a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.family import Family
from sid_ray.denoisers.registry import family_of
from sid_ray.metrics.names import bare, is_score, larger_is_better, scores_in_order, space_of
from sid_ray.objectives.spec import objective_spec
from sid_ray.weights.address import parse_source, source_label
from sid_ray.weights.description import WEIGHTS, ModelDescription


def model_card(
    config: DistillConfig,
    description: ModelDescription,
    images_seen: int,
    scores: Mapping[str, float],
    sha256: str,
) -> str:
    """The card as Markdown, with front matter.

    Args:
        description: of the generator, what its model.json holds.
        images_seen: by the training of these weights.
        scores: of these weights by name, empty where none were taken.
        sha256: of model.safetensors.
    """
    family = family_of(description.family)
    parts = [
        front_matter(config, family),
        f"# {config.run_name}",
        what_it_is(config, family, description),
        "## How it was made\n\n" + bullets(making(config, images_seen)),
        "## How to use it\n\n" + usage_text(config, family),
        "## How good it is\n\n" + quality(config, scores),
        "## Licence and file\n\n"
        "The teacher's licence applies to the weights. "
        f"SHA-256 of `{WEIGHTS}`:\n\n```\n{sha256}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def teacher_label(config: DistillConfig) -> str:
    """The teacher's source without what is a secret, or this machine's alone."""
    return plain_label(config.teacher.source)


def lora_label(config: DistillConfig) -> str:
    """The LoRA that is merged into the teacher, if there is one."""
    chosen = config.teacher
    return (
        f" with the LoRA `{plain_label(chosen.lora)}` x {chosen.lora_scale:g}"
        if chosen.lora
        else ""
    )


def plain_label(source: str) -> str:
    """A source without what is a secret, or this machine's alone."""
    label = source_label(source)
    return PurePosixPath(label).name if parse_source(source).kind == "path" else label


def front_matter(config: DistillConfig, family: Family) -> str:
    task = "text-to-image" if family.reads_text else "unconditional-image-generation"
    lines = ["library_name: sid_ray", f"pipeline_tag: {task}", "tags:"]
    lines += [f"- {tag}" for tag in ("diffusion-distillation", "few-step", config.objective.name)]
    teacher = parse_source(config.teacher.source)
    if teacher.kind == "hf":
        owner, _, rest = teacher.location.removeprefix("hf://").partition("/")
        lines.append(f"base_model: {owner}/{rest.split('/')[0].split('@')[0]}")
    return "\n".join(["---", *lines, "---"])


def what_it_is(config: DistillConfig, family: Family, description: ModelDescription) -> str:
    steps = config.objective.num_steps
    count = "one network evaluation" if steps == 1 else f"{steps} network evaluations"
    _, height, width = family.shape(description.network)
    what = "latents" if family.makes_latents(description.network) else "an image"
    return (
        f"A generator of family `{family.name}`: it makes {what} of {height}x{width} from noise "
        f"with {count}. Distilled by sid_ray from the diffusion model `{teacher_label(config)}`."
    )


def making(config: DistillConfig, images_seen: int) -> dict[str, str]:
    """What decides the weights, by its name."""
    objective, data = config.objective, config.data
    source = source_label(data.source)
    spec = objective_spec(objective.name)
    settings = {
        "recipe": f"`{config.recipe}`",
        "objective": spec.title,
        "teacher": f"`{teacher_label(config)}`" + lora_label(config),
        "data": f"`{source}`" if "://" in source else f"`{data.name}`",
        "images seen": f"{images_seen:,}",
        "alpha": f"{objective.alpha:g}",
        **spec.settings(objective),
    }
    if config.training.ema_half_life:
        settings["weights"] = f"averaged, half-life {config.training.ema_half_life:,} images"
    return settings | {"seed": str(config.training.seed)}


def bullets(values: Mapping[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in values.items())


def usage_text(config: DistillConfig, family: Family) -> str:
    prompt = ' --prompt "..."' if family.reads_text else ""
    needed = {"--text-encoder": config.teacher.text_encoder, "--vae": config.teacher.vae}
    named = "".join(
        f" `{flag}` names its {flag.strip('-').replace('-', ' ')}, which is not in FOLDER and was "
        f"`{plain_label(source)}`."
        for flag, source in needed.items()
        if source
    )
    return (
        f"```\nsid-ray generate FOLDER --seeds 0-63{prompt} --out samples\n```\n\n"
        f"FOLDER holds this file, `{WEIGHTS}` and `model.json`. A seed makes the same image on "
        f"every machine of the same kind.{named}"
    )


def quality(config: DistillConfig, scores: Mapping[str, float]) -> str:
    if not scores:
        return "No scores were taken."
    rows = [
        f"| {bare(name)} | {scores[name]:.4g} | {space_of(name) or '-'} | {direction(name)} |"
        for name in scores_in_order(scores)
    ]
    count = config.evaluation.num_images
    return "\n".join(
        [
            f"Scores of {count:,} images, seeds 0 to {count - 1:,}. They compare with others of "
            "the same name, number of images and reference only.",
            "",
            "| score | value | feature space | better |",
            "|---|---:|---|---|",
            *rows,
        ]
    )


def direction(name: str) -> str:
    if not is_score(name):
        return "-"
    return "larger" if larger_is_better(name) else "smaller"
