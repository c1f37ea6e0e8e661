"""Links that let their bearer read one blob until they expire, signed with HMAC-SHA256.

For storage that cannot make such links itself: files, and the storage emulator. All processes on
one data folder share one secret, made by whichever comes first.
"""

import errno
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from core.errors import Forbidden

PATH = "/local/blobs"
KEY_BYTES = 32


class LinkSigner:
    """Makes and checks links to `/local/blobs/{tenant}/{image_hash}`."""

    def __init__(self, secret: bytes, public_url: str = "") -> None:
        self._secret = secret
        self._public_url = public_url

    def url(self, name: str, expires_at: datetime) -> str:
        """A link to the blob `name`; relative unless there is a public URL."""
        expires = int(expires_at.timestamp())
        query = f"expires={expires}&signature={self._signature(name, expires)}"
        return f"{self._public_url}{PATH}/{name}?{query}"

    def verify(self, name: str, expires: str | int, signature: str, now: datetime) -> None:
        """Return if the link was made here for `name` and has not expired, else raise Forbidden."""
        digits = str(expires)
        # Twelve digits outlast this software, and keep a hostile number small.
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
            raise Forbidden("The link is malformed.")
        expected = self._signature(name, int(digits))
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise Forbidden("The link's signature is wrong.")
        if now.timestamp() >= int(digits):
            raise Forbidden("The link has expired.")

    def _signature(self, name: str, expires: int) -> str:
        text = f"{name}\n{expires}".encode("utf-8", "replace")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def shared_secret(path: Path) -> bytes:
    """The secret in `path`, created with mode 0600 if absent. Blocks; raises OSError.

    Also where the file has lost bytes: whoever knows that can sign with what is left.
    """
    with suppress(FileNotFoundError):
        return _whole(path)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link cannot replace: of several processes one wins, and no one reads half a key.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    return _whole(path)


def _whole(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) < KEY_BYTES:
        reason = f"{path.name} has {len(secret)} bytes of {KEY_BYTES}"
        raise OSError(errno.EINVAL, reason, str(path))
    return secret
