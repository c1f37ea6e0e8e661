"""Settings for tests."""

from typing import Any

from core.settings import Settings


def isolated_settings(**values: Any) -> Settings:
    """Settings with `values`, by field name. No `.env` file is read.

    A value may be text, as in the environment of a process.
    """
    return Settings(_env_file=None, **values)
