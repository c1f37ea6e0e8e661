"""Names of blobs: `{tenant}/{image_hash}`, on every backend."""

from core.domain.records import IMAGE_HASH, TENANT
from core.errors import NotFound

MISSING = "There is no such image."


def split_name(name: str) -> tuple[str, str]:
    """The tenant and the image hash in `name`. Raises NotFound if no blob can have that name."""
    tenant, _, image_hash = name.partition("/")
    if not (TENANT.fullmatch(tenant) and IMAGE_HASH.fullmatch(image_hash)):
        raise NotFound(MISSING)
    return tenant, image_hash
