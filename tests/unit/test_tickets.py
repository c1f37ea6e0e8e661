"""The text of tickets: one key, one path, one minute, one secret."""

from datetime import UTC, datetime, timedelta

import pytest

from core.domain.tickets import VALIDITY, TicketSigner

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SIGNER = TicketSigner(b"s" * 32)
PATH = "/api/v1/jobs/0123/stream"
KEY = "0123456789ab"


def test_ticket_is_valid_for_its_path_for_a_minute() -> None:
    ticket = SIGNER.issue(KEY, PATH, NOW)
    assert ticket.expires_at == NOW + VALIDITY
    assert KEY not in repr(ticket)
    assert SIGNER.key_id(ticket.text, PATH, NOW) == KEY
    assert SIGNER.key_id(ticket.text, PATH, ticket.expires_at - timedelta(seconds=1)) == KEY
    assert SIGNER.key_id(ticket.text, PATH, ticket.expires_at) is None
    assert SIGNER.key_id(ticket.text, PATH + "x", NOW) is None
    assert TicketSigner(b"t" * 32).key_id(ticket.text, PATH, NOW) is None


@pytest.mark.parametrize("field", range(3))
def test_changed_ticket_is_refused(field: int) -> None:
    parts = SIGNER.issue(KEY, PATH, NOW).text.removeprefix("gtk_").split(".")
    parts[field] = ("0123456789ac", "99999999999", "0" * 32)[field]
    assert SIGNER.key_id("gtk_" + ".".join(parts), PATH, NOW) is None


@pytest.mark.parametrize("text", ["", "gtk_", "gtk_-..", "gtk_-.9999999999999.0", "é", "\n" * 9])
def test_invalid_ticket_is_refused(text: str) -> None:
    assert SIGNER.key_id(text, PATH, NOW) is None
