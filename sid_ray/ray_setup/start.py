"""Starting or joining Ray: what would go wrong is found before, and told in one line.

    check_ray()                      looked at first, by each command that will need Ray
    with_ray(start, join)            ray.init itself

Ray's own words for a temporary folder that it cannot use are a traceback; for a cluster that is
gone, silence for minutes. ``sid-ray doctor`` asks the same.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import resource
import secrets
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import joins_cluster, stop_like_ctrl_c, unheard
from sid_ray.storage.places import check_folder, expanded, one_line

CONNECT_S = 3.0
ANSWER_S = 8.0  # for a head that accepts and does not answer
SOCKET_PATH = 107  # characters of an AF_UNIX address, the longest that a kernel takes
# What Ray puts behind its temporary folder for its longest one; its process's number comes last.
LONGEST = "/ray/session_2000-01-01_00-00-00_000000_/sockets/plasma_store"
SPARE_MIB = 32  # of the temporary folder: Ray's logs, its sockets
OPEN_FILES = 512
SHARED_MEMORY, SPARE_SHARED_MIB = "/dev/shm", 256
OTHERS = ("/tmp", "/var/tmp")  # where TMPDIR will not do
MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
ADDRESS = "RAY_ADDRESS"

logger = logging.getLogger(__name__)


# The temporary folder -----------------------------------------------------------------------------


def trouble_with(folder: str, what: str) -> str:
    """Why Ray could not keep its sockets and logs in a folder; empty where it can."""
    limit = SOCKET_PATH - len(LONGEST) - len(str(os.getpid()))
    length = len(os.fsencode(folder))
    if length > limit:
        return (
            f"{what} {folder} is {length} characters long, and Ray's sockets in it may have no "
            f"more than {limit}"
        )
    try:
        check_folder(Path(folder), what)
    except UserError as error:
        return str(error)
    there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    free = shutil.disk_usage(there).free >> 20
    if free < SPARE_MIB:
        return f"{what} {folder} has {free} MiB free, and Ray needs {SPARE_MIB}"
    return ""


def ray_folder() -> tuple[str, str]:
    """Where a Ray of this machine keeps its sockets and logs, and why that is not TMPDIR.

    RAY_TMPDIR, which a person sets for Ray alone, is taken as it is. Where TMPDIR will not do,
    because it is too long, say, another takes its place. Raises UserError where none will do.
    """
    own = os.environ.get("RAY_TMPDIR", "")
    if own:
        folder = str(expanded(own).absolute())
        if trouble := trouble_with(folder, "RAY_TMPDIR"):
            raise UserError(f"{trouble}: set RAY_TMPDIR to a short folder on another disk")
        return folder, ""
    why = ""
    named = [str(expanded(it).absolute()) for it in [os.environ.get("TMPDIR", "")] if it]
    for folder in (*named, *OTHERS):
        trouble = trouble_with(folder, "TMPDIR" if named else "the temporary folder")
        if not trouble:
            return folder, why
        why = why or trouble
    raise UserError(f"{why}: set RAY_TMPDIR to a short folder that can be written")


def small_shared_memory() -> str:
    """What is said of a /dev/shm that is missing or small; empty where there is enough."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free >> 20
    except OSError:
        return f"{SHARED_MEMORY} is missing: Ray keeps shared memory on a disk, which is slow"
    if free >= SPARE_SHARED_MIB:
        return ""
    return (
        f"{SHARED_MEMORY} has {free} MiB free: Ray keeps shared memory on a disk, which is slow "
        "(docker run --shm-size=2g)"
    )


def check_open_files() -> None:
    """Raises UserError where a limit of this shell would end Ray's processes midway."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < OPEN_FILES:
        raise UserError(
            f"a process may open {limit} files here, and Ray needs {OPEN_FILES} at least: "
            "ulimit -n 8192, or have the limit raised"
        )


def settle_folder(tell: Callable[[str], None]) -> None:
    """Settles for this process, and for what it starts, where Ray's own files go."""
    folder, why = ray_folder()
    if why:
        tell(f"{why}: Ray's own files go to {folder}/ray (RAY_TMPDIR names another place)")
    os.environ["RAY_TMPDIR"] = folder


def settle_token() -> None:
    """A token for a Ray of this machine, where Ray could not keep one in the home folder."""
    if MODE in os.environ or TOKEN in os.environ or f"{TOKEN}_PATH" in os.environ:
        return
    try:
        token = expanded("~/.ray/auth_token")
        if not token.is_file():
            check_folder(token.parent, "home")
    except (UserError, OSError):
        os.environ[MODE], os.environ[TOKEN] = "token", secrets.token_hex(32)


# The cluster's address ----------------------------------------------------------------------------


