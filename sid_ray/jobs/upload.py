"""What `ray job submit --working-dir` would upload of a folder: its size, and no secret in it.

Ray's own packaging is asked which files it takes, so that .gitignore, .rayignore, `excludes` and
Ray's own list hold as they do there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sid_ray.errors import UserError
from sid_ray.ray_setup.ray_private import travel

MIB = 1 << 20
LARGEST_UPLOAD = 100 * MIB  # that Ray's dashboard takes
IGNORE_GITIGNORE = "RAY_RUNTIME_ENV_IGNORE_GITIGNORE"
A_FILE = 256  # bytes that a zip needs for a file beside its content and twice its name
LISTED = 5  # files that a refusal names
SECRET_FILES = (
    ".env", ".env.*", "*.env", ".netrc", "*.netrc", ".pgpass", ".pypirc", ".git-credentials",
    "kubeconfig*", "credentials*", "secrets*", "service-account*", "auth_token*",
    "id_rsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks",
)  # fmt: skip
SECRET_FOLDERS = (
    ".aws", ".azure", ".docker", ".gcloud", ".huggingface", ".kube", ".ray", ".ssh",
)  # fmt: skip
SOURCES = (".py", ".md")  # a module may be called secrets
PRIVATE_KEY = b"PRIVATE KEY-----"


@dataclass(frozen=True)
class Upload:
    """The files that go, by their name in ``folder``, with their bytes."""

    folder: Path
    files: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes of Ray's zip, at most: it does not compress."""
        return sum(size + 2 * len(name.encode()) + A_FILE for name, size in self.files.items())

    def __str__(self) -> str:
        return f"{len(self.files)} files, {self.size / MIB:.1f} MiB"

    def holds(self, path: str) -> bool:
        """Whether a relative path is a file or a folder of it."""
        name = os.path.normpath(path)
        return name in self.files or any(file.startswith(f"{name}/") for file in self.files)


def upload_of(folder: Path, excludes: Sequence[str] = ()) -> Upload:
    """What Ray would take of a folder. Raises UserError where it is none."""
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder}: no such folder")
    root, files = folder.absolute(), dict[str, int]()

    def take(path: Path) -> None:
        if path.is_file():
            files[str(path.relative_to(root))] = path.stat().st_size

    travel(root, excludes, os.environ.get(IGNORE_GITIGNORE, "0") != "1", take)
    return Upload(root, files)


def check_size(upload: Upload) -> None:
    """Raises UserError above what Ray's dashboard takes, with the largest files."""
    if upload.size < LARGEST_UPLOAD:
        return
    largest = sorted(upload.files.items(), key=lambda item: -item[1])[:LISTED]
    named = ", ".join(f"{name} ({size / MIB:.0f} MiB)" for name, size in largest)
    raise UserError(
        f"the upload of {upload.folder} is {upload}, Ray takes {LARGEST_UPLOAD // MIB} "
        f"MiB: name in .rayignore what a job does not need; the largest are {named}"
    )


def check_no_secrets(upload: Upload, secrets: Mapping[str, str]) -> None:
    """Raises UserError where a file is called as secrets are, is a private key, or holds a secret.

    ``secrets`` are values by the name of their environment variable; the refusal names only these.
    """
    for name in upload.files:
        if looks_secret(name):
            raise UserError(
                f"the upload holds {name}, which looks like a secret, and whoever may see the "
                "cluster may read it: name it in .rayignore, or move it out of the folder"
            )
    for name in upload.files:
        content = (upload.folder / name).read_bytes()
        if content.startswith(b"-----BEGIN ") and PRIVATE_KEY in content[:64]:
            raise UserError(f"the upload holds a private key, {name}: name it in .rayignore")
        for variable, value in secrets.items():
            if value.encode() in content:
                raise UserError(
                    f"the upload holds the value of {variable}, in {name}: take it out, or name "
                    "the file in .rayignore"
                )


def looks_secret(name: str) -> bool:
    """Whether a file's path is one that secrets usually have."""
    *folders, file = name.split("/")
    if any(folder in SECRET_FOLDERS for folder in folders):
        return True
    return not file.endswith(SOURCES) and any(fnmatch(file, known) for known in SECRET_FILES)
