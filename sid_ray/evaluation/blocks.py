"""An evaluation in pieces: blocks of 256 images, made and looked at anywhere, kept until scored.

    bench = Bench(job, network)
    kept = Kept(folder, bench.judge)
    kept.write(seeds, bench.look(seeds))     for each block; what is there is not made again
    bench.judge.scores(kept.read(seeds) for seeds in blocks(trial))

CACHE/evaluations/KEY/000000000000-000000000255.npz holds what the metrics need of these seeds. The
key is a digest of all that the numbers depend on, so whoever finds a file may use it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sid_ray.config.distill_config import DistillConfig
from sid_ray.data.source import DataSource, data_fingerprint
from sid_ray.denoisers.precondition import precision_beside
from sid_ray.denoisers.text_identity import weights_sha256
from sid_ray.device.numerics import set_numerics
from sid_ray.errors import UserError
from sid_ray.evaluation.final_report import teacher_sampler
from sid_ray.evaluation.judge import Judge, Look, codec_of
from sid_ray.evaluation.samplers import Sampler, generator_sampler
from sid_ray.evaluation.scored_network import memory_order, scored_on
from sid_ray.evaluation.subject import Subject, sampler_settings
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.durable import moved_into_place, remove_parts
from sid_ray.storage.s3 import set_endpoint
from sid_ray.training.assemble import Data, data_of, generation_of
from sid_ray.weights.components import (
    Named,
    component_folder,
    find_components,
    text_encoder_sha256,
)
from sid_ray.weights.description import Components
from sid_ray.weights.over_base import network_of_tensors

FORMAT = 1  # raised when the same seeds come out otherwise than before
OWN, BY = "own.", "by."  # before a metric's name: what it looked at itself, and its identity
STALE_S = 3600.0  # age of a half-written file whose writer is taken for dead


@dataclass(frozen=True)
class Job:
    """What is measured, and how; the weights go beside it.

    Attributes:
        config: data set, evaluation, and a teacher's noise levels.
        even: there is no data set: classes are drawn evenly.
    """

    subject: Subject
    config: DistillConfig
    even: bool = False

    def bench(
        self,
        weights: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        tell: Callable[[str], None] = lambda text: None,
    ) -> Bench:
        """What makes and looks at the images, in this process. Raises UserError.

        ``weights`` are tensors_of the network.
        """
        network = network_of_tensors(self.subject.description, weights)
        return Bench(self, network, device, tell)

    def about(self) -> dict[str, Any]:
        """Whose images they are, as a result records it."""
        return {
            "source": self.subject.source,
            "run": self.subject.run or None,
            "images_seen": self.subject.images_seen,
            "weights_sha256": self.subject.sha256,
            **({"base_sha256": base} if (base := self.subject.base_sha256) else {}),
        }

    def how(self) -> dict[str, Any]:
        """What decides the images beside the weights, as a result records it. Raises UserError."""
        return sampler_settings(self.subject, self.config) | self.labels()

    def labels(self) -> dict[str, str]:
        """What images are conditioned on, as a result records it. Raises UserError, StoreError."""
        if self.even:
            count = self.subject.label_dim
            return {"labels": f"evenly of {count} classes" if count else "none"}
        data = self.config.data
        found = {"labels": data.name}
        fingerprint = data_fingerprint(data)
        return found | ({"data_fingerprint": fingerprint[:16]} if fingerprint else {})


class Bench:
    """Makes blocks of images and looks at them, in this process.

    Args:
        network: with the subject's weights.
        tell: told in a line what takes long.

    Raises UserError where data set, VAE, text encoder or extractor are missing or do not fit.
    """

    def __init__(
        self,
        job: Job,
        network: nn.Module,
        device: torch.device | str = "cpu",
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.job, self.device = job, torch.device(device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # the same rounding in every process
        set_numerics(job.config.resources.deterministic)
        set_endpoint(job.config.storage.endpoint_url, job.config.storage.region)
        subject, evaluation = job.subject, job.config.evaluation
        self.components = components_of_job(job)
        data = data_for(job, self.components, self.device)
        precision = precision_beside(job.config.training.precision, self.device)
        # Others are sent its weights.
        network = scored_on(network, subject.description, job.config, self.device, fixed=False)
        codec = codec_of(subject.description, self.components.vae, self.device, precision)
        self.judge = Judge(evaluation, data.source, codec, subject.num_steps, self.device, tell)
        self.sampler = sampler_of(job, network, data)

    def look(self, seeds: range) -> Look:
        return self.judge.look(self.sampler, seeds)

    def protocol(self, seeds: range) -> dict[str, Any]:
        """What the scores of these seeds mean."""
        return self.judge.protocol(seeds)

    def check(self) -> None:
        """Raises UserError for what could not be scored, before images are made."""
        self.judge.check()

    def key(self, device: str) -> str:
        """A digest of all that a block's numbers depend on but its seeds.

        ``device`` is the kind of those that make the images: cpu or cuda. Raises UserError.
        """
        subject, config, own = self.job.subject, self.job.config, self.components
        values = {
            "format": FORMAT,
            "weights": subject.sha256,
            "family": subject.description.family,
            "network": subject.description.network,
            "sampler": sampler_settings(subject, config),
            "labels": self.job.labels(),
            "text": text_encoder_sha256(own.text, subject.description.family) if own.text else "",
            "vae": weights_sha256(component_folder(own.vae, "vae")) if own.vae else "",
            "extractor": self.judge.extractor.identity,
            "batch": self.judge.batch,
            "device": device,
            "torch": torch.__version__,
        }
        if subject.base_sha256:
            values["base"] = subject.base_sha256
        precision = precision_beside(config.training.precision, device)
        if precision != "float32":
            values["compute"] = precision
        order = memory_order(config, subject.description) if device == "cuda" else "contiguous"
        if order != "contiguous":  # as all were once
            values["memory_format"] = order
        text = json.dumps(values, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def components_of_job(job: Job) -> Components:
    """Text encoder and VAE of the network, on this machine's disk. Raises UserError."""
    subject = job.subject
    named = Named(subject.text_encoder, job.config.evaluation.vae)
    return find_components(subject.description, subject.network, named, subject.home)


