"""Writing beside others: making a file that must not be there yet, of many who try at once one
succeeds; and changing a file that others change, too.

On a disk the system sees to that, also where hosts share it over NFS. In S3 it is a put with the
condition ``If-None-Match: *``, which pyarrow does not have and boto3 has. Amazon, SeaweedFS, MinIO
and others keep to it; a store that does not is found out, and NotExclusiveError says so.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sid_ray.storage.durable import only_writer, replace_file
from sid_ray.storage.errors import (
    S3,
    StoreError,
    at_server,
    code_error,
    endpoint,
)
from sid_ray.storage.store import CONNECT_TIMEOUT_S, REGION, Store

READ_TIMEOUT_S = 10
AGAIN_S, AGAIN_MOST_S = 0.05, 2.0  # after another was sooner
THERE = ("PreconditionFailed", "ConditionalRequestConflict", "OperationAborted")
NOT_IMPLEMENTED = ("NotImplemented", "InvalidArgument", "InvalidRequest")


class NotExclusiveError(StoreError):
    """The store cannot say whether a file was there: it puts without a condition."""


def write_new(store: Store, name: str, text: str) -> bool:
    """Writes a file that must not be there. Returns False where it is.

    Raises NotExclusiveError where the store cannot tell, StoreError, on a disk OSError.
    """
    if store.is_local:
        return _made(Path(store.path(name)), text)
    bucket, _, key = f"{store.url.removeprefix(S3)}/{name}".partition("/")
    put = partial(_put, client_of(bucket), bucket, key, text.encode(), IfNoneMatch="*")
    if not put():
        return False
    if put():  # a store that knows no conditions takes it once more
        raise NotExclusiveError(f"{store}: puts are not conditional")
    return True


def change_file(store: Store, name: str, how: Callable[[bytes], bytes]) -> None:
    """Replaces a file by what ``how`` makes of its bytes, which are none where there is no file.

    Of many who do so at once, each finds what the others have made: ``how`` may be asked again.
    Where a store puts without conditions, the last one wins. Raises StoreError, on a disk OSError.
    """
    if store.is_local:
        with only_writer(store.folder / name) as file:
            data = file.read()
            if (new := how(data)) != data:
                replace_file(store.folder / name, new)
        return
    bucket, _, key = f"{store.url.removeprefix(S3)}/{name}".partition("/")
    client = client_of(bucket)
    for tries in itertools.count():
        data, tag = _get(client, bucket, key)
        if (new := how(data)) == data:
            return
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        try:
            if _put(client, bucket, key, new, **condition):
                return
        except NotExclusiveError:
            store.write(name, new)
            return
        time.sleep(random.uniform(0, min(AGAIN_S * 2**tries, AGAIN_MOST_S)))


def _get(client: Any, bucket: str, key: str) -> tuple[bytes, str]:
    """An object and what names this version of it; both empty for none. Raises StoreError."""
    what = f"{S3}{bucket}/{key}"
    with told(what):
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
            return answer["Body"].read(), answer["ETag"]
        except client.exceptions.NoSuchKey:
            return b"", ""


def _made(path: Path, text: str) -> bool:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(file, "w") as stream:
            stream.write(text)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def client_of(bucket: str) -> Any:
    """boto3's client for a bucket, with the settings that Store has."""
    import boto3
    from botocore.config import Config

    server = endpoint()
    if server and "://" not in server:
        server = f"https://{server}"
    region = os.environ.get(REGION) or os.environ.get("AWS_DEFAULT_REGION")
    style: Any = {"addressing_style": "path"} if server else {}
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 3, "mode": "standard"},
        s3=style,
        request_checksum_calculation="when_required",  # others than Amazon may not know them
    )
    if not server and not region:
        from pyarrow import fs

        region = fs.resolve_s3_region(bucket)
    return boto3.client(
        "s3",
        endpoint_url=server or None,
        region_name=region or "us-east-1",
        config=config,
    )


def _put(client: Any, bucket: str, key: str, data: bytes, **condition: str) -> bool:
    """One conditional put; False where the condition does not hold.

    Raises NotExclusiveError, StoreError. A put whose answer was lost and that is tried again finds
    its own object: who needs to know reads it.
    """
    from botocore.exceptions import ClientError

    what = f"{S3}{bucket}/{key}"
    with told(what):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in THERE or status in (409, 412):
                return False
            if code in NOT_IMPLEMENTED or status == 501:
                raise NotExclusiveError(f"{what}: puts are not conditional{at_server()}") from None
            raise
    return True


@contextmanager
def told(what: str) -> Iterator[None]:
    """boto3's errors as StoreErrors."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise code_error(what, code, one_line(error)) from None
    except BotoCoreError as error:
        raise code_error(what, "", one_line(error)) from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
