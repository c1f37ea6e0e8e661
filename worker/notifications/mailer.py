"""Sends e-mail over SMTP: one connection for each message, with a timeout."""

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
from core.hosts import is_loopback
from core.outbound.mail_server import MailServer

log = structlog.get_logger(__name__)

SECONDS = 20.0  # time limit for a message, from the connection to the server's last reply
QUIT_SECONDS = 1.0


class EmailRefused(GlimpseError):
    """The server refuses this message permanently."""

    code, title = "email_refused", "E-mail refused"


class Mailer:
    """Sends over one server. `tls` has the trusted certificates; None means the system's."""

    def __init__(
        self,
        server: MailServer,
        greeting: str,
        tls: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self._server = server
        self._greeting = greeting  # the host name of EHLO
        self._tls = tls
        self._seconds = seconds

    async def send(self, message: EmailMessage) -> None:
        """Return when the server has accepted the message.

        Raises EmailRefused for a permanent refusal, and Unavailable if a retry may succeed.
        """
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
            raise _refusal(error.recipients[0]) from error
        except (SMTPRecipientRefused, SMTPSenderRefused, SMTPDataError) as error:
            raise _refusal(error) from error
        except (SMTPException, OSError) as error:  # OSError includes TimeoutError and TLS errors
            log.warning("mail server failed", reason=f"{type(error).__name__}: {error}")
            raise Unavailable("The mail server did not accept the message.") from error
        finally:
            client.close()

    async def _log_in(self, client: aiosmtplib.SMTP) -> None:
        server = self._server
        if not server.user:
            return
        if client.get_transport_info("sslcontext") is None and not is_loopback(server.host):
            # An attacker in the network can remove the offer of STARTTLS.
            log.error("password not sent because the mail server offers no TLS", host=server.host)
            raise Unavailable("The mail server offers no TLS.")
        await client.login(server.user, server.password)


async def _quit(client: aiosmtplib.SMTP) -> None:
    """End the session. The server has accepted the message, so errors no longer matter."""
    try:
        await client.quit(timeout=QUIT_SECONDS)
    except (SMTPException, OSError) as error:
        log.debug("mail server did not confirm QUIT", reason=type(error).__name__)


def _refusal(
    error: SMTPRecipientRefused | SMTPSenderRefused | SMTPDataError,
) -> EmailRefused | Unavailable:
    """A reply of 4xx is transient, 5xx is permanent (RFC 5321, 4.2.1)."""
    reply = " ".join(error.message.split())[:200]
    if error.code >= 500:
        return EmailRefused(f"The mail server answered {error.code}: {reply}")
    log.warning("mail server deferred the message", code=error.code, reply=reply)
    return Unavailable(f"The mail server answered {error.code}.")
