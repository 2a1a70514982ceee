"""Made-up secrets for an environment, and a scan of whatever a run has left for them.

A value is looked for as it is, percent-encoded, as in JSON, in hexadecimal and in base64 at each of
its three alignments. What is compressed (PNG, zip members that are deflated) is not opened.
"""

from __future__ import annotations

import base64
import json
import mmap
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GITHUB_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
    "WANDB_API_KEY",
)


def canary(name: str) -> str:
    """A value with characters that encodings change; a token of Ray may have none."""
    text = f"canary{secrets.token_hex(12)}"
    return text if name == "RAY_AUTH_TOKEN" else f"{text}/+={secrets.token_hex(4)}"


def planted() -> dict[str, str]:
    return {name: canary(name) for name in NAMES}


def encodings(value: str) -> set[bytes]:
    """All that stands for a value in a file."""
    data = value.encode()
    found = {data, data.hex().encode(), data.hex().upper().encode()}
    found |= {quote(value, safe="").encode(), quote_plus(value).encode(), quote(value).encode()}
    found.add(json.dumps(value)[1:-1].replace("/", "\\/").encode())
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + data).rstrip(b"=")
        # Characters that depend on neighbours are left out.
        text = whole[-(-shift * 8 // 6) : -1 if (shift + len(data)) % 3 else None]
        found |= {text, text.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def leaks(content: bytes | mmap.mmap, canaries: Mapping[str, str]) -> list[str]:
    """Names of the canaries that stand in a content."""
    return [
        name
        for name, value in canaries.items()
        if any(content.find(text) >= 0 for text in encodings(value))
    ]


def leaks_below(folder: Path, canaries: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """(file, names) for each file that holds canaries, and '' without names for each other."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = leaks(data, canaries)
        yield (str(path), found) if found else ("", [])
