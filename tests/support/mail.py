"""A real SMTP server in this process, whose responses a test sets."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

# Iterations of the loop in which an aborted transport and that of the client close, possibly with
# TLS. A number of iterations, because a slow machine makes few of them in any time.
CLOSING_TURNS = 20


@dataclass
class Mailbox:
    """The messages that the server received, and its responses to RCPT and DATA."""

    messages: list[EmailMessage] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    on_recipient: str = "250 OK"
    on_data: str = "250 OK"

    async def handle_RCPT(  # noqa: N802 - the name that aiosmtpd calls
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.on_recipient.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.on_recipient

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if self.on_data.startswith("250"):
            assert isinstance(envelope.content, bytes)
            message = message_from_bytes(envelope.content, policy=policy.SMTP)
            assert isinstance(message, EmailMessage)
            self.messages.append(message)
            self.encrypted.append(session.ssl is not None)
        return self.on_data

    def authenticate(self, server: SMTP, session: Any, envelope: Any, how: str, data: Any) -> Any:
        if not isinstance(data, LoginPassword):
            return AuthResult(success=False, handled=False)
        self.logins.append((data.login, data.password))
        # Not `handled`: the server responds, also to a wrong password.
        return AuthResult(success=data.password == b"correct horse", handled=False)


@contextlib.asynccontextmanager
async def mail_server(
    mailbox: Mailbox, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[int]:
    """A server on a free port of 127.0.0.1. Gives the port. `tls`: from the start."""
    loop = asyncio.get_running_loop()
    served: list[SMTP] = []

    def serve() -> SMTP:
        server = SMTP(
            mailbox,
            hostname="mail.example.com",
            ident="test",
            loop=loop,
            authenticator=mailbox.authenticate,
            **options,
        )
        served.append(server)
        return server

    server = await loop.create_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for each in served:
            if isinstance(each.transport, asyncio.Transport):
                # Python 3.11.2 raises it if a TLS connection is already closed.
                with contextlib.suppress(AttributeError):
                    each.transport.abort()
        await server.wait_closed()
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)
