"""A run's driver as a process of its own: what ``sid_ray.distill`` starts.

A driver needs its process for itself: it takes up signals, sets Ray's environment, turns the file
descriptors 1 and 2 into the run's log, connects to Ray, and MLflow and DeepSpeed set much that is
global. So a caller's process keeps all of its own, whatever that is, and starts

    python -m sid_ray.commands.driver ANSWER

with the config on stdin, as one line of JSON. What a person is told comes on its stdout. The
descriptor ANSWER takes one line of JSON: how the run ended. Stdin stays open: at its end, which
comes however the caller dies, the driver stops as after Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from sid_ray.commands.result import Result
from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import RunFailedError, UserError
from sid_ray.ray_setup.environment import end_with_parent

Tell = Callable[[str], object]
LOOK_S = 0.1  # between two looks at whether the driver is there still
STOPPED = 130
MODULE = "sid_ray.commands.driver"

# The caller's side --------------------------------------------------------------------------------


def run_driver(config: DistillConfig, tell: Tell | None, on_terminal: bool = False) -> Result:
    """Starts a driver and waits for its end.

    Args:
        tell: takes the lines that a person would see; None for none.
        on_terminal: the driver writes to this process's standard output itself.

    Raises UserError before the run starts, RunFailedError behind it, and KeyboardInterrupt once the
    workers have saved their state.
    """
    reading, writing = os.pipe()
    out = None if on_terminal else subprocess.PIPE if tell else subprocess.DEVNULL
    with os.fdopen(reading, "rb") as answer, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                # -P: the path is this process's, not the folder that it is in
                [sys.executable, "-P", "-m", MODULE, str(writing)],
                stdin=subprocess.PIPE, stdout=out, stderr=errors, pass_fds=(writing,),
                env=os.environ | {"PYTHONPATH": import_path()},
                start_new_session=True,  # Ctrl-C is heard here, and passed on
            )  # fmt: skip
        finally:
            os.close(writing)
        with process:
            text = attended(process, config, answer, tell)
        errors.seek(0)
        return message_of_result(
            config, process.returncode, text, errors.read().decode(errors="replace")
        )


def attended(
    process: subprocess.Popen[bytes], config: DistillConfig, answer: IO[bytes], tell: Tell | None
) -> bytes:
    """Gives the driver its config and waits for its end; its answer, empty for none.

    Whatever happens here (Ctrl-C, an error of ``tell``) has the run save its state first.
    """
    assert process.stdin is not None
    try:
        try:
            process.stdin.write(json.dumps(dataclasses.asdict(config)).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:  # it ended before it could read
            pass
        return listen(process, answer, tell)
    except BaseException as reason:
        stop(process, answer, tell if isinstance(reason, KeyboardInterrupt) else None)
        raise
    finally:
        process.stdin.close()


def stop(process: subprocess.Popen[bytes], answer: IO[bytes], tell: Tell | None) -> None:
    """Has the driver save and end; at another Ctrl-C it ends without."""
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        try:
            listen(process, answer, tell)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
        except Exception:  # of tell: what asked for the end counts
            tell = None


def listen(process: subprocess.Popen[bytes], answer: IO[bytes], tell: Tell | None) -> bytes:
    """Tells each line of the driver until it has ended; its answer.

    Not until the end of the pipes: a process that it has left behind may hold them.
    """
    ends = [end.fileno() for end in (answer, process.stdout) if end is not None]
    held = dict.fromkeys(ends, b"")
    while True:
        ended = process.poll() is not None  # then all that it has written is in the pipes
        while ready := select.select(ends, [], [], 0 if ended else LOOK_S)[0]:
            for end in ready:
                more = os.read(end, 1 << 16)
                if not more:
                    ends.remove(end)
                held[end] += more
                if end != answer.fileno() and tell is not None:
                    *lines, held[end] = held[end].split(b"\n")
                    for line in lines:
                        tell(line.decode(errors="replace"))
        if ended:
            return held[answer.fileno()]


def import_path() -> str:
    """What this process imports from, but for what any Python does: for PYTHONPATH."""
    usual = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = (place or str(Path.cwd()) for place in sys.path)
    return os.pathsep.join(
        dict.fromkeys(place for place in own if not usual & {place, *map(str, Path(place).parents)})
    )


def message_of_result(config: DistillConfig, code: int, answer: bytes, errors: str) -> Result:
    """What a driver has come to, by its exit code, its answer and its stderr. Raises its error."""
    told: dict[str, Any] = json.loads(answer) if answer else {}
    if "result" in told:
        return Result(**told["result"])
    if "refused" in told:
        raise UserError(told["refused"])
    if "failed" in told:
        raise RunFailedError(told["failed"], told["exit_code"], told["folder"])
    folder = f"{config.output.folder}/{config.run_name}"
    if code == STOPPED:
        raise RunFailedError(
            f"run {config.run_name!r} was stopped by a signal: the same call goes on", code, folder
        )
    lines = errors.strip().splitlines()
    how = f"signal {-code}" if code < 0 else lines[-1] if lines else f"exit code {code}"
    error = RunFailedError(
        f"the driver of run {config.run_name!r} ended by {how}: the same call goes on", 1, folder
    )
    if errors:
        error.add_note(errors)
    raise error


# The driver's side --------------------------------------------------------------------------------


def drive(text: bytes) -> tuple[int, dict[str, Any]]:
    """Runs the config of a line; the exit code of the command, and the answer."""
    try:
        config = DistillConfig.from_json(text.decode())
        from sid_ray.commands.distill import distil
        from sid_ray.ray_setup.start import check_ray

        check_ray(lambda line: print(line, flush=True))
        return 0, {"result": dataclasses.asdict(distil(config))}
    except RunFailedError as error:
        return error.exit_code, {
            "failed": str(error), "exit_code": error.exit_code, "folder": error.folder
        }  # fmt: skip
    except UserError as error:
        return 2, {"refused": str(error)}
    except KeyboardInterrupt:
        return STOPPED, {}


def main() -> None:
    answer = int(sys.argv[1])
    os.set_inheritable(answer, False)  # the processes of Ray would hold it
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    text = sys.stdin.buffer.readline()
    if not text:  # the caller is gone already
        sys.exit(STOPPED)
    end_with_parent()
    code, told = drive(text)
    with os.fdopen(answer, "w") as file:
        file.write(json.dumps(told))
    sys.exit(code)


if __name__ == "__main__":
    main()
