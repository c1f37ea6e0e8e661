"""Sending e-mail over SMTP: one connection a message, within a bound."""

import asyncio
import ssl
from email.message import EmailMessage

import aiosmtplib
import structlog
from aiosmtplib import (
    SMTPDataError,
    SMTPException,
    SMTPRecipientRefused,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
)

from core.errors import GlimpseError, Unavailable
from core.http.exposure import loopback
from core.outbound.mail_server import MailServer

log = structlog.get_logger(__name__)

SECONDS = 20.0  # for one message, from the connection to the server's word that it has it
QUIT_SECONDS = 1.0


class EmailRefused(GlimpseError):
    """The server will never take this message."""

    code, title = "email_refused", "E-mail refused"


class Mailer:
    """Sends over one server. `tls` says whom to trust; None: whom the system trusts."""

    def __init__(
        self,
        server: MailServer,
        greeting: str,
        tls: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self._server = server
        self._greeting = greeting  # the name that we say is ours (EHLO)
        self._tls = tls
        self._seconds = seconds

    async def send(self, message: EmailMessage) -> None:
        """Return once the server has it. Raises EmailRefused for good, Unavailable for now."""
        server = self._server
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            use_tls=server.tls,
            tls_context=self._tls,
            local_hostname=self._greeting,
            timeout=self._seconds,
        )
        try:
            async with asyncio.timeout(self._seconds):
                await client.connect()
                await self._log_in(client)
                await client.send_message(message)
            await _quit(client)
        except SMTPRecipientsRefused as error:
            raise _failure(error.recipients[0]) from error
        except (SMTPRecipientRefused, SMTPSenderRefused, SMTPDataError) as error:
            raise _failure(error) from error
        except (SMTPException, OSError) as error:  # TimeoutError and failures of TLS are of those
            log.warning("mail server failed", reason=f"{type(error).__name__}: {error}")
            raise Unavailable("The mail server does not take the message.") from error
        finally:
            client.close()

    async def _log_in(self, client: aiosmtplib.SMTP) -> None:
        server = self._server
        if not server.user:
            return
        if client.get_transport_info("sslcontext") is None and not loopback(server.host):
            # Somebody in between may have taken the offer of STARTTLS out.
            log.error("password not sent: the mail server offers no TLS", host=server.host)
            raise Unavailable("The mail server offers no TLS.")
        await client.login(server.user, server.password)


async def _quit(client: aiosmtplib.SMTP) -> None:
    """Say goodbye; the server has the message, so nothing that goes wrong now matters."""
    try:
        await client.quit(timeout=QUIT_SECONDS)
    except (SMTPException, OSError) as error:
        log.debug("no goodbye from the mail server", reason=type(error).__name__)


def _failure(
    refusal: SMTPRecipientRefused | SMTPSenderRefused | SMTPDataError,
) -> EmailRefused | Unavailable:
    """4xx may pass, 5xx will not (RFC 5321, 4.2.1)."""
    said = " ".join(refusal.message.split())[:200]
    if refusal.code >= 500:
        return EmailRefused(f"The mail server answered {refusal.code}: {said}")
    log.warning("mail server refused for now", code=refusal.code, said=said)
    return Unavailable(f"The mail server answered {refusal.code}.")
