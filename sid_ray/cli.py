"""The ``sid-ray`` command. Each subcommand is a function of its arguments; nothing heavy is
imported before the arguments are known to be right."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO, cast

import tyro

from sid_ray import __version__
from sid_ray.commands.arguments import (
    ALIASES,
    expand_aliases,
    is_address,
    number_list,
    one_of,
    parse,
    typed_prompts,
    without_repeats,
)
from sid_ray.commands.generate_options import GenerateOptions
from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.options import MAX_CLASSES, PrepareOptions, ShowOptions
from sid_ray.errors import UserError, nearest
from sid_ray.evaluation.options import EvaluateOptions
from sid_ray.metrics.spec import metric_specs
from sid_ray.objectives.spec import objective_specs
from sid_ray.ray_setup.environment import stopping_like_ctrl_c
from sid_ray.ray_setup.start import check_ray
from sid_ray.recipes.registry import (
    GUIDANCE,
    RECIPES,
    check_supplied,
    recipe,
    recipe_entry,
)
from sid_ray.recipes.table import recipe_json, recipe_table
from sid_ray.storage.outlet import Outlet
from sid_ray.storage.places import check_file, check_folder, in_words, one_line

TRACEBACK = "SID_RAY_TRACEBACK"
TYPED = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)
"""What a name that was typed can be, whoever opens it."""

USAGE = f"""sid-ray {__version__}: distil diffusion models into one-step generators

  sid-ray distill RECIPE [--section.field VALUE ...]   distil; the same command resumes
  sid-ray submit RECIPE [--cluster FILE | --address URL] [...]   the same as a job of a Ray cluster
  sid-ray sweep SPACE [--trials N] [...]               search settings: many runs, the best found
  sid-ray plan RECIPE [--gpus N] [--gpu-memory GIB]    memory, micro-batch and ZeRO stage, first
  sid-ray doctor [RECIPE]                              is all there that a run needs?
  sid-ray generate RUN_OR_CHECKPOINT [--seeds 0-63]    make images with a generator
  sid-ray evaluate RUN_CHECKPOINT_OR_TEACHER           score its images by FID and the like
  sid-ray evaluate FOLDER_OF_IMAGES                    the same for images that are there
  sid-ray ui [FOLDER]                                  MLflow's pages on a folder of runs
  sid-ray compare RUN [RUN ...] [--out compare.html]   runs side by side on one page
  sid-ray recipes [NAME or its beginning]              list recipes, or print one in full
  sid-ray weights inspect SRC                          what a weights file holds and would run
  sid-ray weights convert SRC DST.safetensors          published weights to safetensors
  sid-ray data prepare SRC DST                         images, latents, labels, prompts
  sid-ray data show DST [--out sheet.png] [--verify]   what a prepared data set holds

Each command has --help."""

WEIGHTS_USAGE = """usage: sid-ray weights inspect SRC [--part PART]
       sid-ray weights convert SRC DST.safetensors [--part PART] [--like SRC] [--force]

SRC is a path, builtin:NAME, https://, s3:// or hf://owner/repo/path[@revision]; #sha256=HEX behind
it asks for exactly that file. Each has --help."""

DATA_USAGE = """usage: sid-ray data prepare SRC DST [--resolution N] [--encode TEACHER] [...]
       sid-ray data show DST [--out sheet.png] [--verify]

SRC is a folder, zip or tar of images, tar shards, Parquet with images, labels (dataset.json),
prompts (.txt), or digits, emoji or fashion-mnist[:FOLDER]; SRC and DST are paths or
s3://BUCKET/PREFIX. Each has --help."""


