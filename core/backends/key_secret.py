"""The secrets with which API keys are hashed: `KEY_SECRET`, or a file in the data folder."""

from core.backends.data_folder import opened_folder
from core.backends.links import shared_secret
from core.errors import Unavailable
from core.settings import Settings

FILE = "key.secret"


def local_key_secrets(settings: Settings) -> tuple[bytes, ...]:
    """`KEY_SECRET`, newest first, or else the secret in `DATA_DIR`, created if absent. Blocks.

    Raises Unavailable if the folder cannot be used.
    """
    if settings.key_secret is not None:
        texts = settings.key_secret.get_secret_value().split(",")
        return tuple(text.strip().encode() for text in texts)
    if settings.backend == "gcp":
        # Instances do not share a folder: each would reject the keys that another made.
        raise Unavailable("BACKEND=gcp needs KEY_SECRET for API keys.", retry_after=None)
    with opened_folder(settings.data_dir):
        return (shared_secret(settings.data_dir / FILE),)
