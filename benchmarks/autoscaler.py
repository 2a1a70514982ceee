"""A run on Ray's fake autoscaler: it begins on the first node that comes, grows, loses one, grows.

    python -m benchmarks.autoscaler

The head has no CPU; the autoscaler starts up to two nodes of one CPU because the run asks for them.
Printed is what the run said.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.local_cluster import LocalAutoscaler, Run

FLAGS = [
    "--images", "9600", "--output.checkpoint-every", "1280", "--output.report-every", "640",
    "--workers", "2", "--resources.resize-check-s", "1",
]  # fmt: skip


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="autoscaler_"))
    with LocalAutoscaler(folder, 2) as cluster:
        run = Run(folder, "autoscaled", FLAGS, cluster.address)
        run.wait(lambda: run.said("2 workers after 1,") or run.said("first step of 2 workers"))
        time.sleep(10)
        cluster.raylets()[-1].kill()
        run.wait(lambda: run.said("1 worker after 2,"))
        summary = run.finish()
        for line in run.said(" after "):
            print(line)
        nodes = len(cluster.raylets())
        print(f"{summary['images_seen']} images seen; nodes of the autoscaler: {nodes}")


if __name__ == "__main__":
    main()
