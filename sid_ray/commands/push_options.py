"""What a person asks of ``sid-ray push``."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sid_ray.commands.export_options import ExportChoices, ExportOptions
from sid_ray.errors import UserError
from sid_ray.exporting.record import RECORD
from sid_ray.storage.places import expanded
from sid_ray.weights.address import HubFile

FORM = "hf://OWNER/REPO"
# See git check-ref-format.
NO_BRANCH = re.compile(
    r"[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|//|@\{|^[-/]|(^|/)\.|(\.lock|\.)(/|$)|/$|^@$"
)


@dataclass(frozen=True, kw_only=True)
class PushOptions(ExportChoices):
    """Puts a generator on the Hugging Face hub, as sid-ray export writes it.

    SOURCE is exported to a temporary folder first, or is a folder that sid-ray export has written.
    A repository that is made is private. The files arrive in one commit: all of them or none. What
    was not sent is sent by the same command. The hub's library decides how: HF_TOKEN (or what
    hf auth login left), HF_ENDPOINT, HF_HOME and its other variables hold.
    """

    target: Annotated[str, Positional, arg(metavar=FORM)]
    """The repository, perhaps with @BRANCH. It is made where it is not there."""
    branch: str = ""
    """The branch to commit to, as @BRANCH; made where it is not there. Empty for main."""
    public: bool = False
    """Make a new repository public. One that is there stays what it is."""
    message: str = ""
    """The commit's first line; empty for one that names the images seen."""
    dry_run: bool = False
    """Export, and list what would be sent. Needs no token, and asks the hub nothing."""
    force: bool = False
    """Replace what a repository holds that sid-ray push did not put there; its history keeps it."""

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is opened."""
        self.repository()
        if "\n" in self.message:
            raise UserError("--message has several lines: the commit's first line is expected")
        super().check()
        if self.is_export and (chosen := self.chosen()):
            raise UserError(
                f"{next(iter(chosen))} is for a run or weights, and {self.source} is an export "
                "already: leave the flag out, or name what it was made of"
            )

    @property
    def folder(self) -> Path:
        """SOURCE as a folder of this machine."""
        return expanded(self.source)

    @property
    def is_export(self) -> bool:
        return "://" not in self.source and (self.folder / RECORD).is_file()

    def repository(self) -> HubFile:
        """Where it goes; ``revision`` is the branch. Raises UserError."""
        if not self.target.startswith("hf://"):
            raise UserError(f"{self.target}: a push goes to {FORM}")
        found = HubFile.parse(self.target)
        if found.path:
            raise UserError(
                f"{self.target}: a push fills a whole repository; expected {FORM}, here "
                f"hf://{found.repo}"
            )
        named = "@" in self.target
        if self.branch and named and found.revision != self.branch:
            raise UserError(f"--branch {self.branch}: {self.target} names another one")
        branch = self.branch or found.revision
        if re.fullmatch("[0-9a-f]{40}", branch):
            raise UserError(f"{branch} is a commit, to which nothing can be added: name a branch")
        if NO_BRANCH.search(branch):
            raise UserError(f"{branch!r}: git allows no branch of that name, name another")
        return dataclasses.replace(found, revision=branch)

    def exported_to(self, folder: Path) -> ExportOptions:
        """The export that is to be pushed."""
        choices = {
            each.name: getattr(self, each.name) for each in dataclasses.fields(ExportChoices)
        }
        return ExportOptions(**choices, folder=folder)
