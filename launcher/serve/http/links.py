"""Links that are good for a while without a key: what a browser opens by itself sends none."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.serve.http.failure import ApiError

_KEY_FILE = "links.key"


def signed(words: Sequence[str], until: int, secret: bytes) -> str:
    """What stands in an address for `words`, which hold no blank, until a time in Unix seconds."""
    text = " ".join([*words, str(until)]).encode()
    return f"{_encoded(text)}.{_encoded(hmac.digest(secret, text, 'sha256'))}"


def read(link: str, secret: bytes, count: int) -> list[str] | None:
    """The `count` words of a link; None if it is forged, broken, too old, or of another kind."""
    text, _, proof = link.partition(".")
    try:
        raw, given = _decoded(text), _decoded(proof)
    except (binascii.Error, ValueError):
        return None
    if not hmac.compare_digest(hmac.digest(secret, raw, "sha256"), given):
        return None
    *words, until = raw.decode().split(" ")
    return words if len(words) == count and int(until) > time.time() else None


def not_good() -> ApiError:
    """For whoever comes with a link that `read` does not take."""
    return ApiError(404, "This link is not valid, or too old.")


def secret_of(home: Path) -> bytes:
    """What signs the links of a service; made once, and the same for all its servers."""
    path = home / _KEY_FILE
    if not path.exists():
        temporary = home / f".{_KEY_FILE}.{secrets.token_hex(8)}"
        temporary.touch(0o600)
        temporary.write_bytes(secrets.token_bytes(32))
        try:
            os.link(temporary, path)  # whoever is first
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_bytes()


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
