"""The README.md of a generator's folder, in the form that Hugging Face calls a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.family import Family
from sid_ray.denoisers.registry import family_of
from sid_ray.denoisers.stock import StockScheduler
from sid_ray.errors import UserError
from sid_ray.metrics.names import bare, is_score, larger_is_better, scores_in_order, space_of
from sid_ray.objectives.spec import objective_spec
from sid_ray.weights.address import parse_source, source_label
from sid_ray.weights.base import BASE
from sid_ray.weights.description import WEIGHTS, ModelDescription
from sid_ray.weights.licence import licence_of, repository_of


def model_card(
    config: DistillConfig,
    description: ModelDescription,
    images_seen: int,
    scores: Mapping[str, float],
    sha256: str,
    size: int = 0,
) -> str:
    """The card as Markdown, with front matter.

    Args:
        description: of the generator, what its model.json holds.
        images_seen: by the training of these weights.
        scores: of these weights by name, empty where none were taken.
        sha256, size: of model.safetensors; 0 bytes are not told.
    """
    family = family_of(description.family)
    parts = [
        front_matter(config, family, description),
        f"# {config.run_name}",
        what_it_is(config, family, description),
        "## How it was made\n\n" + bullets(making(config, description, images_seen)),
        "## How to use it\n\n" + usage_text(config, family, description),
        "## How good it is\n\n" + quality(config, scores),
        "## Licence and file\n\n"
        f"{licence_sentence(config)} "
        f"SHA-256 of `{WEIGHTS}`{f', {size:,} bytes' if size else ''}:\n\n```\n{sha256}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def licence_sentence(config: DistillConfig) -> str:
    """Names that of a teacher which ships with sid_ray, with its attribution; no other is asked
    for while a run trains.
    """
    source = config.teacher.source
    built_in = parse_source(source).kind == "builtin"
    if not built_in or not (found := licence_of(source, None)).licence:
        return "The teacher's licence applies to the weights."
    by = f": {found.attribution}" if found.attribution else ""
    return f"The teacher's licence, `{found}`, applies to the weights{by}."


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


def front_matter(config: DistillConfig, family: Family, description: ModelDescription) -> str:
    task = "text-to-image" if family.reads_text else "unconditional-image-generation"
    is_lora = description.adapter is not None and bool(family.folder)  # diffusers reads it
    library = "diffusers" if is_lora else "sid_ray"
    lines = [f"library_name: {library}", f"pipeline_tag: {task}", "tags:"]
    lines += ["- lora"] if is_lora else []
    lines += [f"- {tag}" for tag in ("diffusion-distillation", "few-step", config.objective.name)]
    if parse_source(config.teacher.source).kind == "hf":
        lines.append(f"base_model: {hub_name(config)}")
    return "\n".join(["---", *lines, "---"])


def what_it_is(config: DistillConfig, family: Family, description: ModelDescription) -> str:
    steps = config.objective.num_steps
    count = "one network evaluation" if steps == 1 else f"{steps} network evaluations"
    _, height, width = family.shape(description.network)
    what = "latents" if family.makes_latents(description.network) else "an image"
    adapter = description.adapter
    kind = "A generator"
    if adapter is not None:
        rank = adapter["rank"]
        kind = f"A low-rank adapter (LoRA) of rank {rank} that makes of its teacher a generator"
    return (
        f"{kind} of family `{family.name}`: it makes {what} of {height}x{width} from noise "
        f"with {count}. Distilled by sid_ray from the diffusion model `{teacher_label(config)}`."
    )


def making(
    config: DistillConfig, description: ModelDescription, images_seen: int
) -> dict[str, str]:
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
    if (adapter := description.adapter) is not None:
        settings["adapter"] = f"rank {adapter['rank']}, alpha {adapter['alpha']:g}"
        if base := description.notes.get(BASE):
            settings["adapter"] += f", over numbers of SHA-256 {base}"
    if config.training.ema_half_life:
        settings["weights"] = f"averaged, half-life {config.training.ema_half_life:,} images"
    return settings | {"seed": str(config.training.seed)}


def bullets(values: Mapping[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in values.items())


def usage_text(config: DistillConfig, family: Family, description: ModelDescription) -> str:
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
    ) + adapter_usage(config, family, description)


def adapter_usage(config: DistillConfig, family: Family, description: ModelDescription) -> str:
    """What an adapter needs beside its file, and how diffusers makes its image; empty for a whole
    network.
    """
    if description.adapter is None:
        return ""
    base = f"`{teacher_label(config)}`{lora_label(config)}"
    found = f"It is laid over {base}: `--base` names another place of that, or a fine-tune of it."
    scheduler = printed_scheduler(config, family, description)
    if scheduler is None:
        return f"\n\n{found}"
    merged = ", after `sid-ray weights fuse` with that LoRA" if lora_label(config) else ""
    makes_latents = family.makes_latents(description.network)
    factor = family.latent_convention().usual_factor if makes_latents else 1
    pixels = factor * family.shape(description.network)[1]
    call = ", ".join(f"{name}={value!r}" for name, value in scheduler.call.items())
    ratio = float(description.adapter["alpha"]) / int(description.adapter["rank"])
    other = "" if ratio == 1 else f" Tools that do not read alpha need a strength of {ratio:g}."
    return (
        f"\n\n{found} Or with diffusers{merged}:\n\n```python\nimport torch\n"
        "from diffusers import DiffusionPipeline\n"
        f"{scheduler.lines()}"
        f'pipe = DiffusionPipeline.from_pretrained("{hub_name(config)}", scheduler=scheduler)\n'
        f'pipe.load_lora_weights("FOLDER", weight_name="{WEIGHTS}")\n'
        f"size = {{'height': {pixels}, 'width': {pixels}}}\n"
        f'image = pipe("a prompt", {call}, guidance_scale=1, **size).images[0]\n'
        "\n```\n\n"
        f"`pipe.fuse_lora()` merges it for good.{other}"
    )


def printed_scheduler(
    config: DistillConfig, family: Family, description: ModelDescription
) -> StockScheduler | None:
    """That of exports; None where a card cannot print it, or where a person would have to scale the
    first noise.
    """
    if not family.folder or config.objective.num_steps > 1:
        return None
    try:
        found = family.noise.exported(description.one_step or {})
    except UserError:
        return None
    many = "trained_betas" in found.config and not found.betas
    return None if many or found.latents_scale != 1 else found


def hub_name(config: DistillConfig) -> str:
    """The teacher as diffusers names it: OWNER/REPO on the hub."""
    return repository_of(config.teacher.source) or teacher_label(config)


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
