"""Names of blobs, on every backend. `core.domain.records` makes them.

{tenant}/{image_hash}                       an image
{tenant}/thumbnails/{image_hash}            its thumbnail
{tenant}/embeddings/{model}/{image_hash}    what a base model computed from it
{tenant}/heads/{model}, {tenant}/reports/{model}
"""

import re

from core.domain.records import IMAGE_HASH, MODEL, TENANT
from core.errors import NotFound

MISSING = "There is no such image."

_NAME = re.compile(
    f"(?:{TENANT.pattern})(?:/thumbnails|/embeddings/{MODEL.pattern})?/{IMAGE_HASH.pattern}"
    f"|(?:{TENANT.pattern})/(?:heads|reports)/{MODEL.pattern}"
)


def split_name(name: str) -> tuple[str, str]:
    """The folder and the last part of `name`. Raises NotFound if no blob can have that name."""
    if not _NAME.fullmatch(name):
        raise NotFound(MISSING)
    folder, _, last = name.rpartition("/")
    return folder, last
