"""What a finished run gives away: its best generator with a model card.

runs/NAME/model/model.safetensors, model.json    the network
runs/NAME/model/README.md                        the card
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping

from sid_ray.checkpoint.best import ALIAS, SCORE, find_best
from sid_ray.checkpoint.find import find_generator
from sid_ray.checkpoint.model_card import model_card
from sid_ray.config.distill_config import DistillConfig
from sid_ray.metrics.names import plain_scores
from sid_ray.run_folder import RunFolder
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.durable import link_or_copy
from sid_ray.tracking.sender import Model
from sid_ray.weights.folder import DESCRIPTION, WEIGHTS, read_description

FOLDER, CARD = "model", "README.md"


def release(
    config: DistillConfig, run: RunFolder, last: str, images_seen: int, scores: Mapping[str, float]
) -> Model:
    """Puts the run's best generator, or its last one where none was scored, into its folder.

    Args:
        last: address of the last checkpoint. images_seen, scores: of its averaged generator.

    Raises UserError, StoreError, OSError.
    """
    source, best = find_generator(last), find_best(run.store)
    if best is not None:
        source = find_generator(f"{run.store}/{ALIAS}")
        result = json.loads(run.store.read_text(f"{best}/{SCORE}"))
        images_seen, scores = result["images_seen"], plain_scores(result["scores"])
    folder = run.local / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (WEIGHTS, DESCRIPTION):
        link_or_copy(source / name, folder / name)
    sha256 = file_sha256(folder / WEIGHTS)
    size = (folder / WEIGHTS).stat().st_size
    card = model_card(config, read_description(folder), images_seen, scores, sha256, size)
    (folder / CARD).write_text(card)
    what = f"{config.recipe}, {images_seen:,} images"
    return Model(folder, config.output.register_model, images_seen, what, scores)
