"""The command for operators to manage keys: `python -m app.keys`, or `make key`.

    python -m app.keys create NAME [--tenant T] [--scopes classify,read] [--expires 90d]
                                   [--rate-limit 600/minute] [--daily-quota N]
    python -m app.keys list [--tenant T] [--json]
    python -m app.keys rotate ID [--overlap 24h]
    python -m app.keys revoke ID
    python -m app.keys limits TENANT [--rate-limit 600/minute] [--daily-quota N]

`create` and `rotate` write only the key to standard output. If that ends up in a log, as in a
Cloud Run job, write the key to a file: `--output FILE`.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from app.keys.representation import Key
from app.keys.service import Issued, Keys, Wanted, duration, moment
from core.backends import open_access
from core.clock import Clock, rfc3339, utc_now
from core.domain.api_keys import KEY_CACHE_SECONDS, ApiKey
from core.domain.key_tokens import KeyHasher, display
from core.domain.principals import scopes_of
from core.domain.rate_limits import Rate, TenantLimits
from core.domain.records import PUBLIC_TENANT
from core.errors import GlimpseError
from core.observability.logs import configure_logging
from core.settings import Settings, load_settings
from core.text_table import format_table


async def run(settings: Settings, arguments: argparse.Namespace, clock: Clock = utc_now) -> str:
    """Run the command, and return what it prints beside the key.

    Raises GlimpseError, ValueError and OSError.
    """
    async with open_access(settings, clock) as access:
        keys = Keys(access.keys, KeyHasher(*access.secrets), clock)
        match arguments.command:
            case "create":
                now = clock()
                issued = await keys.create(
                    Wanted(
                        tenant=arguments.tenant,
                        name=arguments.name,
                        scopes=scopes_of(arguments.scopes.split(",")),
                        expires_at=moment(arguments.expires, now) if arguments.expires else None,
                        rate=Rate.parse(arguments.rate_limit) if arguments.rate_limit else None,
                        daily_quota=arguments.daily_quota,
                    )
                )
                return _deliver(issued, settings, arguments.output)
            case "rotate":
                issued = await keys.rotate(arguments.id, duration(arguments.overlap))
                return _deliver(issued, settings, arguments.output)
            case "revoke":
                await keys.revoke(arguments.id)
                seconds = f"{KEY_CACHE_SECONDS:g} s"
                return f"Revoked {arguments.id}: every process refuses it within {seconds}."
            case "limits":
                if arguments.rate_limit is not None or arguments.daily_quota is not None:
                    await keys.set_limits(arguments.tenant, _tenant_limits(arguments))
                return _described(arguments.tenant, await keys.limits(arguments.tenant), settings)
            case _:
                found = await keys.list(arguments.tenant)
                now = clock()
                if arguments.json:
                    documents = [Key.of(key, now).model_dump(mode="json") for key in found]
                    return json.dumps(documents, indent=2)
                return table(found, now) if found else "There are no keys: make key NAME=…"


def _tenant_limits(arguments: argparse.Namespace) -> TenantLimits:
    rate, quota = arguments.rate_limit or "default", arguments.daily_quota or "default"
    if quota != "default" and not quota.isdecimal():
        raise ValueError("a daily quota is a number or 'default'")
    return TenantLimits(
        None if rate == "default" else Rate.parse(rate), None if quota == "default" else int(quota)
    )


def _described(tenant: str, limits: TenantLimits, settings: Settings) -> str:
    rate = limits.rate or f"{settings.rate_limit} (RATE_LIMIT)"
    quota = limits.daily_quota
    if quota is None:
        quota_text = f"{settings.daily_quota or 'none'} (DAILY_QUOTA)"
    else:
        quota_text = str(quota or "none")
    return f"All keys of tenant {tenant!r} together: rate {rate}, daily quota {quota_text}."


def table(keys: Sequence[ApiKey], now: datetime) -> str:
    """Format the keys as aligned columns with a heading."""
    heading = ("ID", "NAME", "TENANT", "SCOPES", "LIMITS", "CREATED", "EXPIRES", "LAST USED", "")
    rows = [
        (
            key.id,
            key.name,
            key.tenant,
            ",".join(sorted(key.scopes)),
            _limits(key),
            _minute(key.created_at),
            _minute(key.expires_at),
            _minute(key.last_used_at),
            _state(key, now),
        )
        for key in keys
    ]
    return format_table(heading, rows)


def _limits(key: ApiKey) -> str:
    own = [str(key.rate)] if key.rate else []
    own += [f"{key.daily_quota}/day"] if key.daily_quota else []
    return ",".join(own) or "-"


def _minute(at: datetime | None) -> str:
    return "-" if at is None else f"{rfc3339(at)[:16]}Z"


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if not key.active(now):
        return "expired"
    until = key.previous_expires_at
    return f"rotated; old until {_minute(until)}" if until and now < until else "active"


def _deliver(issued: Issued, settings: Settings, output: Path | None) -> str:
    """Write the key to `output` or to standard output; return information about it."""
    key = issued.key
    if output is None:
        sys.stdout.write(issued.text + "\n")
        sys.stdout.flush()
    else:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(issued.text + "\n")
    scopes = ", ".join(sorted(key.scopes))
    lines = [
        f"{display(key.id)} is {key.name!r} of tenant {key.tenant!r}: {scopes}.",
        f"It is in {output}." if output else "It is not shown again: store it now.",
    ]
    if key.previous_expires_at is not None:
        lines.append(f"The old text is valid until {_minute(key.previous_expires_at)}.")
    if not settings.keys_required:
        lines.append("The API does not require keys yet: set API_KEYS=required.")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keys", description="API keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", type=Path, metavar="FILE", help="write the key to a file")
    create = commands.add_parser("create", help="create a key", parents=[output])
    create.add_argument("name", help="what the key is for")
    create.add_argument(
        "--tenant", default=PUBLIC_TENANT, help="the tenant whose images it sees: %(default)s"
    )
    create.add_argument(
        "--scopes",
        default="classify,read",
        help="some of classify, read, jobs, admin, operator; or all",
    )
    create.add_argument(
        "--expires", default="", help="such as 90d, or a date or time; default: never"
    )
    create.add_argument(
        "--rate-limit", default="", help="such as 600/minute; default: the service's"
    )
    create.add_argument("--daily-quota", type=int, help="requests a day; 0: no quota")
    list_ = commands.add_parser("list", help="list keys without their secrets")
    list_.add_argument("--tenant", help="only keys of this tenant")
    list_.add_argument("--json", action="store_true", help="print JSON")
    rotate = commands.add_parser("rotate", help="give a key a new text", parents=[output])
    rotate.add_argument("id", metavar="ID")
    rotate.add_argument(
        "--overlap", default="24h", help="how long the old text is valid: %(default)s"
    )
    revoke = commands.add_parser("revoke", help="revoke a key")
    revoke.add_argument("id", metavar="ID")
    limits = commands.add_parser("limits", help="show or replace the limits of a tenant")
    limits.add_argument("tenant", metavar="TENANT")
    limits.add_argument("--rate-limit", help="such as 600/minute, or default: the service's")
    limits.add_argument("--daily-quota", help="a number, 0 for none, or default: the service's")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    settings = load_settings()
    # Logs go to standard error: standard output is for the key.
    configure_logging("keys", settings.log_format, "error", file=sys.stderr)
    try:
        message = asyncio.run(run(settings, arguments))
    except GlimpseError as error:
        raise SystemExit(error.detail) from None
    except ValueError as error:
        text = str(error)
        # `capitalize` would change the rest to lower case, including quoted input.
        raise SystemExit(f"{text[:1].upper()}{text[1:]}.") from None
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}.") from None
    out = sys.stdout if arguments.command == "list" else sys.stderr
    out.write(message + "\n")


if __name__ == "__main__":
    main()
