"""A service that anyone may reach must ask who they are, or be told that something in front does.

Both services check this before they listen.
"""

import ipaddress

from core.settings import Settings

_ANSWER = "or ALLOW_PUBLIC=true where something in front of it asks who comes"


class Exposed(Exception):
    """The settings would open the service to everyone; the text says what to set."""


def loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_api(settings: Settings) -> None:
    """Raises Exposed. The API asks for keys."""
    if settings.keys_required:
        if settings.backend == "gcp" and settings.key_secret is None:
            # A container's folder is new each time, and every instance's would be another.
            raise Exposed("API_KEYS=required needs KEY_SECRET with BACKEND=gcp.")
        return
    if settings.allow_public:
        return
    if settings.backend == "gcp":
        raise Exposed(f"BACKEND=gcp needs API_KEYS=required, {_ANSWER}.")
    if not loopback(settings.host):
        raise Exposed(
            f"HOST={settings.host} lets other machines in: set API_KEYS=required, {_ANSWER}."
        )


def check_worker(settings: Settings) -> None:
    """Raises Exposed. The worker asks for the token of whoever pushes."""
    if not (settings.verifies_pushes or settings.allow_public or loopback(settings.host)):
        raise Exposed(f"HOST={settings.host} lets other machines in: set PUSH_AUTH, {_ANSWER}.")