def distill(args: Sequence[str]) -> int:
    """sid-ray distill RECIPE [--section.field VALUE ...]"""
    if not args or args[0] in ("-h", "--help"):
        shortcuts = ", ".join(f"{short} = {full}" for short, full in ALIASES.items())
        objectives = ", ".join(f"{each.name} ({each.label})" for each in objective_specs())
        metrics = ", ".join(f"{each.name} ({each.title})" for each in metric_specs())
        print(
            "usage: sid-ray distill RECIPE [--section.field VALUE ...]\n\n"
            f"recipes: digits-sid and {len(RECIPES) - 1} more; sid-ray recipes lists them\n"
            f"short forms: {shortcuts}, --eval.X = --evaluation.X\n"
            f"--guidance STRATEGY:KAPPA sets kappa1 to kappa4; strategies: {', '.join(GUIDANCE)}\n"
            f"objectives: {objectives}\nmetrics: {metrics}\n"
            "sid-ray distill RECIPE --help explains every field with the recipe's value"
        )
        return 0
    if args[0].startswith("-"):
        raise UserError("name a recipe first: sid-ray distill RECIPE [--section.field VALUE ...]")
    name = args[0]
    defaults = recipe(name)
    config = parse(
        DistillConfig, expand_aliases(args[1:]), f"sid-ray distill {name}", default=defaults
    )
    check_supplied(config.check())
    check_ray()
    from sid_ray.commands.distill import run_distillation

    return run_distillation(config)


def submit(args: Sequence[str]) -> int:
    """sid-ray submit RECIPE [--cluster FILE | --address URL] [--section.field VALUE ...]"""
    from sid_ray.jobs.submit import USAGE as SUBMIT_USAGE
    from sid_ray.jobs.submit import own_flags, run_submit

    if not args or args[0] in ("-h", "--help"):
        print(SUBMIT_USAGE)
        return 0
    defaults = recipe(args[0])
    asked, rest = own_flags(args[1:])
    prog = f"sid-ray submit {args[0]}"
    config = parse(DistillConfig, expand_aliases(rest), prog, default=defaults)
    check_supplied(config.check())
    return run_submit(config, asked, rest)


def sweep(args: Sequence[str]) -> int:
    """sid-ray sweep SPACE [--recipe NAME] [--trials N] [--section.field VALUE ...]"""
    from sid_ray.sweep.command import run_command

    return run_command(args)


def plan(args: Sequence[str]) -> int:
    """sid-ray plan RECIPE [--gpus N] [--gpu-memory GIB] [--section.field VALUE ...]"""
    from sid_ray.commands.plan import USAGE as PLAN_USAGE
    from sid_ray.commands.plan import own_flags, run_plan

    if not args or args[0] in ("-h", "--help"):
        print(PLAN_USAGE)
        return 0
    defaults = recipe(args[0])
    asked, rest = own_flags(args[1:])
    prog = f"sid-ray plan {args[0]}"
    return run_plan(parse(DistillConfig, expand_aliases(rest), prog, default=defaults), asked)


def doctor(args: Sequence[str]) -> int:
    """sid-ray doctor [RECIPE] [--deep] [--section.field VALUE ...]"""
    from sid_ray.commands.doctor import USAGE as DOCTOR_USAGE
    from sid_ray.commands.doctor import own_flags, run_doctor
    from sid_ray.run_folder import runs_folder
    from sid_ray.storage.s3 import set_endpoint

    if args and args[0] in ("-h", "--help"):
        print(DOCTOR_USAGE)
        return 0
    deep, rest = own_flags(args)
    named = bool(rest) and not rest[0].startswith("-")
    prog = f"sid-ray doctor{f' {rest[0]}' if named else ''}"
    default = recipe(rest[0]) if named else DistillConfig()
    config = parse(DistillConfig, expand_aliases(rest[named:]), prog, default=default)
    if named:
        check_supplied(config.check())
    set_endpoint(config.storage.endpoint_url, config.storage.region)
    return run_doctor(config if named else None, runs_folder(config.output.folder), deep)


@dataclass(frozen=True)
class GenerateArgs(GenerateOptions):
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run's folder, one of its checkpoints, RUN/best, or a generator's weights: a path, https://,
    s3:// or hf://OWNER/REPO/PATH."""

    __doc__ = GenerateOptions.__doc__


def generate(args: Sequence[str]) -> int:
    """sid-ray generate RUN_OR_CHECKPOINT"""
    parsed = parse(GenerateArgs, args, "sid-ray generate")
    parsed.check()
    if is_address(parsed.out):
        raise UserError(f"--out {parsed.out}: pictures go to a folder on this machine's disk")
    check_folder(parsed.out, "--out")
    seeds = without_repeats(number_list(parsed.seeds, "seeds"))
    classes = number_list(parsed.labels, "labels", MAX_CLASSES) if parsed.labels else None
    prompts: Sequence[str] = typed_prompts(parsed.prompt)
    if parsed.prompts is not None:
        from sid_ray.data.prompts import read_prompts

        prompts = read_prompts(str(parsed.prompts))
    from sid_ray.commands.generate import run_generate

    return run_generate(parsed, seeds, classes, prompts)


