"""One segment of a trial: `sid-ray distill` as a process of its own, which ends with its parent.

python -m sid_ray.sweep.trial CONFIG.json: the run of that config, up to its training.images. Its
stdin is a pipe from whoever watches it. At the pipe's end, which comes however that one dies, it
stops as after Ctrl-C. Exit codes are those of the command.
"""

from __future__ import annotations

import _thread
import sys
import threading
from pathlib import Path

from sid_ray.config import DistillConfig
from sid_ray.errors import UserError


def end_with_parent() -> None:
    """Interrupts the main thread when stdin ends."""

    def wait() -> None:
        while sys.stdin.buffer.read(1):
            pass
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True, name="parent").start()


def main(path: str) -> int:
    end_with_parent()
    try:
        config = DistillConfig.from_json(Path(path).read_text(), path).check()
        from sid_ray.distill import run_distillation

        return run_distillation(config)
    except UserError as error:
        print(f"sid-ray: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
