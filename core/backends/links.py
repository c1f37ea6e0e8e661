"""Links that let their bearer read one blob until they expire, signed with HMAC-SHA256.

For storage that cannot sign links itself: files, and the storage emulator. All processes that use
one data folder share one secret, which the first of them creates.
"""

import errno
import hashlib
import hmac
import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from core.durable_files import sync_folder, write_temporary
from core.errors import Forbidden

PATH = "/local/blobs"
KEY_BYTES = 32


class LinkSigner:
    """Makes and verifies links to `/local/blobs/{tenant}/{image_hash}`."""

    def __init__(self, secret: bytes, public_url: str = "") -> None:
        self._secret = secret
        self._public_url = public_url

    def url(self, name: str, expires_at: datetime) -> str:
        """A link to the blob `name`, relative if there is no public URL."""
        expires = int(expires_at.timestamp())
        query = f"expires={expires}&signature={self._signature(name, expires)}"
        return f"{self._public_url}{PATH}/{name}?{query}"

    def verify(self, name: str, expires: str | int, signature: str, now: datetime) -> None:
        """Raises Forbidden unless the link was made here for `name` and has not expired."""
        digits = str(expires)
        # Twelve digits are enough for 30,000 years, and keep a hostile number small.
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
    """The secret in `path`, created with mode 0600 if absent. Blocks.

    Raises OSError, also if the file is too short: a secret with lost bytes can be guessed.
    """
    with suppress(FileNotFoundError):
        return _read_secret(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    write_temporary(secrets.token_bytes(KEY_BYTES), temporary, 0o600)
    try:
        # A link never replaces a file: all processes use the secret of the first one.
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()
    sync_folder(path.parent)
    return _read_secret(path)


def _read_secret(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) < KEY_BYTES:
        reason = f"{path.name} has {len(secret)} bytes of {KEY_BYTES}"
        raise OSError(errno.EINVAL, reason, str(path))
    return secret
