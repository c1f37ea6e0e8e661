"""E-mail over SMTP: refusals, unreachable servers, TLS; its text, addresses and settings."""

import asyncio
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtplib import SMTPAuthenticationError
from pydantic import ValidationError

from core.domain.jobs import Counts, Job, JobKey, JobStatus, new_job
from core.domain.records import RecordError
from core.errors import InvalidRequest, Unavailable
from core.outbound.mail_address import check_address
from core.outbound.mail_server import MailServer
from core.settings import Settings
from tests.support.clock import LoopClock
from tests.support.mail import Mailbox, mail_server
from tests.support.receivers import closed_port, listening
from tests.support.settings import isolated_settings
from worker.notifications.job_email import job_email
from worker.notifications.mailer import EmailRefused, Mailer

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SENDER = "Glimpse <glimpse@example.com>"


def a_job(status: JobStatus = JobStatus.COMPLETED, **changes: Any) -> Job:
    key = JobKey("acme", "0123456789abcdef" * 2)
    job = new_job(key, "", "m@0123456789ab", 1000, NOW, notify_email="ada@example.com")
    values = {
        "status": status,
        "counts": Counts(1000, 990, 10),
        "started_at": NOW,
        "completed_at": NOW + timedelta(seconds=71.25),
        **changes,
    }
    return replace(job, **values)


def a_message() -> EmailMessage:
    return job_email(a_job(), "job.completed", SENDER, "https://glimpse.example.com")


def a_mailer(port: int, seconds: float = 30.0, **changes: Any) -> Mailer:
    server = MailServer(**{"host": "127.0.0.1", "port": port, "tls": False, **changes})
    return Mailer(server, "example.com", seconds=seconds)


async def test_message_arrives_unchanged() -> None:
    mailbox = Mailbox()
    async with mail_server(mailbox) as port:
        await a_mailer(port).send(a_message())
    (message,) = mailbox.messages
    assert message["Subject"] == ("Glimpse: your job is complete, 990 of 1,000 images classified")
    assert message["From"] == SENDER
    assert message["To"] == "ada@example.com"
    assert message["Date"] == "Sat, 21 Nov 2026 09:31:11 +0000"
    assert message["Message-ID"] == "<0123456789abcdef0123456789abcdef.job.completed@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    text, html = (part.get_content() for part in message.iter_parts())
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    for body in (text, html):
        for text_part in ("1,000", "990", "10", "1 min 11 s", "0123456789abcdef0123456789abcdef"):
            assert text_part in body
        assert "https://glimpse.example.com/#/jobs/0123456789abcdef" in body


async def test_repeated_email_has_the_same_message_id_and_date() -> None:
    mailbox = Mailbox()
    async with mail_server(mailbox) as port:
        for _ in range(2):
            await a_mailer(port).send(a_message())
    first, second = mailbox.messages
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Date"] == second["Date"]


@pytest.mark.parametrize(
    ("answers", "failure"),
    [
        ({"on_recipient": "450 mailbox busy"}, Unavailable),
        ({"on_recipient": "550 no such user"}, EmailRefused),
        ({"on_data": "451 local error"}, Unavailable),
        ({"on_data": "554 looks like spam"}, EmailRefused),
    ],
)
async def test_4xx_is_transient_and_5xx_is_permanent(
    answers: dict[str, str], failure: type[Exception]
) -> None:
    mailbox = Mailbox(**answers)  # type: ignore[arg-type]
    async with mail_server(mailbox) as port:
        with pytest.raises(failure) as refused:
            await a_mailer(port).send(a_message())
        assert type(refused.value) is failure
        mailbox.on_recipient = mailbox.on_data = "250 OK"
        await a_mailer(port).send(a_message())
    assert len(mailbox.messages) == 1


async def test_unreachable_silent_and_invalid_servers_are_unavailable() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    with closed_port() as unused, pytest.raises(Unavailable):
        await a_mailer(unused).send(a_message())
    for serve in (silent, rude):
        async with listening(serve) as port:
            with pytest.raises(Unavailable):
                await a_mailer(port, 0.3).send(a_message())


