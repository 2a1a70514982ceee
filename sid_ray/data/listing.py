"""What a source holds before anything of it is understood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sid_ray.data.left_out import LeftOut
from sid_ray.data.names import shown_name
from sid_ray.data.samples import SampleReader
from sid_ray.errors import UserError


@dataclass
class Listing:
    """The files of a folder or of archives, and how one is read.

    Args:
        files: places by name, for ``reader``.
        paths: where a file lies as far as folders mean something; its name where it is missing.
        empty: folders without files.
        keyed: files are grouped by webdataset's keys.
        remote: reading waits for a network.
    """

    source: str
    files: dict[str, Any]
    reader: SampleReader
    paths: Mapping[str, str] = field(default_factory=dict)
    empty: Sequence[str] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    keyed: bool = False
    remote: bool = False

    def read(self, name: str) -> bytes:
        """Raises UserError that names the file."""
        try:
            data = self.reader.read(name, self.files[name])
        except UserError as error:
            raise UserError(f"{self.source}: {shown_name(name)}: {error}") from None
        assert isinstance(data, bytes)
        return data

    def path(self, name: str) -> str:
        return self.paths.get(name, name)
