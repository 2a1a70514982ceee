"""The ``sid-ray`` command: its subcommands, and what an exit code says.

A subcommand names the dataclass of its arguments and the function that does it. The first loads
nothing heavy: nothing is started, and neither torch nor Ray is loaded, before arguments are right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO, cast

from sid_ray import __version__
from sid_ray.errors import UserError, nearest
from sid_ray.ray_setup.environment import stopping_like_ctrl_c
from sid_ray.storage.outlet import Outlet
from sid_ray.storage.places import in_words, one_line

TRACEBACK = "SID_RAY_TRACEBACK"
TYPED = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)
"""What a name that was typed can be, whoever opens it."""
HELP = ("-h", "--help")


@dataclass(frozen=True)
class Command:
    """A subcommand. The places are MODULE:NAME within sid_ray."""

    typed: str
    """Its name and what stands behind it."""
    does: str
    """What it does, in a line."""
    options: str
    """Place of the dataclass of its arguments."""
    act: str
    """Place of the function that does it: of the dataclass, and the config's flags where it
    takes any; of a recipe's command of the config, the dataclass and the flags. Returns the exit
    code."""

    @property
    def name(self) -> str:
        """The words in small letters at the beginning."""
        words = self.typed.split()
        return " ".join(words[:2] if words[1:2] and words[1].islower() else words[:1])

    def __call__(self, args: Sequence[str]) -> int:
        """Raises UserError, SystemExit after help."""
        from sid_ray.commands.arguments import OfRecipe, WithConfig, of_recipe, parse, with_flags

        prog, kind = f"sid-ray {self.name}", loaded(self.options)
        if issubclass(kind, OfRecipe):
            options, config, flags = of_recipe(kind, args, prog)
            return loaded(self.act)(config, options, flags)
        if issubclass(kind, WithConfig):
            return loaded(self.act)(*with_flags(kind, args, prog))
        return loaded(self.act)(parse(kind, args, prog))


def loaded(place: str):
    return pkgutil.resolve_name(f"sid_ray.{place}")


LIST = (
    Command(
        "distill RECIPE [--section.field VALUE ...]",
        "distil; the same command resumes",
        "commands.distill_options:DistillOptions",
        "commands.distill_options:distill_command",
    ),
    Command(
        "submit RECIPE [--cluster FILE | --address URL] [...]",
        "the same as a job of a Ray cluster",
        "jobs.submit:SubmitOptions",
        "jobs.submit:submit",
    ),
    Command(
        "sweep SPACE [--trials N] [...]",
        "search settings: many runs, the best found",
        "sweep.command:SweepOptions",
        "sweep.command:sweep",
    ),
    Command(
        "sweep report FOLDER [--out report.html]",
        "a sweep's trials and plots on a page",
        "sweep.command:ReportOptions",
        "sweep.command:report",
    ),
    Command(
        "plan RECIPE [--gpus N] [--gpu-memory GIB]",
        "memory, micro-batch and ZeRO stage, first",
        "commands.plan_options:PlanOptions",
        "commands.plan:plan",
    ),
    Command(
        "bench RECIPE [--minutes M] [--json FILE]",
        "the fastest settings on this machine, measured",
        "commands.bench_options:BenchOptions",
        "commands.bench:bench",
    ),
    Command(
        "doctor [RECIPE]",
        "is all there that a run needs?",
        "commands.doctor:DoctorOptions",
        "commands.doctor:doctor",
    ),
    Command(
        "generate RUN_OR_CHECKPOINT [--seeds 0-63]",
        "make images with a generator",
        "commands.generate_options:GenerateOptions",
        "commands.generate:generate",
    ),
    Command(
        "export RUN_OR_CHECKPOINT DIR",
        "a folder for diffusers, or with its own loader",
        "commands.export_options:ExportOptions",
        "commands.export:export",
    ),
    Command(
        "push RUN_CHECKPOINT_OR_EXPORT hf://OWNER/REPO",
        "the same into a repository of the Hugging Face hub",
        "commands.push_options:PushOptions",
        "commands.push:push",
    ),
    Command(
        "serve RUN [RUN ...] [--port 8000]",
        "a page and an HTTP interface in front of generators",
        "serving.options:ServeOptions",
        "serving.command:serve_command",
    ),
    Command(
        "evaluate RUN_CHECKPOINT_TEACHER_OR_FOLDER",
        "score its images by FID and the like",
        "evaluation.options:EvaluateOptions",
        "commands.evaluate:run_evaluation",
    ),
    Command(
        "ui [FOLDER]",
        "MLflow's pages on a folder of runs",
        "commands.ui:UiOptions",
        "commands.ui:ui",
    ),
    Command(
        "compare RUN [RUN ...] [--out compare.html]",
        "runs side by side on one page",
        "commands.compare:CompareOptions",
        "commands.compare:compare",
    ),
    Command(
        "gallery RUN [--out gallery.html]",
        "a run's pictures on one page, as it learned",
        "commands.gallery_options:GalleryOptions",
        "commands.gallery:gallery",
    ),
    Command(
        "recipes [NAME or its beginning]",
        "list recipes, or print one in full",
        "commands.recipes:RecipesOptions",
        "commands.recipes:recipes",
    ),
    Command(
        "weights inspect SRC",
        "what a weights file holds and would run",
        "weights.options:InspectOptions",
        "weights.command:show_network",
    ),
    Command(
        "weights convert SRC DST.safetensors",
        "published weights to safetensors",
        "weights.options:ConvertOptions",
        "weights.command:write",
    ),
    Command(
        "weights fuse BASE ADAPTER DST",
        "an adapter or a LoRA into a network's weights",
        "commands.fuse_options:FuseOptions",
        "commands.fuse:fuse",
    ),
    Command(
        "data prepare SRC DST",
        "images, latents, labels, prompts",
        "data.options:PrepareOptions",
        "data.command:prepare",
    ),
    Command(
        "data show DST [--out sheet.png] [--verify]",
        "what a prepared data set holds",
        "data.options:ShowOptions",
        "data.command:show_set",
    ),
)
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {each.name: each for each in LIST}


def usage_of_commands(group: str = "") -> str:
    """All commands, or those of a group of them."""
    shown = [each for each in LIST if each.name.startswith(group)]
    lines = [f"  sid-ray {each.typed:51}  {each.does}" for each in shown]
    title = f"sid-ray {__version__}: distil diffusion models into one-step generators"
    return "\n".join([title, "", *lines, "", "Each command has --help."])


def chosen_command(args: Sequence[str]) -> tuple[str, Sequence[str]]:
    """A command's name, of one word or two, and what stands behind it. Raises UserError."""
    for count in (2, 1):
        name = " ".join(args[:count])
        if name in COMMANDS:
            return name, args[count:]
    group = [name for name in COMMANDS if name.startswith(f"{args[0]} ")]
    if group:
        words = " or ".join(name.split()[1] for name in group)
        found = f"no command {args[0]} {args[1]!r}" if args[1:] else f"{args[0]} needs a command"
        raise UserError(f"{found}: {words} is expected")
    names = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    hint = nearest(args[0], names) or f" There are: {', '.join(names)}."
    raise UserError(f"no command {args[0]!r}.{hint}")


def run_command(args: Sequence[str]) -> int:
    """Dispatches to a subcommand; returns its exit code."""
    if not args or args[0] in HELP:
        print(usage_of_commands())
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    if args[1:2] and args[1] in HELP and args[0] not in COMMANDS:
        group = f"{args[0]} "
        if any(name.startswith(group) for name in COMMANDS):
            print(usage_of_commands(group))
            return 0
    name, rest = chosen_command(args)
    try:
        return COMMANDS[name](rest)
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
        sys.exit(exit_code_of(sys.argv[1:] if args is None else args))


def exit_code_of(args: Sequence[str]) -> int:
    """A command's exit code. What is a person's to mend is told in one line; a bug is not."""
    try:
        try:
            return run_command(args)
        finally:
            sys.stdout.flush()  # a reader that is gone shows here, not when Python ends
    except UserError as error:
        return told_on_stderr(str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still in the buffer would be written once more at the end, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return told_on_stderr(f"{in_words(error)} ({TRACEBACK}=1 shows where)", 1)
    except MemoryError as error:
        return told_on_stderr(f"not enough memory ({str(error) or type(error).__name__:.200})", 1)


def told_on_stderr(text: str, code: int) -> int:
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
