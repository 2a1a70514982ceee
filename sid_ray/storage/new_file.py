"""Making a file that must not be there yet: of many who try at once, one succeeds.

On a disk the system sees to that, also where hosts share it over NFS. In S3 it is a put with the
condition ``If-None-Match: *``, which pyarrow does not have and boto3 has. Amazon, SeaweedFS, MinIO
and others keep to it; a store that does not is found out, and NotExclusiveError says so.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from sid_ray.storage.errors import (
    S3,
    StoreError,
    at_server,
    code_error,
    endpoint,
)
from sid_ray.storage.store import CONNECT_TIMEOUT_S, REGION, Store

READ_TIMEOUT_S = 10
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
    put = partial(_put, client_of(bucket), bucket, key, text)
    if not put():
        return False
    if put():  # a store that knows no conditions takes it once more
        raise NotExclusiveError(f"{store}: puts are not conditional")
    return True


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


def _put(client: Any, bucket: str, key: str, text: str) -> bool:
    """One conditional put; False where the object is there. Raises NotExclusiveError, StoreError.

    A put whose answer was lost and that is tried again finds its own object: who needs to know
    reads it.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    what = f"{S3}{bucket}/{key}"
    try:
        client.put_object(Bucket=bucket, Key=key, Body=text.encode(), IfNoneMatch="*")
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in THERE or status in (409, 412):
            return False
        if code in NOT_IMPLEMENTED or status == 501:
            raise NotExclusiveError(f"{what}: puts are not conditional{at_server()}") from None
        raise code_error(what, code, one_line(error)) from None
    except BotoCoreError as error:
        raise code_error(what, "", one_line(error)) from None
    return True


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
