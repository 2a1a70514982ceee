"""The README.md of an exported folder: a model card whose first lines of code generate."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sid_ray.checkpoint.model_card import bullets, making, plain_label, quality
from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.registry import family_of
from sid_ray.exporting.stock_folder import SCHEDULER, Stock
from sid_ray.weights.address import HubFile, parse_source
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.licence import Licence, repository_of

GRID = "grid.png"
FENCE, FOLDER = "```python\n", "folder = "


@dataclass(frozen=True)
class Story:
    """What is known of a generator beside its network.

    Attributes:
        name: of the run, or of the folder.
        teacher: source of what it was distilled from; empty where that is not known.
        base: of an adapter, and of a network alone, the source that people load; else the teacher.
        licence: that the base's own card names.
        command: that wrote the folder.
        description: of the generator.
        config: of its run; None for a generator of no run.
        compared: a sentence about the comparison with sid_ray's own images.
    """

    name: str
    teacher: str
    base: str
    licence: Licence
    command: str
    prompts: Sequence[str]
    description: ModelDescription
    config: DistillConfig | None = None
    images_seen: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    compared: str = ""


class CardText(NamedTuple):
    """Of one kind of folder: ``told``, how it is evaluated; ``lines``, Python that generates;
    ``relation`` to its base, as the hub names them but for pipeline, network and loader.
    """

    told: str
    lines: str
    relation: str


def card_of(story: Story, text: CardText) -> str:
    """The card, Markdown with front matter."""
    parts = [
        front_of_card(story, text.relation),
        f"# {story.name}",
        f"![Pictures of seeds]({GRID})",
        text.told,
        f"{FENCE}{text.lines}```",
    ]
    if story.config is not None:
        made = making(story.config, story.description, story.images_seen)
        parts.append("## How it was made\n\n" + bullets(made))
        parts.append("## How good it is\n\n" + quality(story.config, story.scores))
    elif story.teacher:
        parts.append(f"## How it was made\n\nDistilled from `{plain_label(story.teacher)}`.")
    name = str(story.licence)
    licence = f"The base's licence, `{name}`," if name else "The base's licence"
    by = f": {story.licence.attribution}" if story.licence.attribution else ""
    parts.append(
        f"## Licence and file\n\n{licence} applies to the weights{by}. Exported by\n\n"
        f"{fenced(story.command)}\n\n{story.compared}"
    )
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


def fenced(text: str) -> str:
    """A block of code, whatever a person has typed in it."""
    fence = "`" * max(3, 1 + longest_run(text))
    return f"{fence}\n{text}\n{fence}"


def in_prose(text: str) -> str:
    """What a person has typed as code in one line: Markdown reads nothing in it."""
    folded, fence = " ".join(text.split()), "`" * (1 + longest_run(text))
    room = " " if "`" in folded else ""
    return f"{fence}{room}{folded}{room}{fence}"


def longest_run(text: str) -> int:
    """Of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


DIFFUSERS = ("pipeline", "network", "adapter")
LIBRARIES = {"onnx": "onnx", "loader": "pytorch"} | dict.fromkeys(DIFFUSERS, "diffusers")


def front_of_card(story: Story, kind: str) -> str:
    lines = [f"library_name: {LIBRARIES[kind]}"]
    reads_text = family_of(story.description.family).reads_text
    task = "text-to-image" if reads_text else "unconditional-image-generation"
    lines.append(f"pipeline_tag: {task}")
    lines += story.licence.lines()
    if repository := repository_of(story.base):
        lines.append(f"base_model: {repository}")
        if kind in DIFFUSERS:
            lines.append(f"base_model_relation: {'adapter' if kind == 'adapter' else 'finetune'}")
    lines += ["tags:", "- diffusion-distillation", "- few-step"]
    if kind == "adapter":
        lines.append("- lora")
    return "\n".join(["---", *lines, "---"])


def base_opened(source: str) -> str:
    """The arguments that open a base: its repository and revision on the hub, or its plain name."""
    repository = repository_of(source)
    if not repository:
        return quoted(plain_label(source))
    hub = HubFile.parse(parse_source(source).location)
    return arguments_of_hub(repository, hub.revision)


def arguments_of_hub(repository: str, revision: str) -> str:
    return quoted(repository) + ("" if revision == "main" else f", revision={quoted(revision)}")


def card_on_hub(card: str, name: str, repository: str, branch: str) -> str:
    """A card whose lines open ``repository`` in place of the folder that is called ``name``."""
    head, begin, rest = card.partition(FENCE)
    lines, end, tail = rest.partition("\n```")
    place = arguments_of_hub(repository, branch)
    # Not pipe("..."): a prompt may begin like a place in the folder.
    inside, opened = re.compile(r"(?<!pipe)\(" + re.escape(quoted(f"{name}/")[:-1])), place
    if FOLDER + quoted(name) in lines:  # a loader reads a folder on a disk
        lines = with_snapshot(lines.replace(FOLDER + quoted(name) + "\n", ""), place)
    elif inside.search(lines):  # so does what opens a file or a folder in it
        lines, opened = with_snapshot(inside.sub('(f"{folder}/', lines), place), "folder"
    for call in ("from_pretrained(", "load_lora_weights("):
        lines = lines.replace(call + quoted(name), call + opened)
    return head + begin + lines + end + tail