@dataclass(frozen=True)
class EvaluateArgs(EvaluateOptions):
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run's folder, one of its checkpoints, RUN/best, or any network: a path, https://, s3://,
    hf://OWNER/REPO/PATH or builtin:NAME; or images: a folder, a .zip or s3://."""

    __doc__ = EvaluateOptions.__doc__


def evaluate(args: Sequence[str]) -> int:
    """sid-ray evaluate RUN_CHECKPOINT_OR_TEACHER"""
    parsed = parse(EvaluateArgs, args, "sid-ray evaluate")
    parsed.check()
    from sid_ray.commands.evaluate import run_evaluation

    return run_evaluation(parsed)


@dataclass
class CompareArgs:
    """Writes a page with runs side by side: scores, cost, settings, pictures of the same seeds."""

    runs: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folders of runs: paths or s3://."""
    out: Path = Path("compare.html")
    """The page; nothing else belongs to it."""
    seeds: str = "0-15"
    """Seeds of the pictures."""
    prompt: str = ""
    """Text for text-to-image generators; | stands between several."""


def compare(args: Sequence[str]) -> int:
    """sid-ray compare RUN [RUN ...]"""
    parsed = parse(CompareArgs, args, "sid-ray compare")
    if not parsed.runs:
        raise UserError("name the runs to compare: sid-ray compare RUN [RUN ...]")
    if is_address(parsed.out):
        raise UserError(f"--out {parsed.out}: the page is a file on this machine's disk; name one")
    check_file(parsed.out, "--out")
    from sid_ray.commands.compare import MOST_SEEDS, write_comparison

    prompts = typed_prompts(parsed.prompt)
    write_comparison(
        parsed.runs, parsed.out, number_list(parsed.seeds, "seeds", MOST_SEEDS), prompts
    )
    print(f"{len(parsed.runs)} runs in {parsed.out}")
    return 0


@dataclass
class UiArgs:
    """Opens MLflow's pages on a folder of runs."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = "runs"
    """The folder of all runs, a path or s3://."""
    host: str = "127.0.0.1"
    """Address to listen on. Whoever reaches it may change what is stored."""
    port: int = 5000
    """Port to listen on."""


def ui(args: Sequence[str]) -> int:
    """sid-ray ui [FOLDER]"""
    parsed = parse(UiArgs, args, "sid-ray ui")
    if not 1 <= parsed.port <= 65535:
        raise UserError(f"--port {parsed.port}: expected 1 to 65535")
    from sid_ray.commands.ui import run_ui

    return run_ui(parsed.folder, parsed.host, parsed.port)


def recipes(args: Sequence[str]) -> int:
    """sid-ray recipes [NAME or its beginning]"""
    wanted = "" if not args or args[0] in ("-h", "--help") else args[0]
    if wanted in RECIPES or not any(name.startswith(wanted) for name in RECIPES):
        print(recipe_json(recipe_entry(wanted)))
        return 0
    for line in recipe_table(wanted):
        print(line)
    return 0


@dataclass
class InspectArgs:
    """Shows what a weights file holds, and what unpickling it naively would have done."""

    source: Annotated[str, tyro.conf.Positional]
    """A path, https://, s3://, hf:// or builtin:NAME."""
    part: str | None = None
    """Which network of a training state: ema, G, fake_score or net."""


@dataclass
class ConvertArgs:
    """Writes a network's weights as safetensors with its description."""

    source: Annotated[str, tyro.conf.Positional]
    """A path, https://, s3://, hf:// or builtin:NAME."""
    destination: Annotated[Path, tyro.conf.Positional]
    """NAME.safetensors (model.json comes beside it), or a name without a suffix for a folder."""
    part: str | None = None
    """Which network of a training state: ema, G, fake_score or net."""
    like: str | None = None
    """A source with the same network, where this one records none (SiDA's training states)."""
    force: bool = False
    """Replace what is there."""


