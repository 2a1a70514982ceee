"""The averaged generator with the best score so far, kept in its run's folder.

    runs/NAME/best_000000012800/model.safetensors, model.json    the network
    runs/NAME/best_000000012800/score.json                       its scores; written last

``RUN/best`` names it, whatever its number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sid_ray.storage.errors import retrying
from sid_ray.storage.fence import BEST, SCORE, lease_of, newest_number, read_fence
from sid_ray.storage.store import Store
from sid_ray.weights.description import (
    DESCRIPTION,
    WEIGHTS,
    safetensors_description,
)

PREFIX, ALIAS = BEST, "best"
PATIENCE_S = 600.0  # for storage that does not answer


def keep_best(
    run: Store, weights: Path, result: Mapping[str, Any], tell: Callable[[str], None]
) -> None:
    """Puts a generator's self-describing safetensors file in the place of the best so far.

    A crash leaves the one before; a driver that has lost the run changes nothing. Waits while
    storage does not answer, and says so. Raises StoreError where it stays away.
    """
    name = f"{PREFIX}{result['images_seen']:012d}"
    description = safetensors_description(weights)
    assert description is not None
    texts = {
        DESCRIPTION: description.to_json(),
        SCORE: json.dumps(result, indent=2) + "\n",
    }

    def put() -> None:
        if newest_number(run) > lease_of(result):
            return
        run.put(weights, f"{name}/{WEIGHTS}")
        for leaf, text in texts.items():
            run.write(f"{name}/{leaf}", text)
        for other in run.folders():
            if other.startswith(PREFIX) and other != name:
                run.remove(f"{other}/{SCORE}")  # first: it must not look whole
                run.remove_tree(other)

    retrying(put, tell, PATIENCE_S)


def find_best(run: Store) -> str | None:
    """The name of its folder, None where none was kept. Raises StoreError."""
    fence = read_fence(run)
    for name in sorted((name for name in run.folders() if name.startswith(PREFIX)), reverse=True):
        with suppress(FileNotFoundError, ValueError):
            if fence.accepts(name, lease_of(json.loads(run.read_text(f"{name}/{SCORE}")))):
                return name
    return None
