"""SANA, SD3 and FLUX, and the losses on them, against numbers of the official SiD-DiT code.

A few files lie in tests/reference/flow. SID_RAY_FLOW_VECTORS=FOLDER takes those of another folder
of the same kind; benchmarks/flow_vectors.py prints them as a table.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import REFERENCE
from tests.support.flow_checks import errors_of
from tests.support.flow_vectors import KINDS, files

FOLDER = Path(os.environ.get("SID_RAY_FLOW_VECTORS", REFERENCE / "flow"))
CASES = files(FOLDER)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_numbers_equal_the_official_ones(path, wide):
    beyond = {
        name: (error, allowed)
        for name, (error, allowed) in errors_of(path, wide).errors.items()
        if not error <= allowed
    }
    assert beyond == {}


def test_every_kind_and_family_is_compared():
    kept = files(REFERENCE / "flow")
    assert {path.parent.name for path in kept} == set(KINDS)
    families = {"sana", "sd3", "flux"}
    for kind in ("denoise", "losses", "generator"):
        of_kind = {path.stem.partition("_")[0] for path in kept if path.parent.name == kind}
        assert families <= of_kind