async def test_time_limit_covers_the_whole_session(loop_clock: LoopClock) -> None:
    """Each reply comes in time, and all of them together do not."""
    replies = [
        b"220 hello",
        b"250 hello",
        b"250 OK",
        b"250 OK",
        b"354 go on",
        b"250 OK",
        b"221 bye",
    ]

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await loop_clock.move(10)
            writer.write(reply + b"\r\n")
            await writer.drain()
            await reader.readuntil(b"\r\n.\r\n" if reply.startswith(b"354") else b"\r\n")

    async with listening(slow) as port:
        with pytest.raises(Unavailable):
            await a_mailer(port, 35).send(a_message())


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("from_the_start", [True, False], ids=["tls", "starttls"])
async def test_tls_is_used_if_the_server_offers_it(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, from_the_start: bool
) -> None:
    mailbox = Mailbox()
    # aiosmtpd does not know about TLS from the start.
    options: dict[str, Any] = (
        {"tls": server_tls, "auth_require_tls": False}
        if from_the_start
        else {"tls_context": server_tls}
    )
    async with mail_server(mailbox, **options) as port:
        server = MailServer("127.0.0.1", port, from_the_start, "ada", "correct horse")
        await Mailer(server, "example.com", client_tls, 30).send(a_message())
    assert mailbox.logins == [(b"ada", b"correct horse")]
    assert len(mailbox.messages) == 1
    assert from_the_start or mailbox.encrypted == [True]


async def test_untrusted_certificate_is_refused(
    server_tls: ssl.SSLContext,
) -> None:
    mailbox = Mailbox()
    async with mail_server(mailbox, tls_context=server_tls) as port:
        with pytest.raises(Unavailable):
            await a_mailer(port).send(a_message())
    assert mailbox.messages == []


async def test_wrong_password_is_unavailable() -> None:
    mailbox = Mailbox()
    async with mail_server(mailbox, auth_require_tls=False) as port:
        with pytest.raises(Unavailable) as refused:
            await a_mailer(port, user="ada", password="wrong").send(a_message())
    assert isinstance(refused.value.__cause__, SMTPAuthenticationError)
    assert mailbox.logins and mailbox.messages == []


async def test_password_is_not_sent_in_plain_text_over_a_network() -> None:
    """On this machine it is sent. 0.0.0.0 counts as another machine."""
    mailbox = Mailbox()
    async with mail_server(mailbox, auth_require_tls=False) as port:
        await a_mailer(port, user="ada", password="correct horse").send(a_message())
        assert len(mailbox.logins) == 1
        elsewhere: dict[str, Any] = {"host": "0.0.0.0", "user": "ada", "password": "correct horse"}
        with pytest.raises(Unavailable, match="TLS"):
            await a_mailer(port, **elsewhere).send(a_message())
    assert len(mailbox.logins) == len(mailbox.messages) == 1


# --- Content --------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Records the tags of a document, and checks that each one is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = "<script>alert('&\"')</script>\r\nBcc: eve@example.com"


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_email_escapes_the_texts_of_the_job(status: JobStatus) -> None:
    job = a_job(status, error=RecordError("x", HOSTILE, False), name="<b>Summer</b>")
    message = job_email(job, f"job.{status}", SENDER, "https://g.example/<b>\"'&")
    text, html = (part.get_content() for part in message.iter_parts())
    assert "<script" not in html and "<b>" not in html
    assert "&lt;b&gt;Summer&lt;/b&gt;" in html and "<b>Summer</b>" in text
    assert set(Tags(html).seen) <= {
        *("html", "head", "meta", "title", "body", "div", "h1", "table", "tr", "td", "p", "a", "br")
    }
    assert "src=" not in html and "url(" not in html, "nothing is loaded from anywhere"
    assert message["Bcc"] is None and "\nBcc" not in text
    assert f"{status}" in message["Message-ID"]


