"""An exported folder in a repository of the Hugging Face hub, through huggingface_hub.

repository = HubRepository(address)       or UserError
found = repository.look(files, force)     what is there; or UserError where it may not be replaced
repository.send(found, files, message)

Whether a file goes by xet, by Git LFS or in the commit itself is the library's to decide, and its
variables hold: HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE. All changes are one commit upon the
commit that was looked at: the branch holds all of them or none, and nothing that others put there
meanwhile is lost. ``create_commit`` keeps that, where ``upload_folder`` makes several commits of
many files. Large files arrive before it, and what has arrived is not sent a second time.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sid_ray.errors import UserError
from sid_ray.exporting.record import RECORD, record_in
from sid_ray.storage.places import in_words, one_line
from sid_ray.weights.address import HubFile, source_label
from sid_ray.weights.hub import causes, with_timeouts

WAIT_S = 120.0  # for an answer: a commit may take the hub a minute
MAIN = "main"
THEIRS = ".gitattributes"  # the hub's own file in each repository
LISTED = 3  # files that a line names
AGAIN = "the same command goes on, and what has arrived is not sent again"
NOTHING_SENT = "nothing was sent"
XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3}) ")


class PushFailedError(Exception):
    """The hub failed, or the way to it: nothing that a person typed. One line."""


@dataclass(frozen=True)
class RepositoryState:
    """What is at a repository; ``commit`` is empty where it is not there, ``has_branch`` says
    whether that is the branch's head, not main's.
    """

    commit: str = ""
    private: bool = False
    has_branch: bool = False
    files: frozenset[str] = frozenset()


class HubRepository:
    """Where a push goes; ``address.revision`` is the branch. Raises UserError for a name that no
    repository can have. Nothing is asked.
    """

    def __init__(self, address: HubFile):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        self.repo, self.branch = address.repo, address.revision
        try:
            validate_repo_id(self.repo)
        except HFValidationError as error:
            said = str(error).partition(":")[0]
            raise UserError(f"hf://{self.repo}: no repository can have that name: {said}") from None
        self.api = HfApi()

    @property
    def endpoint(self) -> str:
        """The hub's address, as it may be shown."""
        return source_label(self.api.endpoint)

    @property
    def url(self) -> str:
        place = f"{self.endpoint}/{self.repo}"
        return place if self.branch == MAIN else f"{place}/tree/{quote(self.branch, safe='')}"

    def look(self, files: Collection[str], force: bool) -> RepositoryState:
        """``files`` are those to be sent, as far as they are known.

        Raises UserError where the token may not write, or something else is there and ``force`` is
        not given; PushFailedError.
        """
        with told_in_a_line(self, NOTHING_SENT):
            person = self.api.whoami()
            found = self.found()
            if not found.commit:
                self.check_owner(person)
            token = person.get("auth", {}).get("accessToken") or {}
            if token.get("role") == "read":
                raise UserError(
                    f"hf://{self.repo}: the token may only read: make one that may write at "
                    f"{self.endpoint}/settings/tokens"
                )
            if not force:
                self.check_ours(found, files)
        return found

    def found(self) -> RepositoryState:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            try:
                info, has_branch = self.api.model_info(self.repo, revision=self.branch), True
            except RevisionNotFoundError:
                info, has_branch = self.api.model_info(self.repo), False
        except RepositoryNotFoundError:
            return RepositoryState()
        files = frozenset(each.rfilename for each in info.siblings or ())
        return RepositoryState(info.sha or "", bool(info.private), has_branch, files)

    def check_owner(self, person: Mapping[str, Any]) -> None:
        """Raises UserError where a person can make no repository."""
        names = [person["name"], *(each["name"] for each in person.get("orgs", ()))]
        owner = self.repo.partition("/")[0]
        if owner.lower() not in [name.lower() for name in names]:
            raise UserError(
                f"hf://{self.repo} is not there, and the token can make none of {owner}: it can "
                f"for {' or '.join(names)}"
            )

    def check_ours(self, found: RepositoryState, files: Collection[str]) -> None:
        """Raises UserError where others than an export, and ``files`` beside one, are there."""
        own: set[str] = set()
        if RECORD in found.files:
            path = self.api.hf_hub_download(self.repo, RECORD, revision=found.commit)
            if record := record_in(Path(path).read_bytes()):
                own = {*record["files"], *files}
        others = sorted(found.files - {THEIRS} - own)
        if others:
            raise UserError(
                f"hf://{self.repo} holds {listed(others)}, which sid-ray push "
                "did not put there: name another repository, or give --force to replace all (its "
                "history keeps them)"
            )

    def send(
        self,
        found: RepositoryState,
        files: Mapping[str, Path | bytes],
        message: str,
        public: bool = False,
    ) -> str:
        """Makes the branch hold these files and no others; the commit, empty where it did before.

        Raises UserError, PushFailedError: a sentence on what is there then.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        base = found.commit
        if not base:
            with told_in_a_line(self, NOTHING_SENT):
                # Not exist_ok: one that is there now has not been looked at.
                self.api.create_repo(self.repo, private=not public)
        state = (
            "its files are as they were" if base else f"hf://{self.repo} is there, without files"
        )
        with told_in_a_line(self, state):
            if self.branch != MAIN and not found.has_branch:
                self.api.create_branch(
                    self.repo, branch=self.branch, revision=base or None, exist_ok=not base
                )
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationAdd(name, what) for name, what in files.items()),
                *(
                    CommitOperationDelete(name, is_folder=False)
                    for name in sorted(found.files - {THEIRS, *files})
                ),
            ]
            done = self.api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                revision=self.branch,
                parent_commit=base or None,
            )
        return "" if done.oid == base else done.oid


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


# What goes wrong ----------------------------------------------------------------------------------


@contextlib.contextmanager
def told_in_a_line(repository: HubRepository, state: str) -> Iterator[None]:
    """What the library raises as UserError or PushFailedError; it says nothing by itself but for
    its bars on a terminal.
    """
    from huggingface_hub.utils import disable_progress_bars, logging

    with_timeouts(WAIT_S)
    logging.set_verbosity_error()  # its lines hold addresses that are signed
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as said:
            yield
    except UserError:
        raise
    except Exception as error:
        raise why_not_sent(repository, error, state) from None
    for each in said:
        print(f"{repository.url}: {one_line(str(each.message))[:300]}", file=sys.stderr)


def why_not_sent(repository: HubRepository, error: Exception, state: str) -> Exception:
    """UserError where a person can mend it, else PushFailedError; neither holds the token."""
    from huggingface_hub import errors, get_token

    chain = causes(error)
    last = " ".join(f"{type(chain[-1]).__name__}: {chain[-1]}".split())[:200]
    files = [one for one in chain if isinstance(one, OSError) and one.filename]
    kind: type[Exception] = UserError

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if is_a(errors.LocalTokenNotFoundError):
        text = "there is no token: set HF_TOKEN, or run hf auth login"
    elif is_a(errors.OfflineModeIsEnabled):
        text = "HF_HUB_OFFLINE is set: unset it, or give --dry-run"
    elif (answer := HubAnswer.among(chain, last)).status:
        kind, text = answer.told(repository.endpoint)
    elif files:
        text = in_words(files[0])
    elif is_a(LookupError, TypeError, AttributeError, ValueError):
        kind = PushFailedError
        text = f"the server answers otherwise than a hub ({last}): check HF_ENDPOINT"
    else:
        kind, text = PushFailedError, f"no answer ({last}): check the network and HF_ENDPOINT"
    if "xet" in last.lower():
        text += "; HF_HUB_DISABLE_XET=1 sends by Git LFS, to hubs without xet"
    again = f"; {AGAIN}" if kind is PushFailedError and state != NOTHING_SENT else ""
    text = f"hf://{repository.repo}: {text}; {state}{again}"
    return kind(one_line(text.replace(get_token() or "\0", "TOKEN")))


class HubAnswer(NamedTuple):
    """Of a hub that refuses; ``status`` is 0 where it gave none."""

    status: int = 0
    said: str = ""
    wait_s: str = ""

    @classmethod
    def among(cls, chain: Sequence[BaseException], last: str) -> HubAnswer:
        """The library's own, or what hf_xet says of one."""
        from huggingface_hub.errors import HfHubHTTPError

        for one in chain:
            if isinstance(one, HfHubHTTPError):
                said = " ".join((one.server_message or "").split())[:200]
                wait_s = one.response.headers.get("Retry-After", "")
                return cls(one.response.status_code, said, wait_s)
        by_xet = XET_STATUS.search(last)
        return cls(int(by_xet[1])) if by_xet else cls()

    def told(self, endpoint: str) -> tuple[type[Exception], str]:
        """What it means. Not a person's to mend: PushFailedError."""
        http = f"HTTP {self.status}{f': {self.said}' if self.said else ''}"
        match self.status:
            case 401:
                text = f"the hub takes no such token ({http}): check HF_TOKEN, or run hf auth login"
            case 403:
                settings = f"{endpoint}/settings/tokens"
                text = f"the token may not write there ({http}): see its rights at {settings}"
            case 402 | 413 | 507:
                text = f"there is no room for it ({http}): see {endpoint}/settings"
            case 409 | 412:
                text = f"another one has changed it meanwhile, or may not be seen ({http})"
                return PushFailedError, text
            case 429:
                after = f"{self.wait_s} s" if self.wait_s.isdigit() else "some minutes"
                return PushFailedError, f"the hub was asked too much ({http}): try again in {after}"
            case status if status >= 500:
                return PushFailedError, f"the hub fails ({http})"
            case _:
                text = f"the hub refuses it ({http})"
        return UserError, text
