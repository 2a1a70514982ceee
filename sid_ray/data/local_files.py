"""The files of a folder on a disk, with what no other list tells: links, empty folders."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from sid_ray.data.left_out import LeftOut
from sid_ray.data.names import shown_name
from sid_ray.errors import UserError


@dataclass
class LocalFiles:
    """``files`` by name with their sizes; ``empty`` folders; what was left out already."""

    files: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


def local_files(root: Path, source: str) -> LocalFiles:
    """Everything below a folder. Links are followed, but not into a folder that they lie in.

    Raises UserError for a folder that may not be read.
    """
    found = LocalFiles()
    look_in_folder(root, "", (), found, source)
    return found


def look_in_folder(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...], found: LocalFiles, source: str
) -> None:
    try:
        about = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{source}: {shown_name(prefix) or 'it'} cannot be read ({error.strerror})"
        ) from None
    here = (about.st_dev, about.st_ino)
    if here in above:
        found.left_out.add("link to a folder that it lies in", prefix)
        return
    if not entries and prefix:
        found.empty.append(prefix.rstrip("/"))
    for entry in entries:
        name = prefix + entry.name
        try:
            about = entry.stat()
        except OSError:
            found.left_out.add("link to nothing", name)
            continue
        if stat.S_ISDIR(about.st_mode):
            look_in_folder(folder / entry.name, name + "/", (*above, here), found, source)
        elif not stat.S_ISREG(about.st_mode):
            found.left_out.add("neither file nor folder", name)
        elif any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(
                f"{source}: the name {os.fsencode(name)!r:.200} is not UTF-8: rename it"
            )
        else:
            found.files[name] = about.st_size
