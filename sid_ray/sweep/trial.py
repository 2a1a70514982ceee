"""One segment of a trial: `sid-ray distill` as a process of its own, which ends with its parent.

python -m sid_ray.sweep.trial CONFIG.json CHECKPOINT: the run of that config, up to its
training.images; begun from another run's checkpoint where its address is not empty. Its stdin is a
pipe from whoever watches it. At the pipe's end, which comes however that one dies, it
stops as after Ctrl-C. Exit codes are those of the command.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import end_with_parent


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
