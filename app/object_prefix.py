"""Which objects of a bucket a batch is made of: `gs://bucket/prefix`.

It names objects for the service's own account to read, and is no address that anybody fetches.
"""

import re
from dataclasses import dataclass

from core.bucket_folder import BUCKET_NAME

# https://cloud.google.com/storage/docs/objects#naming
MAX_PREFIX_BYTES = 1024
PATTERN = rf"^gs://({BUCKET_NAME})/([^\r\n]*)$"
_WHOLE = re.compile(PATTERN)


@dataclass(frozen=True, slots=True)
class ObjectPrefix:
    """Every object of `bucket` whose name begins with `prefix`; with none, every object."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> "ObjectPrefix":
        """Raises ValueError that says what is wrong, as the end of a sentence."""
        found = _WHOLE.fullmatch(text)
        if found is None:
            raise ValueError("is not of the form gs://bucket/prefix")
        prefix = cls(found[1], found[2])
        try:
            size = len(prefix.prefix.encode())
        except UnicodeEncodeError:
            raise ValueError("is not text that UTF-8 has a form for") from None
        if size > MAX_PREFIX_BYTES:
            raise ValueError(f"is longer than {MAX_PREFIX_BYTES} bytes behind the bucket")
        return prefix

    @property
    def folder(self) -> str:
        """What all of the names share, up to the last slash."""
        return self.prefix[: self.prefix.rfind("/") + 1]
