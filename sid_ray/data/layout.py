"""How a set is cut into files and row groups, and what identifies the work as a whole.

A unit of work is one Parquet file. Everything here depends on the source and the options, nothing
on who does the work: that makes a run that goes on write what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import ceil, prod
from statistics import median
from typing import Any

import numpy as np

from sid_ray.data.encode import TextPlan, VAEPlan, plan_text, plan_vae
from sid_ray.data.latent_files import read_moments
from sid_ray.data.manifest import COLUMNS, SCHEMA
from sid_ray.data.options import MIB, PrepareOptions
from sid_ray.data.pixels import RGB, ImageRules, channels_of, prepare_picture
from sid_ray.data.samples import Samples
from sid_ray.errors import UserError
from sid_ray.storage.store import Store

SHARD_BYTES = 256 * MIB
LEAST_GROUPS = 16
MIN_ROWS, MAX_ROWS = 16, 4096  # of a row group
# A file has at least so many rows where there are enough; fewer where each takes long.
SHARD_ROWS, ENCODED_SHARD_ROWS = 4096, 256
PROBED = 64  # pictures that are prepared beforehand to know their size


@dataclass(frozen=True)
class Unit:
    """One file of the set: samples ``start`` to ``stop`` in row groups of ``rows``."""

    index: int
    samples: Samples
    row_groups: tuple[int, ...]

    @property
    def file_name(self) -> str:
        return f"part-{self.index:05d}.parquet"


@dataclass(frozen=True)
class Work:
    """What every unit needs to know. ``plan`` identifies source, options and layout together;
    what it does not cover changes nothing in the files.
    """

    destination: Store
    plan: str
    kind: str
    shape: tuple[int, ...]
    columns: tuple[str, ...]
    rules: ImageRules | None = None
    vae: VAEPlan | None = None
    text: TextPlan | None = None
    device: str = "cpu"
    threads: int = 1
    sample_s: float = 0.0  # about how long a sample takes without encoders

    @property
    def text_shape(self) -> tuple[int, ...]:
        return self.text.shape if self.text else ()


def plan_work(
    samples: Samples, options: PrepareOptions, destination: Store
) -> tuple[Work, list[Unit]]:
    """What is to be made, and its units. Raises UserError where the first sample does not fit."""
    if options.encode and samples.kind != "images":
        raise UserError(f"--encode is for images; {options.source} holds {samples.kind}")
    if options.encode_text and samples.prompts is None:
        raise UserError(f"--encode-text: {options.source} has no prompts")
    text = plan_text(options.encode_text) if options.encode_text else None
    rules = vae = None
    shape: tuple[int, ...] = ()
    if samples.kind == "images":
        rules = image_rules(samples, options)
        shape = (rules.channels, rules.resolution, rules.resolution)
        if options.encode:
            vae = plan_vae(options.encode, options.convention, rules.resolution)
            shape = vae.shape
    elif samples.kind == "latents":
        shape = latent_shape(samples)
    kind = "latents" if vae else samples.kind
    has = {
        "image": kind == "images",
        "latent": kind == "latents",
        "label": samples.labels is not None,
        "prompt": samples.prompts is not None,
        "text": text is not None,
        "name": len(samples.names) > 0,
    }
    columns = tuple(name for name in COLUMNS if has[name])
    encoded = vae is not None or text is not None
    size, seconds = probe_samples(samples, kind, shape, rules, text)
    layout = cut(
        samples.count,
        size,
        options.row_group_mib * MIB,
        ENCODED_SHARD_ROWS if encoded else SHARD_ROWS,
    )
    values = [SCHEMA, kind, shape, columns, samples.label_dim, samples.class_names, layout]
    values += [asdict(plan) if plan else None for plan in (rules, vae, text)]
    device = "cuda" if options.gpus else "cpu"
    if encoded:
        values.append(device)  # it rounds in its own way
    work = Work(
        destination,
        fingerprint_of_set(values, samples),
        kind,
        shape,
        columns,
        rules,
        vae,
        text,
        device=device,
        threads=8 if samples.remote or options.gpus else 1,
        sample_s=seconds,
    )
    return work, units_of(samples, layout)


def image_rules(samples: Samples, options: PrepareOptions) -> ImageRules:
    """Size and channels of the set, from the options or else from its first picture."""
    data = samples.read(0)
    try:
        channels, height, width = channels_of(data)
    except UserError as error:
        raise samples.wrong(0, str(error)) from None
    if not options.resolution and height != width:
        raise samples.wrong(
            0, f"{width}x{height} pixels are not square: --resolution N crops and resizes"
        )
    if options.grey or options.rgb or options.encode:
        channels = 1 if options.grey else RGB
    crop = options.crop if options.resolution else ""
    return ImageRules(options.resolution or width, channels, crop, options.grey)


def latent_shape(samples: Samples) -> tuple[int, ...]:
    try:
        data = samples.read(0)
        assert isinstance(data, bytes)
        both, height, width = read_moments(data).shape
    except UserError as error:
        if str(error).startswith(samples.source):
            raise
        raise samples.wrong(0, str(error)) from None
    return both // 2, height, width


def probe_samples(
    samples: Samples,
    kind: str,
    shape: tuple[int, ...],
    rules: ImageRules | None,
    text: TextPlan | None,
) -> tuple[int, float]:
    """About what a sample takes in a file, and how long it takes to make without encoders."""
    size = 2 * prod(text.shape) if text else 0
    spread = np.linspace(0, samples.count - 1, min(samples.count, PROBED)).astype(int).tolist()
    if samples.prompts is not None:
        size += sum(len(samples.prompts[i].encode()) for i in spread) // len(spread)
    sizes, times = [0], [0.0]
    for index in spread if samples.reader is not None else ():
        began = time.perf_counter()
        with suppress(UserError):  # its turn will come, with those before it
            data = samples.read(index)
            if rules is not None:
                sizes.append(len(prepare_picture(data, rules)[0]))
            elif isinstance(data, bytes):
                read_moments(data)
        times.append(time.perf_counter() - began)
    if kind == "images":
        size += sum(sizes) // max(len(sizes) - 1, 1)
    if kind == "latents":
        size += 4 * prod(shape)
    # Not the mean: the first ones load libraries, and other work may come between.
    return max(size, 8), median(times)


def cut(count: int, size: int, group_bytes: int, shard_rows: int) -> list[tuple[int, ...]]:
    """Rows of each row group of each file."""
    rows = min(max(group_bytes // size, MIN_ROWS), MAX_ROWS)
    even = ceil(count / LEAST_GROUPS)
    if ceil(count / even) < LEAST_GROUPS:
        even = max(1, count // LEAST_GROUPS)
    rows = min(rows, even)
    shard = min(SHARD_BYTES // size, max(shard_rows, ceil(count / LEAST_GROUPS)))
    groups = max(1, shard // rows)
    all_rows = [min(rows, count - start) for start in range(0, count, rows)]
    return [tuple(all_rows[at : at + groups]) for at in range(0, len(all_rows), groups)]


def units_of(samples: Samples, layout: list[tuple[int, ...]]) -> list[Unit]:
    units, start = [], 0
    for index, row_groups in enumerate(layout):
        stop = start + sum(row_groups)
        units.append(Unit(index, samples.part(start, stop), row_groups))
        start = stop
    return units


def fingerprint_of_set(values: list[Any], samples: Samples) -> str:
    """sha256 of what is to be made and of what the source is known to hold."""
    digest = hashlib.sha256(json.dumps([*values, samples.count, samples.notes]).encode())
    for column in (samples.names, samples.places, samples.labels, samples.prompts):
        digest.update(b"\0column" if column is not None else b"\0none")
        if column is not None:
            for value in column:
                digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()
