"""A hub on loopback that takes uploads: of the real one's HTTP API what a push asks for.

As documented, and as huggingface_hub reads it: who a token is, repositories, branches, what of a
folder goes by Git LFS, the LFS batch with its upload and verify, and commits as lines of JSON.
Sizes and checksums are checked. With ``xet`` large files go by hf_xet into a folder of this disk
(hf_xet's own local store), from where nothing is downloaded.

    hub.users["hf_x"] = User("me", role="write")
    hub.failures.append(Failure("POST /api/models/.*/commit", 503))
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.weights.hub import HubHandler, HubServer

LARGE = (".safetensors", ".bin")  # what a new repository's .gitattributes names
DROPPED = 0  # in place of a status: the connection breaks


@dataclass
class User:
    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    @property
    def owns(self) -> tuple[str, ...]:
        return (self.name, *self.orgs)


@dataclass
class Failure:
    """The next ``times`` requests whose method and path match are answered with ``status``."""

    request: str
    status: int
    message: str = ""
    times: int = 1000
    after_bytes: int = 0
    """Of what is sent, read before the connection breaks."""


class PushHub(HubServer):
    """``stored``: large files by sha256, as they arrived. ``received``: bytes of uploads."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = PushHandler
        self.users: dict[str, User] = {}
        self.failures: list[Failure] = []
        self.stored: dict[str, bytes] = {}
        self.xet: Path | None = None
        self.received = 0
        self.titles: list[str] = []

    def head(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.repositories[repo][self.refs[repo, branch]]

    def arrived(self, sha256: str) -> bool:
        """Whether a large file is there: its sha256 stands in the shards that hf_xet leaves."""
        if self.xet is None:
            return sha256 in self.stored
        turned = b"".join(
            bytes.fromhex(sha256)[at : at + 8][::-1] for at in range(0, 32, 8)
        )  # numbers of 64 bits, little-endian
        shards = [path.read_bytes() for path in self.xet.rglob("*") if path.is_file()]
        return any(bytes.fromhex(sha256) in data or turned in data for data in shards)


class PushHandler(HubHandler):
    server: PushHub

    def do_PUT(self) -> None:  # noqa: N802
        self.handle_write()

    def do_POST(self) -> None:  # noqa: N802
        self.handle_write()

    def do_GET(self) -> None:  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        if self.failed(path):
            return None
        if path == "/api/whoami-v2":
            self.server.requests.append((f"GET {path}", dict(self.headers)))
            return self.whoami()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.server.requests.append((f"GET {path}", dict(self.headers)))
            return self.model_info(match[1], match[2] or "main")
        if "/xet-write-token/" in path and self.server.xet is not None:
            place = f"local://{self.server.xet}"
            given = {"casUrl": place, "exp": int(time.time()) + 3600, "accessToken": "cas"}
            return self.say(given)
        return super().do_GET()

    # Who asks --------------------------------------------------------------------------------

    @property
    def user(self) -> User | None:
        return self.server.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, repo: str) -> bool:
        user = self.user
        return user is not None and user.role == "write" and repo.split("/")[0] in user.owns

    def refusal(self, repo: str) -> tuple[int, dict[str, str]] | None:
        hidden = repo in self.server.private and (
            self.user is None or repo.split("/")[0] not in self.user.owns
        )
        if repo not in self.server.repositories or hidden:
            return 404 if self.user else 401, {"X-Error-Code": "RepoNotFound"}
        return None

    def failed(self, path: str) -> bool:
        for failure in self.server.failures:
            if failure.times > 0 and re.search(failure.request, f"{self.command} {path}"):
                failure.times -= 1
                if failure.status == DROPPED:
                    self.rfile.read(failure.after_bytes)
                    self.close_connection = True
                    self.connection.shutdown(2)
                else:
                    self.body()
                    self.refuse(failure.status, failure.message)
                return True
        return False

    def refuse(self, status: int, message: str = "") -> None:
        self.answer(status, {"X-Error-Message": message} if message else {})

    # Questions --------------------------------------------------------------------------------

    def whoami(self) -> None:
        user = self.user
        if user is None:
            return self.refuse(401, "Invalid credentials in Authorization header")
        orgs = [{"name": name} for name in user.orgs]
        auth = {"type": "access_token", "accessToken": {"role": user.role}}
        return self.say({"type": "user", "name": user.name, "orgs": orgs, "auth": auth})

    def model_info(self, repo: str, revision: str) -> None:
        if (refused := self.refusal(repo)) is not None:
            return self.answer(*refused)
        commit = self.commit_of(repo, revision)
        if commit is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        files = [{"rfilename": name} for name in self.server.repositories[repo][commit]]
        private = repo in self.server.private
        return self.say(
            {"id": repo, "modelId": repo, "sha": commit, "private": private, "siblings": files}
        )

    def commit_of(self, repo: str, revision: str) -> str | None:
        commits = self.server.repositories[repo]
        return revision if revision in commits else self.server.refs.get((repo, revision))

    # What is sent -----------------------------------------------------------------------------

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def handle_write(self) -> None:
        server, path = self.server, unquote(urlsplit(self.path).path)
        server.requests.append((f"{self.command} {path}", dict(self.headers)))
        if self.failed(path):
            return None
        data = self.body()
        server.received += len(data)
        if self.command == "PUT" and path.startswith("/lfs/"):  # its address is the key
            return self.store(path.removeprefix("/lfs/"), data)
        if path == "/lfs-verify":
            asked = json.loads(data)
            stored = server.stored.get(asked["oid"])
            right = stored is not None and len(stored) == asked["size"]
            return self.say({}) if right else self.refuse(404, "no such object")
        if path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        batch = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        if match is None and batch is None:
            return self.refuse(404)
        repo = match[1] if match else batch[1]
        if (refused := self.refusal(repo)) is not None:
            return self.answer(*refused)
        if not self.may_write(repo):
            return self.refuse(403, "you have no write access to this repository")
        if match is None:
            return self.batch(json.loads(data))
        act = {"branch": self.branch, "preupload": self.preupload, "commit": self.commit}
        return act[match[2]](repo, match[3], data)

    def store(self, sha256: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha256:
            return self.refuse(400, "the content is not what its name says")
        self.server.stored[sha256] = data
        return self.say({})

    def create(self, asked: dict[str, Any]) -> None:
        user = self.user
        owner = asked["organization"] or (user.name if user else "")
        repo = f"{owner}/{asked['name']}"
        if user is None:
            return self.refuse(401, "Invalid credentials in Authorization header")
        if not self.may_write(repo):
            return self.refuse(403, f"you have no right to create a model under {owner}")
        if repo in self.server.repositories:
            return self.refuse(409, "You already created this model repo")
        self.server.publish(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        if asked.get("visibility") == "private":
            self.server.private.add(repo)
        return self.say({"url": f"{self.server.url}/{repo}"})

    def branch(self, repo: str, name: str, data: bytes) -> None:
        refs = self.server.refs
        if (repo, name) in refs:
            return self.refuse(409, "Reference already exists")
        refs[repo, name] = json.loads(data or b"{}").get("startingPoint") or refs[repo, "main"]
        return self.say({})

    def preupload(self, repo: str, revision: str, data: bytes) -> None:
        commit = self.commit_of(repo, revision)
        if commit is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        there, rows = self.server.repositories[repo][commit], []
        for each in json.loads(data)["files"]:
            path = each["path"]
            large = path.endswith(LARGE)
            row = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if (now := there.get(path)) is not None:
                row["oid"] = pointed(now) if large else git_hash(now)
            rows.append(row)
        return self.say({"files": rows})

    def batch(self, asked: dict[str, Any]) -> None:
        assert asked["operation"] == "upload" and "basic" in asked["transfers"]
        objects = []
        for each in asked["objects"]:
            answer = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.server.stored:
                url = self.server.url
                answer["actions"] = {
                    "upload": {"href": f"{url}/lfs/{each['oid']}"},
                    "verify": {"href": f"{url}/lfs-verify"},
                }
            objects.append(answer)
        return self.say({"transfer": "basic", "objects": objects})

    def commit(self, repo: str, revision: str, data: bytes) -> None:
        """All of it or nothing."""
        server = self.server
        header, *changes = [json.loads(line) for line in data.splitlines()]
        parent = server.refs.get((repo, revision))
        if parent is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if header["value"].get("parentCommit", parent) != parent:
            return self.refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(server.repositories[repo][parent])
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif change["key"] == "lfsFile":
                if not server.arrived(value["oid"]):
                    return self.refuse(400, f"LFS object {value['oid']} is not there")
                files[value["path"]] = server.stored.get(value["oid"], pointer(value["oid"]))
            elif files.pop(value["path"], None) is None:
                return self.refuse(404, "A file with this name doesn't exist")
        server.titles.append(header["value"]["summary"])
        commit = server.publish(repo, files, revision)
        return self.say(
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{server.url}/{repo}/commit/{commit}",
            }
        )


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str) -> bytes:
    """Stands for a file whose bytes are in a folder of xet."""
    return f"xet {sha256}".encode()


def pointed(data: bytes) -> str:
    return data[4:].decode() if data.startswith(b"xet ") else hashlib.sha256(data).hexdigest()
