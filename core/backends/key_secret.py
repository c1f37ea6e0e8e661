"""The secret of the keyed hash of API keys: `KEY_SECRET`, or one that the data folder keeps."""

from core.backends.data_folder import usable
from core.backends.links import shared_secret
from core.errors import Unavailable
from core.settings import Settings

FILE = "key.secret"


def local_key_secret(settings: Settings) -> bytes:
    """The setting, else the secret in `DATA_DIR`, made by whoever comes first. Blocks.

    Raises Unavailable where the folder cannot be used.
    """
    if settings.key_secret is not None:
        return settings.key_secret.get_secret_value().encode()
    if settings.backend == "gcp":
        # The folder is one machine's: keys made with its secret would be nobody's elsewhere.
        raise Unavailable("BACKEND=gcp needs KEY_SECRET for API keys.", retry_after=None)
    with usable(settings.data_dir):
        return shared_secret(settings.data_dir / FILE)
