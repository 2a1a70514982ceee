"""A check's process that ends in the ways that a check can: for tests of what runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sid_ray.commands.device.rows import DeviceRow
from sid_ray.storage.durable import append_line


def main(how: str, rows: str) -> None:
    append_line(Path(rows), DeviceRow("first", "is there").to_values(), sync=False)
    if how == "dies beside a rank":
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        rank = subprocess.Popen(sleeper)
        append_line(Path(rows), DeviceRow("rank", str(rank.pid)).to_values(), sync=False)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crash":
        print("at /home/somebody/secret/place.py", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(sleeper, start_new_session=True)
        append_line(Path(rows), DeviceRow("child", str(child.pid)).to_values(), sync=False)
        time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3])
