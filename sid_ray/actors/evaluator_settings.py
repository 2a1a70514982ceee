"""What an evaluation beside the training is given: by the driver, and by a sweep's scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sid_ray.storage.shared import Token
from sid_ray.weights.description import NO_COMPONENTS, Components, ModelDescription


@dataclass(frozen=True)
class EvaluatorSettings:
    """Args:
    config: of the run, as JSON.
    teacher, teacher_folder: whose network the generator has.
    run: address of the run's folder. run_key: RunRecord.key.
    waiting: where weights wait for their turn, on this node's disk; empty for one of the run's key.
    tracker: actor that is told.
    components: the teacher's text encoder and VAE.
    token: on a joined cluster the driver's, in the run's folder.
    lease: number of the driver's lease, which its results hold.
    """

    config: str
    teacher: ModelDescription
    teacher_folder: str
    run: str
    run_key: str
    waiting: str
    tracker: Any
    components: Components = NO_COMPONENTS
    token: Token | None = None
    lease: int = 0
