"""Stands for sid_ray.commands.driver in tests of the caller's side: no Ray, no run.

    python -m tests.support.stub_driver ANSWER

What it does is the name of the run in its config.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RESULT = {
    "folder": "/runs/x",
    "images_seen": 64,
    "summary": {"images_seen": 64, "score": float("nan")},
    "scores": {"FD": 1.5},
    "weights": "/runs/x/model",
    "best_images_seen": 32,
    "best_scores": {"FD": 1.25},
    "mlflow_run_id": "0123",
    "mlflow_uri": "sqlite:////runs/mlflow.db",
}


class Heard:
    """Counts SIGINT, and says so."""

    count = 0

    def __call__(self, number, frame):
        self.count += 1
        print("asked", self.count, flush=True)


def main():
    heard = Heard()
    signal.signal(signal.SIGINT, heard)
    config = json.loads(sys.stdin.buffer.readline())
    told, code = {}, 0
    match config["output"]["run"]:
        case "finishes":
            print("one\ntwo ä", flush=True)
            print("for the log alone", file=sys.stderr)
            told = {"result": RESULT}
        case "leaves-one-behind":  # which holds the pipes
            subprocess.Popen(["sleep", "20"])
            print("one", flush=True)
            told = {"result": RESULT}
        case "refuses":
            told, code = {"refused": "teacher.source: no such file"}, 2
        case "fails":
            told = {"failed": "failed: no disk", "exit_code": 3, "folder": "/runs/x"}
            code = 3
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "breaks":
            raise ZeroDivisionError("a bug")
        case "is-stopped":
            code = 130
        case "goes-on":
            print("training", os.getpid(), flush=True)
            while not heard.count:
                time.sleep(0.01)
            time.sleep(0.5)  # it saves
            print("saved", flush=True)
            code = 130
        case "says-where":
            print(json.dumps([str(Path.cwd()), sys.path, os.environ["PYTHONPATH"]]), flush=True)
            told = {"result": RESULT}
    if told:
        with os.fdopen(int(sys.argv[1]), "w") as file:
            file.write(json.dumps(told))
    sys.exit(code)


if __name__ == "__main__":
    main()