def data_for(job: Job, components: Components, device: torch.device) -> Data:
    """What images are conditioned on. Raises UserError where it does not suit the network."""
    subject, config = job.subject, job.config
    if job.even and subject.reads_text:
        raise UserError(
            f"{subject.source} reads text: name its prompts, --data prompts --data-source FILE, "
            "or --data emoji"
        )
    if job.even:
        return Data(DataSource(subject.shape, subject.label_dim))
    data = data_of(config, subject.description, components, device)
    source = data.source
    found = (tuple(source.shape), source.label_dim)
    if found != (subject.shape, subject.label_dim):
        raise UserError(
            f"{subject.source} makes {list(subject.shape)} of {subject.label_dim} classes; data "
            f"set {config.data.name!r} has {list(found[0])} and {found[1]}: choose another --data"
        )
    if subject.reads_text and not source.has_prompts:
        raise UserError(f"{subject.source} reads text, data set {config.data.name!r} has none")
    return data


def sampler_of(job: Job, network: Any, data: Data) -> Sampler:
    """How the network makes images: as a generator, or as a teacher in many steps."""
    if job.subject.is_generator:
        return generator_sampler(network, *generation_of(job.subject.description))
    return teacher_sampler(job.config, network, data.null_text)[2]


class Kept:
    """Finished blocks on this machine's disk.

    Args:
        folder: of the key, see ``kept_folder``.
        judge: says what its metrics need of a block.
    """

    def __init__(self, folder: Path, judge: Judge):
        self.folder, self.dim = folder, judge.extractor.dim
        self.with_logits = bool(judge.that_read("classes"))
        self.identities = {name: each.identity for name, each in judge.gauges.items()}
        remove_parts(folder, older_than_s=STALE_S)

    def path(self, seeds: range) -> Path:
        return self.folder / f"{seeds.start:012d}-{seeds.stop - 1:012d}.npz"

    def read(self, seeds: range) -> Look | None:
        """What was kept of a block; None where it is not there, damaged, or lacks something."""
        try:
            with np.load(self.path(seeds), allow_pickle=False) as file:
                features = file["features"]
                logits = file["logits"] if self.with_logits else None
                own = {name: file[f"{OWN}{name}"] for name in self.identities}
                by = {name: str(file[f"{BY}{name}"]) for name in self.identities}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        shape, count = features.shape, len(seeds)
        parts = [part for part in (logits, *own.values()) if part is not None]
        whole = shape == (count, self.dim) and all(len(part) == count for part in parts)
        return Look(features, logits, own) if whole and by == self.identities else None

    def write(self, seeds: range, look: Look) -> None:
        """Keeps a block; a crash leaves none or a whole one. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"features": look.features}
        arrays |= {} if look.logits is None else {"logits": look.logits}
        arrays |= {f"{OWN}{name}": part for name, part in look.own.items()}
        arrays |= {f"{BY}{name}": np.str_(each) for name, each in self.identities.items()}
        with moved_into_place(self.path(seeds), sync=False) as new, new.open("wb") as file:
            np.savez(file, **arrays)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(file.stat().st_size for file in self.folder.glob("*.npz"))


def kept_folder(key: str) -> Path:
    return cache_folder() / "evaluations" / key
