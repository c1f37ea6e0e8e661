"""Profiles: addresses and keys in the user's configuration folder, readable by the user only.

`GLIMPSE_URL` and `GLIMPSE_API_KEY` win over a profile.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

DEFAULT = "default"


class UnreadableProfiles(Exception):
    """The file of profiles cannot be read or is not what `glimpse login` writes."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Where a service is, and with which key."""

    url: str
    api_key: str | None = field(default=None, repr=False)


def folder() -> Path:
    """The user's configuration folder for Glimpse (XDG Base Directory; %APPDATA% on Windows)."""
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or str(Path.home() / "AppData" / "Roaming")
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "glimpse"


def profiles_file() -> Path:
    """The file of profiles."""
    return folder() / "profiles.json"


def load() -> dict[str, Profile]:
    """The profiles by name. Raises UnreadableProfiles."""
    file = profiles_file()
    try:
        document = json.loads(file.read_bytes())
        return {
            str(name): Profile(str(each["url"]), each.get("api_key"))
            for name, each in document["profiles"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableProfiles(f"{file} cannot be read: {error}") from None


def save(name: str, profile: Profile) -> Path:
    """Add or replace a profile; the file has mode 0600 from its first byte."""
    profiles = load() | {name: profile}
    file = profiles_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = {"profiles": {each: asdict(value) for each, value in profiles.items()}}
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        json.dump(document, out, indent=2)
        out.write("\n")
    aside.replace(file)
    return file
