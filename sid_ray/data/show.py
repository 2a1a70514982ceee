"""What a prepared set holds, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from sid_ray.data.left_out import account_lines
from sid_ray.data.manifest import DataManifest
from sid_ray.data.names import shown_name
from sid_ray.data.options import MIB

LISTED_CLASSES, BAR = 20, 30


def lines_of_set(manifest: DataManifest, where: str) -> Iterator[str]:
    """The lines of ``sid-ray data show``."""
    sizes = [shard.size for shard in manifest.shards]
    groups = manifest.row_groups
    yield f"data set    {where}"
    yield f"kind        {manifest.kind}"
    yield f"samples     {manifest.count:,}"
    if manifest.shape:
        yield f"shape       {' x '.join(map(str, manifest.shape))} (channels, height, width)"
    yield f"columns     {', '.join(manifest.columns)}"
    if manifest.text:
        tokens, width = manifest.text.shape
        yield f"text        {tokens} x {width}, encoder sha256 {manifest.text.sha256[:16]}"
    yield f"files       {len(sizes)} of {total_bytes(sum(sizes))} in all"
    yield f"row groups  {len(groups)} of up to {max(groups):,} rows"
    for name, values in (("mean", manifest.mean), ("std", manifest.std)):
        if values:
            yield f"{name:12}{', '.join(f'{value:.4f}' for value in values)}"
    yield from source_lines(manifest)
    yield f"fingerprint {manifest.fingerprint[:16]}"
    yield from classes(manifest)


def total_bytes(size: int) -> str:
    return f"{size / MIB:,.1f} MiB" if size >= MIB / 10 else f"{size:,} B"


def source_lines(manifest: DataManifest) -> Iterator[str]:
    source = manifest.source
    if "path" in source:
        yield f"source      {source['path']}"
    yield from account_lines(source, manifest.class_names if source.get("labels") else ())
    options = source.get("options") or {}
    if options:
        yield f"options     {', '.join(f'{name} = {value}' for name, value in options.items())}"


def classes(manifest: DataManifest) -> Iterator[str]:
    """Their number, and how many samples each has where they are few."""
    counts = manifest.class_counts
    if not counts:
        yield "classes     none"
        return
    empty = sum(count == 0 for count in counts)
    without = f", {empty} without a sample" if empty else ""
    yield f"classes     {len(counts):,} of {min(counts):,} to {max(counts):,} samples{without}"
    if len(counts) > LISTED_CLASSES:
        return
    names = [shown_name(name) for name in manifest.class_names] or list(
        map(str, range(len(counts)))
    )
    wide = min(max(len(name) for name in names), 24)
    for name, count in zip(names, counts, strict=True):
        bar = "#" * round(BAR * count / max(counts))
        yield f"  {name[:wide]:{wide}}  {count:>9,}  {bar}".rstrip()
