"""What is confidential: it may be in an environment, never in a config, a log, a job's metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping

WORDS = {
    "AUTHORIZATION", "CREDENTIAL", "CREDENTIALS", "KEY", "PASSPHRASE", "PASSWD", "PASSWORD", "PAT",
    "SECRET", "TOKEN",
}  # fmt: skip
PLACES = {"DIR", "FILE", "PATH", "URI", "URL"}  # a name that ends so says where one lies
SHORTEST = 8  # characters: a shorter value may stand anywhere by chance

USER = re.compile(r"://[^/?#\s@]*:[^/?#\s]*@|https?://[^/?#\s]*@", re.IGNORECASE)
SIGNED = re.compile(
    r"[?&](x-amz-(signature|credential|security-token)|x-goog-(signature|credential)|"
    r"awsaccesskeyid|signature|sig|token|access_token|api_?key|password)=",
    re.IGNORECASE,
)


def named_secret(name: str) -> bool:
    """Whether an environment variable or a flag of this name holds a secret: HF_TOKEN, api-key."""
    words = re.split(r"[^A-Z0-9]+", name.upper())
    return not WORDS.isdisjoint(words) and words[-1] not in PLACES


def holds_credentials(text: str) -> bool:
    """Whether an address has a password, a user of a web address, or a signature in it."""
    return "://" in text and bool(USER.search(text) or SIGNED.search(text))


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that hold secrets, by name; those too short to be told from words are left out.

    An address with a password counts as its password.
    """
    found = {}
    for name, value in environment.items():
        if named_secret(name):
            secret = value.strip()
        else:
            inside = re.search(r"://[^/?#\s@]*:([^/?#\s]*)@", value)
            secret = inside[1] if inside else ""
        if len(secret) >= SHORTEST:
            found[name] = secret
    return found
