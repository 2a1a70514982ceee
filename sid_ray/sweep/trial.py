"""One segment of a trial: `sid-ray distill` as a process of its own, which ends with its parent.

python -m sid_ray.sweep.trial CONFIG.json CHECKPOINT: the run of that config, up to its
training.images; begun from another run's checkpoint where its address is not empty. Its stdin is a
pipe from whoever watches it. At the pipe's end, which comes however that one dies, it
stops as after Ctrl-C. Exit codes are those of the command.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError


def end_with_parent() -> None:
    """Interrupts the thread that calls this, the main one, when stdin ends.

    Also in a process that a shell has put into the background (``... &`` in a script), where SIGINT
    is ignored and Python therefore leaves it alone.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main_thread = threading.get_ident()

    def wait() -> None:
        # Not sys.stdin: a thread that holds its lock makes Python abort when it ends.
        while os.read(0, 1):
            pass
        # A real signal to that thread: _thread.interrupt_main would not wake it from a wait.
        signal.pthread_kill(main_thread, signal.SIGINT)

    threading.Thread(target=wait, daemon=True, name="parent").start()


def main(path: str, began_from: str = "") -> int:
    end_with_parent()
    try:
        config = DistillConfig.from_json(Path(path).read_text(), path).check()
        from sid_ray.commands.distill import run_distillation

        return run_distillation(config, began_from)
    except UserError as error:
        print(f"sid-ray: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