def with_snapshot(lines: str, place: str) -> str:
    """Lines after whose imports ``folder`` is a snapshot of a repository."""
    said = lines.split("\n")
    first = next(i for i, line in enumerate(said) if not line.startswith(("import ", "from ")))
    fetched = [
        "from huggingface_hub import snapshot_download",
        "",
        f"{FOLDER}snapshot_download({place})",
    ]
    return "\n".join([*said[:first], *fetched, *said[first + (not said[first]) :]])


# The lines that generate --------------------------------------------------------------------------


def pipeline_lines(folder: str, stock: Stock, prompt: str, kind: str, base: str) -> str:
    """Python that makes a picture with diffusers alone. ``folder`` is the export's, as it is found
    from where the lines run, ``base`` the arguments that open
    what an adapter or a network alone is loaded into.
    """
    given = arguments_line(stock.call)
    drawn = []
    if stock.scheduler.latents_scale != 1:
        scale = f"{stock.scheduler.latents_scale:.8g}"
        drawn.append(f"latents = {scale} * torch.randn(1, *{stock.shape})")
        if stock.pipeline.packs_latents:
            drawn.append("latents = pipe._pack_latents(latents, *latents.shape)")
        given += ", latents=latents"
    lines = [
        "import torch",
        *opening_lines(folder, stock, kind, base),
        "torch.manual_seed(0)",
        *drawn,
        f"image = pipe({quoted(prompt)}, {given}).images[0]",
        'image.save("image.png")',
    ]
    return "\n".join(lines) + "\n"


def opening_lines(folder: str, stock: Stock, kind: str, base: str) -> list[str]:
    network, scheduler = stock.pipeline.network_class, stock.scheduler.class_name
    part, dtype = stock.pipeline.folder, "torch_dtype=torch.float32"
    whole = ", ".join([dtype, *(f"{name}=None" for name in stock.pipeline.left_out)])
    if kind == "pipeline":
        return [
            "from diffusers import DiffusionPipeline",
            "",
            f"pipe = DiffusionPipeline.from_pretrained({quoted(folder)}, {whole})",
        ]
    alone = kind == "network"
    names = ["DiffusionPipeline", scheduler, *([network] if alone else [])]
    inside, given = f"{quoted(folder)}, subfolder=", "scheduler=scheduler"
    lines = [
        f"from diffusers import {', '.join(names)}",
        "",
        f'scheduler = {scheduler}.from_pretrained({inside}"{SCHEDULER}")',
    ]
    if alone:
        lines.append(f'{part} = {network}.from_pretrained({inside}"{part}", {dtype})')
        given += f", {part}={part}"
    lines.append(f"pipe = DiffusionPipeline.from_pretrained({base}, {given}, {whole})")
    return lines if alone else [*lines, f"pipe.load_lora_weights({quoted(folder)})"]


def how_evaluated(stock: Stock) -> str:
    """A sentence on steps, scheduler and what a person must not change."""
    steps = dict(stock.call)["num_inference_steps"]
    guided = stock.call["guidance_scale"]
    first = "one network evaluation" if steps == 1 else f"{steps} network evaluations"
    told = (
        f"Makes an image of {stock.shape[1] * stock.vae_factor} pixels a side from a prompt with "
        f"{first}. `{stock.scheduler.class_name}` in `{SCHEDULER}/` is set for that; guidance is "
        f"in the weights, so `guidance_scale` is {guided:g}."
    )
    if stock.pixels:
        told += " The network makes pixels: the `vae` hands them through."
    if stock.scheduler.latents_scale != 1:
        told += (
            f" The first noise is {stock.scheduler.latents_scale:.5g} times N(0, 1): pass "
            "`latents`, which the scheduler does not scale."
        )
    return told


def loader_lines(
    folder: str, shape: tuple[int, int, int], classes: int, loader: str, one: ModelDescription
) -> tuple[str, str]:
    """A sentence, and Python that makes pictures with the loader beside the weights."""
    channels, height, width = shape
    labels = f", labels=[seed % {classes} for seed in range(16)]" if classes else ""
    steps = dict(one.one_step or {}).get("num_steps", 1)
    count = "one network evaluation" if steps == 1 else f"{steps} network evaluations"
    told = (
        f"Makes [{channels}, {height}, {width}] from noise with {count}. `{loader}` needs torch, "
        "safetensors and Pillow; nothing in this folder is a pickle."
    )
    lines = [
        "import sys",
        "",
        FOLDER + quoted(folder),
        "sys.path.insert(0, folder)",
        f"from {Path(loader).stem} import load, save_grid",
        "",
        "generator = load(folder)",
        f"images = generator.sample(seeds=range(16){labels})",
        'save_grid(images, "images.png")',
    ]
    return told, "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def arguments_line(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