def refused(named: str, why: str) -> UserError:
    """``named``: what the person has set, with its value."""
    own = "; unset it for a Ray of this machine" if named.startswith(ADDRESS) else ""
    return UserError(one_line(f"{named}: {why}{own}"))


def parsed_address(named: str, address: str) -> tuple[str, int]:
    """Host and port. Raises UserError for what is none, or is of another kind of address."""
    if address.startswith("ray://"):
        raise refused(
            named,
            "Ray Client cannot train; run this on a node of the cluster with RAY_ADDRESS=auto, or "
            "use sid-ray submit with its Jobs API (http://HOST:8265)",
        )
    if address.startswith(("http://", "https://")):
        raise refused(
            named,
            "that is a Jobs API: use sid-ray submit, or give HOST:PORT of the head (6379 by "
            "default)",
        )
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]]+)):(\d{1,5})", address)
    if match is None or not 0 < int(match[3]) < 1 << 16:
        raise refused(named, "expected HOST:PORT of the head (6379 by default), auto or local")
    return match[1] or match[2], int(match[3])


def check_cluster() -> None:
    """Raises UserError within seconds where no cluster that this machine can join answers at
    RAY_ADDRESS.
    """
    address = os.environ[ADDRESS]
    check_head(f"{ADDRESS} is {address!r}", address, as_member=True)


def check_head(named: str, address: str, as_member: bool) -> None:
    """Raises UserError where no head answers at HOST:PORT or auto, or it is of another version.

    ``as_member``: also where this machine is no node of its cluster.
    """
    if address == "auto":
        address = found_here(named)
    host, port = parsed_address(named, address)
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
        why = getattr(error, "strerror", None) or str(error)
        raise refused(named, f"no cluster at {host}:{port} ({why.lower()}); is it gone?") from None
    ask(named, address, as_member)


def found_here(named: str) -> str:
    """The address of the cluster on this machine that ``auto`` means."""
    from sid_ray.ray_setup.ray_private import cluster_here

    try:
        return cluster_here()
    except ConnectionError:
        raise refused(named, "no Ray runs on this machine: `ray start` joins a cluster") from None


def ask(named: str, address: str, as_member: bool) -> None:
    """Asks the head who it is. Raises UserError where it does not answer, or does not fit."""
    import grpc
    import ray

    from sid_ray.ray_setup.ray_private import Head, nodes_of_this_machine

    head = Head(address, ANSWER_S)
    try:
        version = head.ray_version()
        if version and version != ray.__version__:
            raise refused(named, f"that cluster has Ray {version}, here it is {ray.__version__}")
        python, here = head.python_version(), platform.python_version()
        if python and python != here:
            raise refused(named, f"that cluster has Python {python}, here it is {here}")
        if as_member and not head.nodes() & nodes_of_this_machine():
            raise refused(
                named,
                "this machine is no node of that cluster: `ray start --address` joins it, or use "
                "sid-ray submit",
            )
    except grpc.RpcError as error:
        raise refused(named, reason(error)) from None
    finally:
        head.close()


def reason(error: Any) -> str:
    """What a call to something that may be no head ended with."""
    import grpc

    code = error.code()
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return (
            "the cluster asks for its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, "
            "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token as the cluster has it"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"something listens there and gave no answer for {ANSWER_S:.0f} s; is it Ray's head?"
    return (
        f"what answers there is no head of Ray ({code.name.lower()}); its port is 6379 by default"
    )


# Ray itself ---------------------------------------------------------------------------------------


def to_stderr(text: str) -> None:
    print(f"sid-ray: {text}", file=sys.stderr)


def check_ray(tell: Callable[[str], None] = to_stderr) -> None:
    """Raises UserError, before anything starts, where Ray could not be started or joined."""
    if joins_cluster():
        check_cluster()
    else:
        check_open_files()
        settle_folder(tell)
        settle_token()


def with_ray(start: Callable[[], object], join: Callable[[], object]) -> None:
    """Joins the cluster of RAY_ADDRESS or starts Ray on this machine, by what is given for each.

    Raises UserError in one line where it cannot; the log has the rest.
    """
    check_ray(logger.warning)
    try:
        with unheard():
            (join if joins_cluster() else start)()
    except (OSError, RuntimeError, ValueError) as error:
        raise unready(error) from error
    except Exception as error:
        if type(error) is not Exception and not type(error).__module__.startswith("ray."):
            raise
        raise unready(error) from error
    finally:
        stop_like_ctrl_c()


def unready(error: BaseException) -> UserError:
    """Why ray.init failed."""
    logger.error("Ray does not start", exc_info=error)
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    what = "the cluster cannot be joined" if joins_cluster() else "Ray does not start here"
    return UserError(f"{what}: {one_line(lines[0] if lines else type(cause).__name__):.300}")
