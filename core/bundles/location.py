"""A folder in Cloud Storage: `gs://bucket/folder`.

Buckets have no folders: a folder is a prefix of the names of objects.
https://cloud.google.com/storage/docs/objects#naming
"""

import re
from dataclasses import dataclass

# https://cloud.google.com/storage/docs/buckets#naming
BUCKET_NAME = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
MAX_FOLDER_BYTES = 900  # an object's name has at most 1024, including the name of the file
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_WHOLE = re.compile(rf"^gs://({BUCKET_NAME})/([^\x00-\x1f\x7f]+?)/?$")


@dataclass(frozen=True, slots=True)
class BucketFolder:
    """`folder` neither starts nor ends with a slash."""

    bucket: str
    folder: str

    @classmethod
    def of(cls, uri: str) -> "BucketFolder | None":
        """The folder, or None if `uri` is a path. Raises ValueError if it is neither."""
        if not _SCHEME.match(uri):
            return None
        found = _WHOLE.fullmatch(uri)
        if found is None or any(part in ("", ".", "..") for part in found[2].split("/")):
            raise ValueError("is neither a path nor of the form gs://bucket/folder")
        if len(found[2].encode(errors="surrogateescape")) > MAX_FOLDER_BYTES:
            raise ValueError(f"is longer than {MAX_FOLDER_BYTES} bytes after the bucket")
        return cls(found[1], found[2])

    def object(self, name: str) -> str:
        """The name of the object for the file `name` of the folder."""
        return f"{self.folder}/{name}"

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.folder}"