def weights(args: Sequence[str]) -> int:
    """sid-ray weights inspect|convert"""
    chosen = one_of(args, "weights", ("inspect", "convert"), WEIGHTS_USAGE)
    if not chosen:
        return 0
    prog = f"sid-ray weights {chosen}"
    if chosen == "inspect":
        wanted = parse(InspectArgs, args[1:], prog)
        from sid_ray.weights.command import inspect

        for line in inspect(wanted.source, wanted.part):
            print(line)
        return 0
    order = parse(ConvertArgs, args[1:], prog)
    from sid_ray.weights.command import convert

    done = convert(order.source, order.destination, order.part, order.like, order.force)
    print(f"{order.destination}: {done}")
    return 0


@dataclass(frozen=True)
class PrepareArgs(PrepareOptions):
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A zip or folder of images or latents, dataset.json with labels, a .txt with a prompt a line,
    digits, emoji or fashion-mnist[:FOLDER]; a path or s3://."""
    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """A new or empty folder, or s3://BUCKET/PREFIX."""

    __doc__ = PrepareOptions.__doc__


@dataclass(frozen=True)
class ShowArgs(ShowOptions):
    place: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Its folder, or s3://BUCKET/PREFIX."""

    __doc__ = ShowOptions.__doc__


def data(args: Sequence[str]) -> int:
    """sid-ray data prepare|show"""
    chosen = one_of(args, "data", ("prepare", "show"), DATA_USAGE)
    if not chosen:
        return 0
    prog = f"sid-ray data {chosen}"
    if chosen == "show":
        wanted = parse(ShowArgs, args[1:], prog)
        from sid_ray.data.command import show

        return show(wanted)
    order = parse(PrepareArgs, args[1:], prog)
    order.check()
    from sid_ray.data.command import prepare

    return prepare(order)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "distill": distill,
    "submit": submit,
    "sweep": sweep,
    "plan": plan,
    "doctor": doctor,
    "generate": generate,
    "evaluate": evaluate,
    "compare": compare,
    "ui": ui,
    "recipes": recipes,
    "weights": weights,
    "data": data,
}


def run(args: Sequence[str]) -> int:
    """Dispatches to a subcommand; returns its exit code."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    if args[0] not in COMMANDS:
        hint = nearest(args[0], COMMANDS) or f" There are: {', '.join(COMMANDS)}."
        raise UserError(f"no command {args[0]!r}.{hint}")
    try:
        return COMMANDS[args[0]](args[1:])
    except OSError as error:
        if error.errno not in TYPED or error.filename is None:
            raise
        raise UserError(f"{error.filename!s:.200}: {error.strerror}") from None


def main(args: Sequence[str] | None = None) -> None:
    """Console entry point: exit code 0 done, 1 failed, 2 wrong input, 3 a run gave up,
    4 another driver may have the run, 130 interrupted."""
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    outlet = cast(TextIO, Outlet(sys.stdout, os.devnull, closed_terminal_only=True))
    with stopping_like_ctrl_c(), contextlib.redirect_stdout(outlet):
        sys.exit(code_of(sys.argv[1:] if args is None else args))


def code_of(args: Sequence[str]) -> int:
    """A command's exit code. What is a person's to mend is told in one line; a bug is not."""
    try:
        try:
            return run(args)
        finally:
            sys.stdout.flush()  # a reader that is gone shows here, not when Python ends
    except UserError as error:
        return told(str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still in the buffer would be written once more at the end, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return told(f"{in_words(error)} ({TRACEBACK}=1 shows where)", 1)
    except MemoryError as error:
        return told(f"not enough memory ({str(error) or type(error).__name__:.200})", 1)


def told(text: str, code: int) -> int:
    """The code, after one line on stderr; with SID_RAY_TRACEBACK set, the traceback before it."""
    with contextlib.suppress(OSError):  # a terminal that is gone
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        print(f"sid-ray: {one_line(text)}", file=sys.stderr, flush=True)
    return code


def distill_script(default: str) -> None:
    """An entry script's `python SCRIPT [RECIPE] [--section.field VALUE ...]`."""
    args = sys.argv[1:]
    named = bool(args) and not args[0].startswith("-")
    main(["distill", *([] if named else [default]), *args])


if __name__ == "__main__":
    main()
