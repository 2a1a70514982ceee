"""Captions and labels in a small file beside each sample: a.png and a.txt, as trainers take them
and as webdataset packs them (key.txt, key.caption, key.cls, key.json).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sid_ray.data.annotations import fields_of_row
from sid_ray.data.left_out import LeftOut
from sid_ray.data.names import folder_of_name, shown_name, stem_of, suffix_of
from sid_ray.data.options import MIB
from sid_ray.data.samples import checked_prompt
from sid_ray.errors import UserError
from sid_ray.storage.text_lines import json_value, lines_in, text_of

CAPTIONS, CLASS, RECORD = (".txt", ".caption"), ".cls", ".json"
SUFFIXES = (*CAPTIONS, CLASS, RECORD)
MAX_BYTES = MIB
THREADS = 16
NUMBERS = re.compile(r"[\d\s.,+\-eE]*\d[\d\s.,+\-eE]*")  # boxes of detectors, not words
Read = Callable[[str], bytes]


@dataclass
class Beside:
    """What the small files say of each sample; ``used`` are those that were taken in."""

    prompts: dict[str, str] | None = None
    labels: dict[str, Any] | None = None
    prompts_from: str = ""
    labels_from: str = ""
    used: set[str] = field(default_factory=set)


def key_of(name: str) -> str:
    """'a/b' of 'a/b.left.jpg': what webdataset calls a sample."""
    folder = folder_of_name(name)
    base = name[len(folder) :]
    return folder + (base.split(".", 1)[0] or base)


def partners(names: Iterable[str], others: Iterable[str], keyed: bool) -> dict[str, dict[str, str]]:
    """By suffix: sample -> the file beside it. ``keyed``: by webdataset's key, too."""
    others = [name for name in others if suffix_of(name) in SUFFIXES]
    if not others:
        return {}
    by_stem: dict[str, list[str]] = {}
    for name in names:
        for stem in {name, stem_of(name), *((key_of(name),) if keyed else ())}:
            by_stem.setdefault(stem, []).append(name)
    found: dict[str, dict[str, str]] = {}
    for other in others:
        for name in by_stem.get(stem_of(other), ()):
            found.setdefault(suffix_of(other), {})[name] = other
    return found


def read_sidecars(
    names: Sequence[str],
    others: Iterable[str],
    read: Read,
    source: str,
    left_out: LeftOut,
    keyed: bool = False,
    remote: bool = False,
    captions: bool = True,
) -> Beside:
    """Captions of .txt, else .caption, else .json; labels of .cls, else .json.

    Raises UserError where some samples have one and others none.
    """
    found, beside = partners(names, others, keyed), Beside()

    def text(item: tuple[str, str]) -> tuple[str, str]:
        name, file = item
        data = read(file)
        if len(data) > MAX_BYTES:
            raise UserError(
                f"{source}/{shown_name(file)}: more than {MAX_BYTES // MIB} MiB for a text"
            )
        return name, text_of(data, f"{source}/{shown_name(file)}")

    def texts(suffix: str) -> dict[str, str]:
        items = found.get(suffix, {}).items()
        if not remote:
            return dict(map(text, items))
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(pool.map(text, items))

    for suffix in CAPTIONS if captions else ():
        told = texts(suffix)
        if told and all(NUMBERS.fullmatch(each) for each in told.values() if each.strip()):
            boxes = set(found[suffix].values())
            left_out.add(f"{suffix} with numbers only, no captions", min(boxes), len(boxes))
            beside.used |= boxes  # counted already
        elif told and beside.prompts is None:
            check_all(names, told, suffix, "caption", source)
            files = found[suffix]
            beside.prompts = {
                n: caption(t, f"{source}/{shown_name(files[n])}") for n, t in told.items()
            }
            beside.prompts_from = f"a {suffix} file beside each sample"
            beside.used |= set(files.values())
    told = texts(CLASS)
    if told:
        check_all(names, told, CLASS, "label", source)
        beside.labels = {name: value.strip() for name, value in told.items()}
        beside.labels_from = f"a {CLASS} file beside each sample"
        beside.used |= set(found[CLASS].values())
    take_records(beside, names, found.get(RECORD, {}), texts(RECORD), source, captions)
    return beside


def take_records(
    beside: Beside,
    names: Sequence[str],
    files: Mapping[str, str],
    told: Mapping[str, str],
    source: str,
    captions: bool,
) -> None:
    """What .json files add where no other file says it."""
    labels: dict[str, Any] = {}
    prompts: dict[str, str] = {}
    for name, text in told.items():
        where = f"{source}/{shown_name(files[name])}"
        values = json_value(text, where)
        if not isinstance(values, dict):
            continue
        _, label, prompt = fields_of_row(values, where)
        if label is not None:
            labels[name] = label
        if prompt is not None:
            prompts[name] = checked_prompt(prompt, where)
    origin = f"a {RECORD} file beside each sample"
    if labels and beside.labels is None:
        check_all(names, labels, RECORD, "label", source)
        beside.labels, beside.labels_from = labels, origin
        beside.used |= set(files.values())
    if captions and prompts and beside.prompts is None:
        check_all(names, prompts, RECORD, "caption", source)
        beside.prompts, beside.prompts_from = prompts, origin
        beside.used |= set(files.values())


def check_all(
    names: Sequence[str], told: Mapping[str, Any], suffix: str, what: str, source: str
) -> None:
    for index, name in enumerate(names):
        if name not in told:
            other = shown_name(next(iter(told)), 80)
            hint = "add it, or --captions none" if what == "caption" else "add it"
            raise UserError(
                f"{source}: {shown_name(name)} (sample {index}) has no {what} in a "
                f"{suffix} file beside "
                f"it, though {other} has: {hint}"
            )


def caption(text: str, where: str) -> str:
    """The one caption of a file; '' of an empty one."""
    lines = [line.strip() for line in lines_in(text) if line.strip()]
    if len(lines) > 1:
        raise UserError(
            f"{where}: {len(lines)} lines, one caption is expected: put it on one line, or list "
            "captions in metadata.jsonl"
        )
    return checked_prompt(lines[0] if lines else "", where)
