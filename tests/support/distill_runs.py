"""The runs that test_distill.py looks at: one undisturbed, one killed, resumed and stopped.

    python -m tests.support.distill_runs FOLDER

Two Ray Train workers with DeepSpeed ZeRO-2 each time. They run in a process of their own, of which
each part leaves NAME.json in FOLDER: what its commands printed, or how it failed. It waits beside
them, so it loads nothing heavy and reads no weights.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import psutil

from sid_ray.storage.fence import MANIFEST, PREFIX
from tests.support.waiting import wait_for

IMAGES, CHECKPOINT_EVERY = 960, 192
NEVER_REACHED = 20 * CHECKPOINT_EVERY  # as many images as checkpoints are kept
PATIENCE_S = 280


def command(folder: Path, run: str, images: int, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "sid_ray.cli", "distill", "digits-sid",
        "--run", run, "--output.folder", str(folder), "--images", str(images),
        "--output.checkpoint-every", str(CHECKPOINT_EVERY), "--output.report-every", "128",
        "--evaluation.every", "320", "--evaluation.num-images", "128",
        "--evaluation.no-final-report", "--output.keep-checkpoints", "20", *more,
    ]  # fmt: skip


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=hear_ctrl_c,
        start_new_session=True,
    )


def hear_ctrl_c() -> None:
    """A process that was started in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(arguments: list[str]) -> dict[str, Any]:
    process = start(arguments)
    out, err = process.communicate(timeout=PATIENCE_S)
    return {"code": process.returncode, "out": out, "err": err}


def processes_end(process: subprocess.Popen, children: list[psutil.Process]) -> tuple[str, str]:
    """Waits until none of the run's workers is left; returns what the driver printed.

    Ray's own dashboard agent may stay for a minute after a kill -9; it does nothing.
    """
    workers = [child for child in children if "RayTrainWorker" in child.name()]
    assert workers, [child.name() for child in children]
    output = process.communicate(timeout=PATIENCE_S)
    wait_for(
        lambda: not any(w.is_running() and w.status() != "zombie" for w in workers),
        "the end of the workers",
        PATIENCE_S,
    )
    return output


def undisturbed(folder: Path) -> dict[str, Any]:
    """From start to end in one go; then its command again, and one that changes the config."""
    found = finish(command(folder, "undisturbed", IMAGES))
    if found["code"]:
        return found
    found["summary"] = json.loads((folder / "undisturbed" / "summary.json").read_text())
    again = finish(command(folder, "undisturbed", IMAGES))
    changed = finish(command(folder, "undisturbed", IMAGES, "--alpha", "1.2", "--seed", "7"))
    return found | {"again": again, "changed": changed}


def disturbed(folder: Path) -> dict[str, Any]:
    """kill -9 after a checkpoint, the same command, a closed terminal after another checkpoint.

    Of that one all processes of the session hear, and twice: by the shell and by the kernel.

    Without evaluations: that its bits are the undisturbed run's shows that these change nothing.
    """
    run, found = folder / "disturbed", {}
    for how, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGHUP)):
        before = newest_attempt(run)
        process = start(command(folder, "disturbed", NEVER_REACHED, "--evaluation.every", "0"))
        wait_for(lambda old=before: newest_attempt(run) != old, "its own checkpoint", PATIENCE_S)
        children = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
            os.killpg(process.pid, number)
        out, err = processes_end(process, children)
        seen = json.loads((newest_sealed(run) / MANIFEST).read_text())["images_seen"]
        run_id = json.loads((run / "run.json").read_text())["tracker_run_id"]
        found[how] = {"out": out, "err": err, "code": process.returncode, "run_id": run_id}
        found[how]["seen"] = seen
    return found


def newest_sealed(run: Path) -> Path | None:
    """The newest checkpoint with a manifest, which is written last."""
    return max((path.parent for path in run.glob(f"{PREFIX}*/{MANIFEST}")), default=None)


def newest_attempt(run: Path) -> str:
    """Which start of the workers wrote the newest checkpoint; empty for none.

    A resumed run first uploads what the killed one had written to its local disk alone, under its
    own number; what was drawn for the start of the workers stays.
    """
    newest = newest_sealed(run)
    return newest.name.rpartition("-")[2] if newest else ""


PARTS = {"undisturbed": undisturbed, "disturbed": disturbed}


def main(folder: Path) -> None:
    for name, part in PARTS.items():
        try:
            found = part(folder)
        except Exception:
            found = {"failed": traceback.format_exc()}
        written = folder / f"{name}.part"
        written.write_text(json.dumps(found))
        written.rename(folder / f"{name}.json")


class Runs:
    """The runs in a process of their own.

    Args:
        folder: theirs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.distill_runs", str(folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C of the tests is not that of the runs
        )

    def part(self, name: str) -> dict[str, Any]:
        """What a part left, once it is there."""
        path = self.folder / f"{name}.json"
        wait_for(
            lambda: path.exists() or self.process.poll() is not None,
            f"the end of the run {name}",
            2 * PATIENCE_S,  # three commands, beside all other tests
        )
        found = json.loads(path.read_text())
        assert "failed" not in found, found["failed"]
        return found

    def end(self) -> None:
        """Nothing is left, also where the tests end before the runs do."""
        if self.process.poll() is not None:
            return
        processes = psutil.Process(self.process.pid).children(recursive=True)
        for process in (psutil.Process(self.process.pid), *processes):
            if process.is_running():
                process.kill()
        self.process.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
