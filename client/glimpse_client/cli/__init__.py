"""The command line: `glimpse`."""

import sys


def main() -> None:
    """Run `glimpse`; exits with a code of `glimpse_client.cli.exit_codes`."""
    try:
        from glimpse_client.cli.commands import run
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        sys.exit("The command line needs the extra: pip install 'glimpse-client[cli]'")
    run()
