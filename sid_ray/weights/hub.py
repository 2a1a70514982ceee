"""Weights of the Hugging Face hub, through huggingface_hub: its cache, its token, its settings.

HF_HOME, HF_HUB_CACHE, HF_TOKEN (or what `hf auth login` left), HF_ENDPOINT, HF_HUB_OFFLINE and the
library's other variables hold as they do elsewhere; what another program has fetched is found. A
branch or a tag is resolved to a commit once, and every file is that commit's: the path that is
returned names it, CACHE/models--OWNER--REPO/snapshots/COMMIT/PATH.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.places import one_line
from sid_ray.weights.address import HubFile, WeightSource, check_sha256, parse_source


def fetch_from_hub(
    source: WeightSource, label: str, choose: Callable[[list[str]], list[str]]
) -> Path:
    """The local path of a file, or of the folder with those of its files that ``choose`` names.

    Raises UserError in one line.
    """
    hub = HubFile.parse(source.location)
    with hub_failures(hub, label):
        from huggingface_hub import hf_hub_download, resolve_revision, snapshot_download

        with_timeouts()
        commit = resolve_revision(hub.repo, revision=hub.revision).resolved
        if hub.is_file():
            path = Path(hf_hub_download(hub.repo, hub.path, revision=commit))
        elif source.sha256 is not None:
            raise UserError(f"{label} is not one file; a checksum needs one")
        else:
            names = choose(files_below(hub, commit))
            patterns = [glob.escape(f"{hub.path}/{name}".lstrip("/")) for name in names]
            found = snapshot_download(hub.repo, revision=commit, allow_patterns=patterns)
            path = Path(found, hub.path)
    if source.sha256 is not None:
        status = path.stat()
        check_sha256(sha256_of(path, status.st_size, status.st_mtime_ns), source.sha256, label)
    return path


def with_timeouts(wait_s: float | None = None) -> None:
    """Questions of this process to the hub end: left alone, the library waits for ever for some.

    ``wait_s`` for each piece of an answer, or of what is sent; None for the library's own number.
    """
    from huggingface_hub import constants, get_session

    limit = functools.partial(
        limit_wait, constants.HF_HUB_ETAG_TIMEOUT if wait_s is None else wait_s
    )
    client = get_session()
    hooks = client.event_hooks
    others = [hook for hook in hooks["request"] if getattr(hook, "func", None) is not limit_wait]
    client.event_hooks = {**hooks, "request": [*others, limit]}


def limit_wait(wait_s: float, request: Any) -> None:
    """Gives a request of httpx a timeout where it has none."""
    limits = request.extensions.get("timeout", {})
    named = {name: limits.get(name) for name in ("connect", "read", "write", "pool")}
    request.extensions["timeout"] = {
        name: wait_s if value is None else value for name, value in named.items()
    }


def card_at(source: str) -> str:
    """The README.md of an hf:// source's repository; empty where there is none, and where the hub
    cannot be asked.
    """
    from huggingface_hub import hf_hub_download

    hub = HubFile.parse(parse_source(source).location)
    with contextlib.suppress(Exception), hub_failures(hub, source):
        with_timeouts()
        return Path(hf_hub_download(hub.repo, "README.md", revision=hub.revision)).read_text(
            "utf-8"
        )
    return ""


@functools.cache
def sha256_of(path: Path, size: int, changed_ns: int) -> str:
    """The checksum of a file, computed once in a process."""
    return file_sha256(path)


def files_below(hub: HubFile, commit: str) -> list[str]:
    """Files of a repository's folder, relative to it."""
    prefix = f"{hub.path}/" if hub.path else ""
    paths = [name for name in files_of(hub.repo, commit) if name.startswith(prefix)]
    return [name.removeprefix(prefix) for name in paths]


def files_of(repo: str, commit: str) -> list[str]:
    """All files of a commit, asked once; where the hub cannot be asked, those that are here."""
    from httpx2 import TransportError
    from huggingface_hub import RepoFile, get_cached_repo_tree, list_repo_tree, snapshot_download
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    with contextlib.suppress(CachedRepoTreeNotFoundError):
        return [file.path for file in get_cached_repo_tree(repo, revision=commit)]
    try:
        found = list_repo_tree(repo, revision=commit, recursive=True)
        return [file.path for file in found if isinstance(file, RepoFile)]
    except (OfflineModeIsEnabled, TransportError, HfHubHTTPError) as error:
        try:
            here = Path(snapshot_download(repo, revision=commit, local_files_only=True))
        except LocalEntryNotFoundError:
            raise error from None
        return [path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()]


@contextlib.contextmanager
def hub_failures(hub: HubFile, label: str) -> Iterator[None]:
    """What huggingface_hub raises as one line of UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(one_line(what_failed(hub, label, error))) from None


def causes(error: BaseException) -> list[BaseException]:
    """An error, and what it was raised from."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return chain


def what_failed(hub: HubFile, label: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    chain = causes(error)

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    answers = [one.response for one in chain if isinstance(one, errors.HfHubHTTPError)]
    status = answers[0].status_code if answers else 0
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    place = f"the cache {constants.HF_HUB_CACHE}"
    if is_a(errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{hub.repo}"
        return f"no access to {label}: accept the terms on {page}, and set HF_TOKEN"
    if is_a(errors.RevisionNotFoundError):
        return f"nothing at {label}: {hub.repo} has no revision {hub.revision}; check the name"
    if is_a(errors.RemoteEntryNotFoundError):
        return f"nothing at {label}: {hub.repo} has no {hub.path} at {hub.revision}; check the name"
    if is_a(errors.RepositoryNotFoundError):
        return (
            f"nothing at {label}: repository {hub.repo} was not found at {constants.ENDPOINT}, or "
            "is private: check the name, and HF_TOKEN"
        )
    if status in (401, 403):
        return f"no access to {label} (HTTP {status}): check HF_TOKEN, or run hf auth login"
    if is_a(errors.OfflineModeIsEnabled):
        return f"{label} is not in {place} and HF_HUB_OFFLINE is set; unset it once"
    if is_a(errors.HFValidationError):
        return f"{label}: no repository has that name; expected hf://owner/repo[/path][@revision]"
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return f"no space left for {label} in {place}: free some or set HF_HOME to another disk"
    if numbers & {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}:
        return f"{label} cannot be kept in {place}: set HF_HOME to a folder that can be written"
    reason = f"HTTP {status}" if status else f"{type(chain[-1]).__name__}: {chain[-1]}"[:200]
    if (400 <= status < 500 and status not in (408, 429)) or is_a(
        errors.FileMetadataError, ValueError, KeyError, AssertionError
    ):
        return f"{label}: the server answers otherwise than a hub ({reason}): check HF_ENDPOINT"
    return (
        f"{label} cannot be reached ({reason}): check the network and HF_ENDPOINT; files that are "
        "whole are kept, and the same command fetches the others"
    )
