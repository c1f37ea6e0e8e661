"""The text of API keys: how it is made, recognised and hashed.

    glp_ + id (12) + secret (43) + tag (8)        letters and digits only

The id is public: it names the key in lists and logs. The secret has 256 random bits. The tag is a
keyed hash of the text before it, so that a forged key is refused without a lookup in a store.
Stores keep a keyed hash (BLAKE2b, RFC 7693) of the whole text, never the text.
"""

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass, field

PREFIX = "glp_"
KEY_ID = re.compile(r"[0-9a-z]{12}")
MIN_SECRET_BYTES = 32
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_ALPHABET = string.digits + string.ascii_lowercase
_ID, _SECRET, _TAG = 12, 43, 8  # characters; 62**43 is more than 2**256
_LENGTH = len(PREFIX) + _ID + _SECRET + _TAG
_TOKEN = re.compile(rb"glp_[0-9a-z]{12}[0-9A-Za-z]{51}")


@dataclass(frozen=True, slots=True)
class NewToken:
    """A new key. Its owner sees `text` once; the store keeps `digest`."""

    text: str = field(repr=False)
    key_id: str
    digest: bytes = field(repr=False)


class KeyHasher:
    """Makes keys under the first of several secrets (`KEY_SECRET`), and checks them under all."""

    def __init__(self, *secrets: bytes) -> None:
        """`secrets` are the newest and those before it. Raises ValueError if one is too short."""
        if not secrets or any(len(secret) < MIN_SECRET_BYTES for secret in secrets):
            raise ValueError(f"the secret of keys needs at least {MIN_SECRET_BYTES} bytes")
        # BLAKE2b keys have at most 64 bytes. Each of the two uses of the secret gets another key.
        roots = [hashlib.blake2b(secret, person=b"glimpse.root").digest() for secret in secrets]
        self._digest_key, *self._earlier_digest_keys = (
            hashlib.blake2b(root, person=b"glimpse.digest").digest() for root in roots
        )
        self._tag_keys = [hashlib.blake2b(root, person=b"glimpse.tag").digest() for root in roots]

    def new(self, key_id: str = "") -> NewToken:
        """A new secret, for the key `key_id` or for a new key."""
        key_id = key_id or _random(_ID_ALPHABET, _ID)
        stem = f"{PREFIX}{key_id}{_random(_ALPHABET, _SECRET)}"
        text = stem + _tag(stem.encode(), self._tag_keys[0])
        return NewToken(text, key_id, self.digest(text.encode()))

    def digest(self, text: bytes) -> bytes:
        """The keyed hash of a whole key text: 32 bytes."""
        return hashlib.blake2b(text, key=self._digest_key, digest_size=32).digest()

    def digests(self, text: bytes) -> list[bytes]:
        """The keyed hashes of a whole key text under each secret, the newest first."""
        keys = (self._digest_key, *self._earlier_digest_keys)
        return [hashlib.blake2b(text, key=key, digest_size=32).digest() for key in keys]

    def key_id(self, text: bytes) -> str | None:
        """The id in a key text, or None if the form or the tag is wrong."""
        if len(text) != _LENGTH or not _TOKEN.fullmatch(text):
            return None
        tags = [_tag(text[:-_TAG], key).encode() for key in self._tag_keys]
        if not any(hmac.compare_digest(tag, text[-_TAG:]) for tag in tags):
            return None
        return text[len(PREFIX) : len(PREFIX) + _ID].decode()


def _tag(stem: bytes, key: bytes) -> str:
    number = int.from_bytes(hashlib.blake2b(stem, key=key, digest_size=8).digest())
    characters = []
    for _ in range(_TAG):
        number, index = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return "".join(characters)


def display(key_id: str) -> str:
    """The public part of a key, for lists."""
    return f"{PREFIX}{key_id}…"


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
