"""Scores averaged generators beside the training, on resources of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import torch
from torch import Tensor

from sid_ray.assemble import schedule_of
from sid_ray.config import DistillConfig
from sid_ray.data.source import open_labels
from sid_ray.denoisers.spec import spec_of
from sid_ray.metrics.features import load_feature_space
from sid_ray.sampling import labelled_seeds, one_step, sample_in_batches


@ray.remote(num_cpus=0)
class Evaluator:
    """Scores weights in the order they come. Training hands them over and goes on.

    Evaluation draws from its own streams, so its cadence never changes the training.
    """

    def __init__(self, config: DistillConfig, family: str, network: Mapping[str, Any], tracker):
        torch.set_num_threads(1)
        self.net = spec_of(family).build(network).eval().requires_grad_(False)
        self.schedule = schedule_of(config)
        self.space = load_feature_space(config.evaluation.feature_space)
        self.latents, self.labels = labelled_seeds(
            open_labels(config.data), range(config.evaluation.num_images)
        )
        self.tracker = tracker

    def score(self, weights: Mapping[str, Tensor], images_seen: int) -> float:
        """Frechet distance of the one-step generator with these weights; told to the tracker."""
        self.net.load_state_dict(weights)
        images = sample_in_batches(
            lambda z, c: one_step(self.net, self.schedule, z, c), self.latents, self.labels
        )
        distance = self.space.frechet_distance(images)
        ray.get(self.tracker.log_score.remote({"frechet_distance": distance}, images_seen))
        return distance

    def drain(self) -> None:
        """Returns once every score asked for before is done."""
