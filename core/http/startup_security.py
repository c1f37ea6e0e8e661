"""Start-up security check: a service that other machines can reach must authenticate callers.

Both services run it before they listen. `ALLOW_PUBLIC=true` turns it off for services behind
something that authenticates.
"""

from core.hosts import is_loopback
from core.settings import Settings

_OR_PUBLIC = "or ALLOW_PUBLIC=true if something in front of it authenticates callers"


class InsecureSettings(Exception):
    """The service would serve unauthenticated callers. The text says which settings to change."""


def check_api(settings: Settings) -> None:
    """Check that the API requires keys. Raises InsecureSettings."""
    if settings.keys_required:
        if settings.backend == "gcp" and settings.key_secret is None:
            # The API would create a secret in the container's file system, which no other instance
            # shares and no restart keeps.
            raise InsecureSettings("API_KEYS=required needs KEY_SECRET with BACKEND=gcp.")
        return
    if settings.allow_public:
        return
    if settings.backend == "gcp":
        raise InsecureSettings(f"BACKEND=gcp needs API_KEYS=required, {_OR_PUBLIC}.")
    if not is_loopback(settings.host):
        raise InsecureSettings(
            f"HOST={settings.host} lets other machines in: set API_KEYS=required, {_OR_PUBLIC}."
        )


def check_worker(settings: Settings) -> None:
    """Check that the worker verifies push tokens. Raises InsecureSettings."""
    if settings.push_authentication == "iam" and not settings.on_cloud_run:
        raise InsecureSettings(
            "PUSH_AUTH=iam is safe only on Cloud Run, which sets K_SERVICE: set PUSH_AUTH=oidc."
        )
    if not (settings.verifies_pushes or settings.allow_public or is_loopback(settings.host)):
        raise InsecureSettings(
            f"HOST={settings.host} lets other machines in: set PUSH_AUTH, {_OR_PUBLIC}."
        )
