"""The few answers of the Hugging Face hub that huggingface_hub asks for, on loopback.

Of the real hub's, as documented and as the library reads them: a revision's commit, its tree, and
resolve addresses, which answer with X-Repo-Commit and for large files lead to another host.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.weights.server import FileServer, Handler

LARGE = 1 << 20  # files of so many bytes are kept elsewhere, as with Git LFS


class HubServer(FileServer):
    """``repositories``: by repository and commit, files by path. ``refs``: branches and tags.

    ``elsewhere`` is the server that large files lie on; ``gated`` and ``private`` name
    repositories, to which ``token`` is the key. Paths with ``silent`` in them get no answer.
    """

    def __init__(self) -> None:
        super().__init__(HubHandler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.elsewhere: FileServer | None = None
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.silent = ""

    def publish(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """A new commit, to which the branch or tag points."""
        self.repositories.setdefault(repo, {})
        number = sum(map(len, self.repositories.values()))
        commit = hashlib.sha1(f"{repo} {number}".encode()).hexdigest()
        self.repositories[repo][commit] = files
        self.refs[repo, revision] = commit
        return commit

    def asked(self, part: str) -> list[str]:
        """Methods and paths of requests whose path holds this."""
        return [path for path, _ in self.requests if part in path]


class HubHandler(Handler):
    server: HubServer

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        server, path = self.server, unquote(urlsplit(self.path).path)
        server.requests.append((f"{self.command} {unquote(self.path)}", dict(self.headers)))
        if server.silent and server.silent in path:
            threading.Event().wait(60)
        if path in server.status:
            return self.answer(server.status[path], {})
        match = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)|/([^/]+/[^/]+)/resolve/(.+)", path
        )
        if match is None:
            return self.answer(404, {})
        repo, what, rest = match[1] or match[4], match[2] or "resolve", match[3] or match[5]
        refused = self.refusal(repo)
        if refused is not None:
            return self.answer(*refused)
        commits = server.repositories[repo]
        known = {ref: commit for (name, ref), commit in server.refs.items() if name == repo}
        known |= {commit: commit for commit in commits}
        revision = next((r for r in known if rest == r or rest.startswith(r + "/")), None)
        if revision is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit, inside = known[revision], rest.removeprefix(revision).lstrip("/")
        if what == "revision":
            return self.say({"id": repo, "sha": commit, "siblings": []})
        if what == "tree":
            files = commits[commit]
            folders = sorted({str(up) for name in files for up in PurePosixPath(name).parents[:-1]})
            rows = [{"type": "directory", "path": path, "oid": commit} for path in folders]
            return self.say([*rows, *(row(name, data) for name, data in files.items())])
        return self.resolve(commit, commits[commit].get(inside))

    def refusal(self, repo: str) -> tuple[int, dict[str, str]] | None:
        server = self.server
        has_key = self.headers.get("Authorization") == server.token
        if repo not in server.repositories or (repo in server.private and not has_key):
            return 401, {"X-Error-Code": "RepoNotFound"}
        if repo in server.gated and not has_key:
            return 403, {"X-Error-Code": "GatedRepo"}
        return None

    def say(self, values: Any) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(values).encode())

    def resolve(self, commit: str, data: bytes | None) -> None:
        if data is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest[:40]}"'}
        other = self.server.elsewhere
        if other is not None and len(data) >= LARGE:
            other.files[f"/{digest}"] = data
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return self.answer(302, headers | {"Location": f"{other.url}/{digest}"})
        return self.send_file(data, headers)


def row(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
