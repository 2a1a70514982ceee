"""Odd words for every option of every command: each ends in one line for a person, or is taken.

    python -m benchmarks.fuzz_cli [--commands distill,generate] [--seed 0] [--samples 2000]

Calls ``run`` in this process, with whatever would start Ray, a server or a training replaced.
Prints each call that ended in anything but a UserError or SystemExit, and with --accepted what was
taken.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import random
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from sid_ray import cli
from sid_ray.commands.generate_options import GenerateOptions
from sid_ray.config.distill_config import DistillConfig, flatten
from sid_ray.data.options import PrepareOptions, ShowOptions
from sid_ray.errors import UserError
from sid_ray.evaluation.options import EvaluateOptions

NUMBERS = (
    "0", "-1", "1", "nan", "inf", "-inf", "1e30", "-1e30", "1e-300", "9" * 19, "9" * 5000,
    "0x10", "1_0", "\u0663", " 7", "1,5", "1.5", "", "true", "None",
)  # fmt: skip
TEXTS = (
    "", " ", ".", "..", "../x", "a/b", "/", "-", "--", "a b", "a\nb", "\u2028", "\u0663",
    "x" * 300, "\udcff", "%s", "{}", "~nobody/x", "~", "s3://", "s3://b", "s3:/b", "s3://b/../c",
    "hf://", "hf://a", "https://", "http://127.0.0.1:1/x", "ftp://x", "builtin:", "builtin:nope",
    "builtin:digits-teacher", "/dev/null", "/dev/zero", "/proc/self/mem", "FOLDER", "EMPTY",
    "FILE", "BINARY", "BLANK", "NPZ", "PICKLE", "FIFO", "SOCKET", "#sha256=0", "FILE#sha256=zz",
    "5-1", "1-", "-3", "0-1e9", "0-99999999999", "1,1", ",", "=", "a=b", "GPU", "GPU=nan", "fd,fd",
)  # fmt: skip
"""Upper-case words stand for things on the disk, see ``things``."""


def things(folder: Path) -> dict[str, str]:
    """What odd words of TEXTS stand for."""
    import os
    import socket

    import numpy as np

    names = ["FOLDER", "EMPTY", "FILE", "BINARY", "BLANK", "NPZ", "PICKLE", "FIFO", "SOCKET"]
    found = {name: str(folder / name.lower()) for name in names}
    (folder / "folder").mkdir()
    (folder / "folder" / "note.md").write_text("no network\n")
    (folder / "empty").mkdir()
    (folder / "file").write_text("a cat\na dog\n")
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "blank").write_text("\n \n\n")
    np.savez(folder / "npz", other=np.zeros(3))
    found["NPZ"] += ".npz"
    (folder / "pickle").write_bytes(b"\x80\x04K\x01.")
    os.mkfifo(folder / "fifo")
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    return found


def flags_of(kind: Any) -> list[str]:
    return [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(kind)]


def commands() -> dict[str, tuple[list[str], list[str]]]:
    """By command: words before, and flags that take an odd word. '' is the first place itself."""
    fields = [f"--{name.replace('_', '-')}" for name in flatten(DistillConfig())]
    generator = ["generate", "builtin:digits-teacher"]
    return {
        "distill": (["distill", "digits-sid"], fields),
        "submit": (["submit", "digits-sid"], [*fields[:5], "--cluster", "--address"]),
        "plan": (["plan", "digits-sid"], ["--gpus", "--gpu-memory", *fields[::5]]),
        "sweep": (["sweep"], ["", "--trials", "--recipe", "--name", *fields[::9]]),
        "generate": (generator, flags_of(GenerateOptions)),
        "generate source": (["generate"], [""]),
        "evaluate": (["evaluate", "builtin:digits-teacher"], flags_of(EvaluateOptions)),
        "evaluate source": (["evaluate"], [""]),
        "compare": (["compare", "FOLDER"], ["", "--out", "--seeds", "--prompt"]),
        "ui": (["ui", "EMPTY"], ["--port", "--host"]),
        "recipes": (["recipes"], [""]),
        "doctor": (["doctor"], [""]),
        "weights inspect": (["weights", "inspect"], ["", "--part"]),
        "weights convert": (["weights", "convert", "FILE"], ["", "--part", "--like"]),
        "data prepare": (["data", "prepare", "digits"], ["", *flags_of(PrepareOptions)]),
        "data prepare source": (["data", "prepare"], [""]),
        "data show": (["data", "show"], ["", *flags_of(ShowOptions)]),
    }  # fmt: skip


def calls(chosen: Sequence[str], draw: random.Random, samples: int) -> Iterator[list[str]]:
    """Every flag with every word, or ``samples`` of these in a random order."""
    words = list(dict.fromkeys((*NUMBERS, *TEXTS)))
    found = []
    for name, (before, flags) in commands().items():
        if chosen and name.split()[0] not in chosen and name not in chosen:
            continue
        for flag in flags:
            given = [f"{flag}={word}" if flag else word for word in words]
            found += [[*before, each] for each in given]
    draw.shuffle(found)
    yield from found[:samples] if samples else found


LONG = (
    "sid_ray.jobs.submit.run_submit",
    "sid_ray.commands.doctor.run_doctor",
    "sid_ray.commands.ui.run_ui",
    "sid_ray.sweep.command.run_order",
    "sid_ray.commands.evaluate.make",
    "sid_ray.data.command.prepare",
    "sid_ray.commands.plan.plan",
)


def stand_ins(deep: bool) -> contextlib.ExitStack:
    """Replaces what would start Ray, a server or long work."""
    stack = contextlib.ExitStack()
    last = (
        "sid_ray.commands.distill.distil_with"
        if deep
        else "sid_ray.commands.distill.run_distillation"
    )
    for place in (*LONG, last):
        stack.enter_context(mock.patch(place, return_value=0))
    return stack


def outcome(args: list[str]) -> str:
    """'' for one line or help, 'taken', or a traceback."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli.run_command(args)
    except UserError as error:
        return "" if "\n" not in str(error) else f"several lines: {error}"
    except SystemExit:
        return ""
    except BaseException:
        return traceback.format_exc()
    return "taken"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--accepted", action="store_true")
    parser.add_argument("--deep", action="store_true", help="open what a distillation opens, too")
    given = parser.parse_args()
    chosen = [name.strip() for name in given.commands.split(",") if name.strip()]
    bad = count = 0
    with (
        tempfile.TemporaryDirectory() as temporary,
        contextlib.chdir(temporary),
        stand_ins(given.deep),
    ):
        stand_for = things(Path(temporary))
        for args in calls(chosen, random.Random(given.seed), given.samples):
            args = [spelled(arg, stand_for) for arg in args]
            began = time.monotonic()
            found = outcome(args)
            count += 1
            shown = [arg[:80] for arg in args]
            if found == "taken" and given.accepted:
                print("taken", shown, flush=True)
            elif found not in ("", "taken"):
                bad += 1
                print(
                    f"BAD {shown!a}\n  {' | '.join(found.strip().splitlines()[-3:])!a:.600}",
                    flush=True,
                )
            if time.monotonic() - began > 10:
                print(f"SLOW {shown!a}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"{count} calls, {bad} that ended badly")
    raise SystemExit(bad > 0)


def spelled(arg: str, stand_for: dict[str, str]) -> str:
    """An argument with the thing on the disk that its odd word stands for."""
    flag, equals, word = arg.rpartition("=")
    name, mark, rest = (word if equals else arg).partition("#")
    return f"{flag}{equals}{stand_for.get(name, name)}{mark}{rest}"


if __name__ == "__main__":
    main()
