"""One check in a process of its own: python -m sid_ray.commands.device.child CHECK RIG ROWS.

What crashes or hangs here is a row of the report and not the end of it. ROWS is the file that rows
are added to as they are found.
"""

from __future__ import annotations

import pkgutil
import sys
from pathlib import Path

from sid_ray.commands.device.rows import Rig, guarded
from sid_ray.storage.durable import append_line


def run_check(look: str, rig: Rig, rows: Path) -> None:
    """Writes the rows of one check, MODULE:NAME within sid_ray; how it failed is a row, too."""
    import torch

    from sid_ray.device.numerics import set_numerics

    set_numerics()
    if rig.small:
        torch.set_num_threads(1)  # on a CPU its processes share what there is
    for row in guarded("the check itself", lambda: pkgutil.resolve_name(f"sid_ray.{look}")(rig)):
        append_line(rows, row.to_values(), sync=False)


if __name__ == "__main__":
    run_check(sys.argv[1], Rig.from_json(sys.argv[2]), Path(sys.argv[3]))
