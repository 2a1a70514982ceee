"""S3-compatible servers: AWS_ENDPOINT_URL, AWS_REGION and the usual credentials of the environment,
of ~/.aws or of the machine's role.

pyarrow reads and writes. It has no conditional puts (``If-None-Match: *``, ``If-Match``), by which
of many writers one is the first, so these are boto3's. Amazon, SeaweedFS, MinIO and others keep to
them; a store that does not is found out, and NotExclusiveError says so.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from sid_ray.errors import UserError
from sid_ray.storage.errors import (
    DeniedStoreError,
    FullStoreError,
    MissingFileError,
    NotExclusiveError,
    StoreError,
    UnreachableStoreError,
)
from sid_ray.storage.scheme import Change, Scheme

ENDPOINT, REGION = "AWS_ENDPOINT_URL", "AWS_REGION"
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 10
ATTEMPTS = 3  # pyarrow's own, within a second or two; longer waiting is ``retrying``
AGAIN_S, AGAIN_MOST_S = 0.05, 2.0  # before a change is tried again that another was sooner with
DENIED = "ACCESS_DENIED|SIGNATURE|ACCESS_KEY|TOKEN|CREDENTIAL|UNAUTHORIZED|FORBIDDEN|403"
FULL = "STORAGE.?FULL|QUOTA|INSUFFICIENT|NO SPACE|HTTP STATUS 507"
THERE = ("PreconditionFailed", "ConditionalRequestConflict", "OperationAborted")
NOT_IMPLEMENTED = ("NotImplemented", "InvalidArgument", "InvalidRequest")


class S3(Scheme):
    """s3://BUCKET/PREFIX."""

    prefix = "s3://"
    form = "s3://BUCKET/PREFIX"
    has_folders = False
    keeps_checksums = True
    endpoint = ENDPOINT
    takes_artifacts = True

    def filesystem(self, url: str) -> Any:
        """With the environment's settings."""
        from pyarrow import fs

        server, region = endpoint(), region_named()
        options: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        }
        if server:
            parts = urlsplit(server if "://" in server else f"https://{server}")
            options |= {"endpoint_override": parts.netloc + parts.path, "scheme": parts.scheme}
            region = region or "us-east-1"
        elif not region:
            with suppress(OSError):  # no such bucket, or no network: the first use says so
                region = fs.resolve_s3_region(self.path(url).partition("/")[0])
        return fs.S3FileSystem(region=region, **options)

    def create(self, url: str, filesystem: Any) -> None:
        """Checks the bucket, which is never created here."""
        self.look(url, filesystem)

    def look(self, url: str, filesystem: Any) -> None:
        """For a bucket: a missing one looks empty, too."""
        from pyarrow import fs

        bucket = self.path(url).partition("/")[0]
        if filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
            text = f"bucket {bucket} does not exist{at_server()}: create it first"
            raise MissingFileError(text)

    def server(self) -> str:
        return endpoint()

    def write_new(self, url: str, data: bytes) -> bool:
        bucket, _, key = self.path(url).partition("/")
        put = partial(conditional_put, client_of(bucket), bucket, key, data, IfNoneMatch="*")
        if not put():
            return False
        if put():  # a store that knows no conditions takes it once more
            raise NotExclusiveError(f"{url}: puts are not conditional{at_server()}")
        return True

    def change(self, url: str, how: Change) -> None:
        bucket, _, key = self.path(url).partition("/")
        client = client_of(bucket)
        for tries in itertools.count():
            data, tag = get_tagged(client, bucket, key)
            if (new := how(data)) == data:
                return
            condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
            if conditional_put(client, bucket, key, new, **condition):
                return
            time.sleep(random.uniform(0, min(AGAIN_S * 2**tries, AGAIN_MOST_S)))

    def is_own(self, error: OSError) -> bool:
        return "AWS Error" in str(error)

    def error(self, what: str, error: OSError) -> StoreError:
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


def set_endpoint(url: str, region: str = "") -> None:
    """Makes an option hold for every library of this process and those that it starts.

    Raises UserError where the url is not one.
    """
    if url:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"S3 endpoint {url!r}: expected http://HOST:PORT or https://HOST")
        if "@" in parts.netloc:  # it would stand in run.json and MLflow
            raise UserError("an S3 endpoint holds no credentials: set AWS_ACCESS_KEY_ID and others")
        os.environ.pop(f"{ENDPOINT}_S3", None)
        os.environ[ENDPOINT] = url
    if region:
        os.environ[REGION] = os.environ["AWS_DEFAULT_REGION"] = region


def endpoint() -> str:
    """The S3-compatible server of the environment, empty for Amazon's."""
    return os.environ.get(f"{ENDPOINT}_S3") or os.environ.get(ENDPOINT, "")


def at_server() -> str:
    return f" at {endpoint()}" if endpoint() else ""


def region_named() -> str | None:
    """The region of the environment."""
    return os.environ.get(REGION) or os.environ.get("AWS_DEFAULT_REGION")


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


# Conditional puts ---------------------------------------------------------------------------------


def client_of(bucket: str) -> Any:
    """boto3's client for a bucket, with the settings that pyarrow has."""
    import boto3
    from botocore.config import Config

    server, region = endpoint(), region_named()
    if server and "://" not in server:
        server = f"https://{server}"
    style: Any = {"addressing_style": "path"} if server else {}
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
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


def conditional_put(client: Any, bucket: str, key: str, data: bytes, **condition: str) -> bool:
    """One put; False where its condition does not hold. Raises NotExclusiveError, StoreError.

    A put whose answer was lost and that is tried again finds its own object: who needs to know
    reads it.
    """
    from botocore.exceptions import ClientError

    what = f"{S3.prefix}{bucket}/{key}"
    with told_setting(what):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            code = s3_code_of(error)
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in THERE or status in (409, 412):
                return False
            if code in NOT_IMPLEMENTED or status == 501:
                raise NotExclusiveError(f"{what}: puts are not conditional{at_server()}") from None
            raise
    return True


def get_tagged(client: Any, bucket: str, key: str) -> tuple[bytes, str]:
    """An object and what names this version of it; both empty for none. Raises StoreError."""
    from botocore.exceptions import ClientError

    with told_setting(f"{S3.prefix}{bucket}/{key}"):
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if s3_code_of(error) != "NoSuchKey":
                raise
            return b"", ""
        return answer["Body"].read(), answer["ETag"]


def s3_code_of(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def told_setting(what: str) -> Iterator[None]:
    """boto3's errors as StoreErrors."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError) as error:
        code = s3_code_of(error) if isinstance(error, ClientError) else ""
        raise code_error(what, code, " ".join(str(error).split())[:160]) from None
