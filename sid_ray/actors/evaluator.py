"""Scores averaged generators beside the training, on resources of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray
import torch
from torch import Tensor

from sid_ray.assemble import data_of, schedule_of
from sid_ray.config import DistillConfig
from sid_ray.denoisers.spec import spec_of
from sid_ray.metrics.features import load_feature_space
from sid_ray.sampling import generator_sampler, sample_in_batches, seeded_inputs
from sid_ray.store import set_endpoint
from sid_ray.weights.folder import ModelDescription


@ray.remote(num_cpus=0)
class Evaluator:
    """Scores weights in the order they come. Training hands them over and goes on.

    Evaluation draws from its own streams, so its cadence never changes the training.
    """

    def __init__(
        self, config: DistillConfig, teacher: ModelDescription, teacher_folder: str, tracker
    ):
        torch.set_num_threads(1)
        set_endpoint(config.storage.endpoint_url, config.storage.region)
        self.net = spec_of(teacher.family).build(teacher.network).eval().requires_grad_(False)
        num_steps = config.objective.num_steps
        self.sampler = generator_sampler(self.net, schedule_of(config), num_steps)
        self.space = load_feature_space(config.evaluation.feature_space)
        source = data_of(config, teacher, Path(teacher_folder)).source
        self.inputs = seeded_inputs(source, range(config.evaluation.num_images), num_steps)
        self.tracker = tracker

    def score(self, weights: Mapping[str, Tensor], images_seen: int) -> float:
        """Frechet distance of the generator with these weights; told to the tracker."""
        self.net.load_state_dict(weights)
        images = sample_in_batches(self.sampler, self.inputs)
        distance = self.space.frechet_distance(images)
        ray.get(self.tracker.log_score.remote({"frechet_distance": distance}, images_seen))
        return distance

    def drain(self) -> None:
        """Returns once every score asked for before is done."""
