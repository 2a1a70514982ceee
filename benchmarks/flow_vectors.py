"""A table of errors against a folder of flow-matching reference numbers, all of its files.

python -m benchmarks.flow_vectors FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tests.support.flow_checks import errors_of
from tests.support.flow_vectors import files


def main(folder: Path) -> int:
    """Prints the number nearest to what is allowed of each file; how many are beyond it."""
    torch.set_num_threads(1)
    beyond = count = 0
    print(
        "| file | numbers | float32: worst | error | allowed | float64: worst | error | allowed |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for path in files(folder):
        narrow, wide = (errors_of(path, wide) for wide in (False, True))
        cells = [f"{path.parent.name}/{path.stem}", str(len(wide.errors))]
        for found in (narrow, wide):
            name, error, allowed = found.worst
            cells += [name.replace("|", ""), f"{error:.1e}", f"{allowed:.0e}"]
            count += len(found.errors)
            beyond += sum(not error <= allowed for error, allowed in found.errors.values())
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{count} numbers in float32 and float64, {beyond} beyond what is allowed")
    return beyond


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with models/, denoise/, losses/ and so on")
    sys.exit(bool(main(parser.parse_args().folder)))
