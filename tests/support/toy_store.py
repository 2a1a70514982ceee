"""A store that sid_ray does not know: one class, and one entry point or one call of register."""

from __future__ import annotations

import os

from pyarrow import fs

from sid_ray.storage.scheme import Scheme

ROOT = "TOY_ROOT"


class Toy(Scheme):
    """toy://NAME, below a folder that stands for a far file system; nothing is conditional there.

    Its files have no paths as far as sid_ray is told.
    """

    prefix = "toy://"
    form = "toy://NAME"

    def filesystem(self, url: str) -> fs.FileSystem:
        return fs.SubTreeFileSystem(os.environ[ROOT], fs.LocalFileSystem())


SCHEME = Toy()
