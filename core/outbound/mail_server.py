"""The mail server that SMTP_URL names."""

from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

SUBMISSION, SUBMISSIONS = 587, 465  # RFC 6409, RFC 8314


@dataclass(frozen=True, slots=True)
class MailServer:
    """`tls` means TLS from the start; otherwise the client uses STARTTLS if it is offered."""

    host: str
    port: int
    tls: bool
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """From `smtp://user:password@host:port` or `smtps://…`; user and password URL-encoded.

        Raises ValueError. Its message does not contain the URL, which may contain a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("SMTP_URL is not a URL") from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise ValueError("SMTP_URL must have the form smtp://host:port or smtps://host:port")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("SMTP_URL must end after the port")
        tls = parts.scheme == "smtps"
        return cls(
            host=parts.hostname,
            port=port or (SUBMISSIONS if tls else SUBMISSION),
            tls=tls,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
        )
