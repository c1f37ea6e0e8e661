"""`glimpse doctor`: what works between this machine and the service, and what does not."""

import email.utils
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx2

from glimpse_client.cli.context import Context
from glimpse_client.cli.exit_codes import NOT_ALLOWED, OK, REFUSED, UNREACHABLE
from glimpse_client.client import VERSION
from glimpse_client.errors import ApiError, ConnectionFailed, Unauthenticated
from glimpse_client.retries import RetryPolicy

MOST_SKEW = 60.0  # seconds; webhooks are refused beyond five minutes


@dataclass(frozen=True, slots=True)
class Finding:
    """A check: its name, whether it passed, and what was seen."""

    name: str
    good: bool
    text: str


def run_doctor(ctx: Context) -> tuple[list[Finding], int]:
    """The findings and the exit code of the first problem."""
    chosen = ctx.chosen()
    findings = [Finding("client", True, f"glimpse-client {VERSION}, httpx2 {httpx2.__version__}")]
    findings.append(Finding("address", True, chosen.url))
    findings.append(Finding("key", True, "set" if chosen.api_key else "none"))
    client = ctx.client.with_options(retries=RetryPolicy(retries=0))
    try:
        answer = client.ready()
    except ConnectionFailed as error:
        findings.append(Finding("service", False, f"does not answer: {error}"))
        return findings, UNREACHABLE
    except ApiError as error:
        findings.append(Finding("service", False, f"is this Glimpse? /ready answers {error}"))
        return findings, REFUSED
    code = OK
    document = answer.document if isinstance(answer.document, dict) else {}
    checks = document.get("checks")
    if not isinstance(checks, dict):
        findings.append(Finding("service", False, "/ready is not the answer of Glimpse"))
        return findings, REFUSED
    failing = [name for name, state in checks.items() if state not in ("ok", True)]
    if answer.status == 503:
        names = ", ".join(failing) or "a part"
        findings.append(Finding("service", False, f"answers, but {names} does not work"))
        code = REFUSED
    else:
        findings.append(Finding("service", True, f"ready ({', '.join(checks)})"))
    if "date" in answer.headers:
        skew = _skew(answer.headers["date"])
        findings.append(
            Finding("clock", abs(skew) <= MOST_SKEW, f"{skew:+.0f} s against the service")
        )
    try:
        client.jobs.page(limit=1)
        findings.append(Finding("access", True, "requests are accepted"))
    except Unauthenticated as error:
        findings.append(Finding("access", False, f"{error.detail} Use glimpse login."))
        code = code or NOT_ALLOWED
    except ApiError as error:
        # A key without this scope is still a valid key.
        good = error.status == 403
        findings.append(Finding("access", good, error.detail))
        code = code or (OK if good else REFUSED)
    except ConnectionFailed as error:
        findings.append(Finding("access", False, str(error)))
        code = code or UNREACHABLE
    return findings, code


def _skew(date: str) -> float:
    there = email.utils.parsedate_to_datetime(date)
    return (datetime.now(UTC) - there).total_seconds()
