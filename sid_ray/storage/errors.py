"""What can go wrong with a store, in one line for the person who reads it, and waiting for it."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
S3 = "s3://"
ENDPOINT = "AWS_ENDPOINT_URL"
RETRY_S = (0.5, 1, 2, 5, 10, 30)  # between tries of a store that fails; the last one repeats
DENIED = "ACCESS_DENIED|SIGNATURE|ACCESS_KEY|TOKEN|CREDENTIAL|UNAUTHORIZED|FORBIDDEN|403"
FULL = "STORAGE.?FULL|QUOTA|INSUFFICIENT|NO SPACE|HTTP STATUS 507"


class StoreError(OSError):
    """A store could not do what was asked; the text says which and why."""


class MissingFileError(StoreError, FileNotFoundError):
    """There is no such file, or no such bucket."""


class DeniedStoreError(StoreError):
    """The store knows the credentials and refuses, or there are none."""


class UnreachableStoreError(StoreError):
    """The store did not answer, or not now."""


class FullStoreError(StoreError):
    """There is no space left."""


def is_s3(url: str) -> bool:
    return url.startswith(S3)


def endpoint() -> str:
    """The S3-compatible server of the environment, empty for Amazon's."""
    return os.environ.get(f"{ENDPOINT}_S3") or os.environ.get(ENDPOINT, "")


def at_server() -> str:
    return f" at {endpoint()}" if endpoint() else ""


@contextmanager
def named(url: str, name: str = "") -> Iterator[None]:
    """pyarrow's S3 errors as StoreErrors that say which file, what is wrong and what to check."""
    if not is_s3(url):
        yield
        return
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise store_error(f"{url}/{name}" if name else url, error) from None


def store_error(what: str, error: OSError) -> StoreError:
    """What pyarrow 25 says in the words of the AWS SDK, by its error code."""
    text = str(error)
    match = re.search(r"AWS Error (\w+)", text)
    code = (match[1] if match else "").upper()
    short = re.sub(r"\s+|; Details:.*", " ", text.rsplit("operation: ", 1)[-1]).strip()[:160]
    short += ")" * (short.count("(") - short.count(")"))
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"{what} does not exist{at_server()}")
    if re.search(FULL, text.upper()):
        return FullStoreError(errno.ENOSPC, f"{what}: no space left in the store ({short})")
    return code_error(what, code, short)


def code_error(what: str, code: str, short: str) -> StoreError:
    """By S3's error code, as pyarrow spells it (NO_SUCH_KEY) or boto3 (NoSuchKey)."""
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).upper()
    if code == "NO_SUCH_KEY":
        return MissingFileError(f"{what} does not exist{at_server()}")
    if code == "NO_SUCH_BUCKET":
        return MissingFileError(f"{what}: the bucket does not exist{at_server()}: create it first")
    if re.search(FULL, short.upper()):
        return FullStoreError(errno.ENOSPC, f"{what}: no space left in the store ({short})")
    if re.search(DENIED, code):
        why = "" if code == "ACCESS_DENIED" else f" ({code.lower().replace('_', ' ')})"
        return DeniedStoreError(
            f"{what}: access denied{at_server()}{why}: check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and the bucket's policy"
        )
    return UnreachableStoreError(
        f"{what}: no answer{at_server() or ' from S3'} ({short}): check AWS_ENDPOINT_URL, "
        "AWS_REGION and the network"
    )


def pause_s(tries: int) -> float:
    """How long to wait after so many tries that failed."""
    return RETRY_S[min(tries, len(RETRY_S) - 1)]


def retrying(
    action: Callable[[], T],
    tell: Callable[[str], None] = lambda text: None,
    give_up_s: float = float("inf"),
    closing: threading.Event | None = None,
) -> T:
    """Does it again and again while the store cannot be reached; says so, and when it is back.

    Raises the last UnreachableStoreError after ``give_up_s`` or when ``closing`` is set.
    """
    began, tries = time.monotonic(), 0
    while True:
        try:
            found = action()
        except UnreachableStoreError as error:
            wait_s = pause_s(tries)
            if time.monotonic() - began + wait_s > give_up_s:
                raise
            if tries == 0:
                tell(f"{error}; trying again")
            tries += 1
            if closing is None:
                time.sleep(wait_s)
            elif closing.wait(wait_s):
                raise
        else:
            if tries:
                tell(f"storage is back after {time.monotonic() - began:.0f} s")
            return found
