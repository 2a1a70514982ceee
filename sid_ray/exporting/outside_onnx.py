"""Runs an exported graph as people do who have neither sid_ray nor torch: run as a program.

    python -I outside_onnx.py ASKED.json

ASKED.json: ``graph`` and ``inputs``, a file of NumPy with each of the graph's by name, and ``out``,
the file of NumPy that its images are written to.
"""

import json
import sys
from pathlib import Path

BATCH = 3  # images at once: not the number that graphs are traced with


def main() -> None:
    for name in ("sid_ray", "torch"):
        sys.modules[name] = None  # type: ignore[assignment]  # importing it fails
    import numpy as np
    import onnxruntime

    asked = json.loads(Path(sys.argv[1]).read_text())
    session = onnxruntime.InferenceSession(asked["graph"], providers=["CPUExecutionProvider"])
    inputs = dict(np.load(asked["inputs"]))
    made = []
    for start in range(0, len(inputs["latents"]), BATCH):
        some = {name: value[start : start + BATCH] for name, value in inputs.items()}
        made.append(session.run(["images"], some)[0])
    np.save(asked["out"], np.concatenate(made))


if __name__ == "__main__":
    main()
