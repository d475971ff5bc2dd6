"""The search for a secret in whatever spelling it could have leaked."""

from __future__ import annotations

import base64
import contextlib
import re
import urllib.parse
import zlib

CANARY = "canary-6f1d0c27b9+/e4.~_tok=="
"""A token that no text has by chance, with each kind of character that a token may have."""


def spellings(secret: str) -> list[bytes]:
    """A secret as it is, URL-encoded, and in base64 at any offset."""
    plain = secret.encode()
    quoted = {urllib.parse.quote(secret, safe=safe).encode() for safe in ("", "/")}
    # base64 characters that depend on the secret alone, whatever stands before and after it
    shifted = [base64.b64encode(bytes(n) + plain)[4:-4].rstrip(b"=") for n in range(3)]
    return [plain, *quoted, *shifted]


def holds(data: bytes, secret: str) -> bool:
    """Whether a secret is in there in some spelling, gzipped or not."""
    for start in re.finditer(rb"\x1f\x8b\x08", data):
        with contextlib.suppress(zlib.error):
            data += zlib.decompressobj(wbits=31).decompress(data[start.start() :])
    return any(form in data for form in spellings(secret))
