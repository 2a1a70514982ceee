"""One check in a process of its own: python -m sid_ray.commands.device.child CHECK RIG ROWS.

What crashes or hangs here is a row of the report and not the end of it. ROWS is the file that rows
are added to as they are found.
"""

from __future__ import annotations

import pkgutil
import sys
import traceback
from pathlib import Path

from sid_ray.commands.device.redact import without_places
from sid_ray.commands.device.rows import FAILED, DeviceRow, Rig
from sid_ray.errors import UserError
from sid_ray.storage.durable import append_line
from sid_ray.storage.places import one_line

MOST_LETTERS = 300  # of an error


def run_check(look: str, rig: Rig, rows: Path) -> None:
    """Writes the rows of one check, MODULE:NAME within sid_ray, and how it failed, if it did."""
    from sid_ray.device.numerics import set_numerics

    set_numerics()
    try:
        for row in pkgutil.resolve_name(f"sid_ray.{look}")(rig):
            append_line(rows, row.to_values(), sync=False)
    except Exception as error:  # a row, whatever it is
        traceback.print_exc()
        append_line(rows, row_of_error(error).to_values(), sync=False)


def row_of_error(error: Exception) -> DeviceRow:
    """What went wrong, without anybody's folders in it."""
    text = without_places(one_line(str(error)))
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return DeviceRow("the check itself", f"{kind}{text:.{MOST_LETTERS}}", verdict=FAILED)


if __name__ == "__main__":
    run_check(sys.argv[1], Rig.from_json(sys.argv[2]), Path(sys.argv[3]))