def test_email_about_a_job_that_never_started() -> None:
    job = a_job(JobStatus.CANCELLED, counts=Counts(1), started_at=None)
    message = job_email(job, "job.cancelled", "glimpse@example.com", "")
    text = message.get_body(("plain",)).get_content()  # type: ignore[union-attr]
    assert "was cancelled" in text and "Not begun" in text and "Results" not in text
    assert message["Subject"].endswith("0 of 1 image classified")


@pytest.mark.parametrize(
    ("page", "path"), [(True, "/#/jobs/{}"), (False, "/api/v1/jobs/{}/results")]
)
def test_email_links_to_the_page_of_the_job_if_there_is_one(page: bool, path: str) -> None:
    job = a_job()
    message = job_email(job, "job.completed", SENDER, "https://g.example", page=page)
    link = "https://g.example" + path.format(job.key.id)
    text, html = (part.get_content() for part in message.iter_parts())
    assert f"Results: {link}\n" in text and f'href="{link}"' in html


# --- Settings and addresses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@@example.com",
        "a b@example.com",
        "ada@exa mple.com",
        "ada@example.com\r\nBcc: eve@example.com",
        "Ada <ada@example.com>",
        "ada@example.com,b@c.de",
        "é@example.com",
        "ada@-example.com",
        "ada@[127.0.0.1]",
        "a" * 65 + "@example.com",
        "ada@" + "a." * 130 + "com",
        ".ada@example.com",
        "ada@example.com\n",
    ],
)
def test_address_that_is_not_plain_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest):
        check_address(address, {"*"})


def test_address_must_be_in_an_allowed_domain() -> None:
    check_address("ada@EXAMPLE.com", {"example.com"})
    check_address("ada@anywhere.example", {"*"})
    for address, domains in (
        ("ada@example.org", {"example.com"}),
        ("ada@sub.example.com", {"example.com"}),
        ("ada@example.com", set()),
    ):
        with pytest.raises(InvalidRequest):
            check_address(address, domains)


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return isolated_settings(data_dir=tmp_path, **changes)


def test_default_domain_is_that_of_the_sender(tmp_path: Path) -> None:
    assert settings(tmp_path).email_domains == frozenset()
    here = {"smtp_url": "smtp://mail.example.com", "email_from": SENDER}
    assert settings(tmp_path, **here).email_domains == {"example.com"}
    named = settings(tmp_path, **here, email_allowed_domains="A.example, b.example")
    assert named.email_domains == {"a.example", "b.example"}


@pytest.mark.parametrize(
    "url",
    [
        "mail.example.com",
        "http://mail.example.com",
        "smtp://",
        "smtp://mail:x",
        "smtp://mail/inbox",
        "smtp://:secret-of-ours@/",
        "smtp://u:secret-of-ours@mail?x=y",
    ],
)
def test_error_for_an_invalid_mail_server_omits_its_url(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="SMTP_URL") as wrong:
        settings(tmp_path, smtp_url=url, email_from=SENDER)
    assert "secret-of-ours" not in str(wrong.value)


def test_mail_server_requires_a_sender(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="EMAIL_FROM"):
        settings(tmp_path, smtp_url="smtp://mail.example.com")


def test_mail_server_is_parsed_from_its_url() -> None:
    server = MailServer.parse("smtps://ada%40example.com:p%3Aw%2F@mail.example.com")
    assert server == MailServer("mail.example.com", 465, True, "ada@example.com", "p:w/")
    assert MailServer.parse("smtp://mail") == MailServer("mail", 587, False)
    assert "p:w/" not in repr(server)


def test_email_from_needs_smtp_url_except_on_google_cloud(tmp_path: Path) -> None:
    """There, only the service that sends e-mail can read SMTP_URL. The API checks addresses."""
    with pytest.raises(ValidationError, match="EMAIL_FROM needs SMTP_URL"):
        settings(tmp_path, email_from=SENDER)
    gcp = Settings(
        _env_file=None,
        backend="gcp",
        bucket="example-bucket",
        push_audience="a",
        push_service_account="b",
        email_from=SENDER,
    )
    assert gcp.email_domains == {"example.com"}
