"""A real SMTP server in this process, which says what a test wants it to say."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

# Turns of the loop in which a transport that was aborted closes, and the client's with it, which
# may have TLS in between. Not a time: a slow machine makes few turns in any.
CLOSING_TURNS = 20


@dataclass
class Mailbox:
    """What the server took in, and what it answers to RCPT and DATA."""

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
        # Not `handled`: nobody but the server answers, also where the password is wrong.
        return AuthResult(success=data.password == b"correct horse", handled=False)


@contextlib.asynccontextmanager
async def mail_server(
    mailbox: Mailbox, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[int]:
    """A server on a free port of 127.0.0.1; the port. With `tls` it speaks that from the start."""
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
                # Python 3.11.2 raises it where a TLS connection is closed already.
                with contextlib.suppress(AttributeError):
                    each.transport.abort()
        await server.wait_closed()
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)
