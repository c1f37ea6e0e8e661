"""The secret that the local queue and scheduler send to the worker, in a file of the data folder.

Without it, every program on this machine, and the pages that its browsers open, could push forged
messages. On Google Cloud, pushes have a token of Google instead.
"""

from core.backends.data_folder import opened_folder
from core.backends.links import shared_secret
from core.settings import Settings

FILE = "push.secret"


def local_push_secret(settings: Settings) -> str:
    """The secret in `DATA_DIR` as hex digits, which is created if absent. Blocks.

    Raises Unavailable if the folder cannot be used.
    """
    with opened_folder(settings.data_dir):
        return shared_secret(settings.data_dir / FILE).hex()
