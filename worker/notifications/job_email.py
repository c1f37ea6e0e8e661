"""The e-mail about a job that has ended: short, as text and as HTML, without remote content.

`Message-ID` and `Date` come from the job, so that a repeated message is the same message.
"""

from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from html import escape

from core.clock import rfc3339
from core.domain.job_document import job_path, page_path
from core.domain.jobs import Job, JobStatus
from core.outbound.mail_address import domain_of

_ENDED = {
    JobStatus.COMPLETED: "is complete",
    JobStatus.FAILED: "could not be run",
    JobStatus.CANCELLED: "was cancelled",
}
_COLOURS = {
    JobStatus.COMPLETED: "#1a7f37",
    JobStatus.FAILED: "#b3261e",
    JobStatus.CANCELLED: "#6b6b6b",
}
_REASON = "You receive this because the job was created with your address."


def job_email(
    job: Job, event: str, sender: str, public_url: str, *, page: bool = True
) -> EmailMessage:
    """The message to `job.notify_email`, from `sender` (EMAIL_FROM).

    With a `public_url` it links to the job's page, or to its results if there is no `page`.
    """
    name, address = parseaddr(sender)
    domain = domain_of(address)
    rows = _rows(job)
    path = page_path(job.key.id) if page else f"{job_path(job.key.id)}/results"
    link = f"{public_url}{path}" if public_url else ""
    message = EmailMessage(policy=SMTP)
    message["Subject"] = f"Glimpse: your job {_ENDED[job.status]}, {_summary(job)}"
    message["From"] = Address(display_name=name, addr_spec=address)
    message["To"] = Address(addr_spec=job.notify_email)
    message["Date"] = format_datetime(job.completed_at or job.updated_at)
    message["Message-ID"] = f"<{job.key.id}.{event}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: suppresses automatic replies
    message.set_content(_text(job, rows, link))
    message.add_alternative(_html(job, rows, link), subtype="html")
    return message


def _summary(job: Job) -> str:
    counts = job.counts
    return f"{counts.succeeded:,} of {counts.total:,} {_images(counts.total)} classified"


def _images(number: int) -> str:
    return "image" if number == 1 else "images"


def _rows(job: Job) -> list[tuple[str, str]]:
    counts = job.counts
    rows = [("Name", job.name)] if job.name else []
    rows += [("Images", f"{counts.total:,}"), ("Classified", f"{counts.succeeded:,}")]
    if counts.failed:
        rows.append(("Failed", f"{counts.failed:,}"))
    if job.cancelled_items:
        rows.append(("Not begun", f"{job.cancelled_items:,}"))
    if job.started_at and job.completed_at:
        rows.append(("Time", _duration((job.completed_at - job.started_at).total_seconds())))
    rows.append(("Ended", rfc3339(job.completed_at or job.updated_at)))
    return rows


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _text(job: Job, rows: list[tuple[str, str]], link: str) -> str:
    width = max(len(name) for name, _ in rows)
    lines = [f"Your job {_ENDED[job.status]}.", ""]
    if job.error is not None:
        lines += [" ".join(job.error.detail.split()), ""]
    lines += [f"  {name:<{width}}  {value}" for name, value in rows]
    lines += ["", f"Job {job.key.id}"]
    if link:
        lines += [f"Results: {link}"]
    return "\n".join([*lines, "", "-- ", _REASON, ""])


def _html(job: Job, rows: list[tuple[str, str]], link: str) -> str:
    cell = "padding:6px 0;border-bottom:1px solid #ddd"
    table = "\n".join(
        f'<tr><td style="{cell};opacity:.7">{escape(name)}</td>'
        f'<td style="{cell};text-align:right">{escape(value)}</td></tr>'
        for name, value in rows
    )
    error = "" if job.error is None else f"<p>{escape(job.error.detail)}</p>"
    button = (
        f'<p><a href="{escape(link)}" style="display:inline-block;padding:10px 18px;'
        'border-radius:6px;background:#1f4fd8;color:#fff;text-decoration:none">See the results'
        "</a></p>"
        if link
        else ""
    )
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Glimpse</title>
</head>
<body style="margin:0;padding:24px;font:16px/1.5 system-ui,sans-serif">
<div style="max-width:480px;margin:0 auto">
<h1 style="font-size:20px;color:{_COLOURS[job.status]}">Your job {_ENDED[job.status]}</h1>
{error}
<table role="presentation" style="width:100%;border-collapse:collapse;margin:16px 0">
{table}
</table>
{button}
<p style="font-size:13px;opacity:.7">Job {escape(job.key.id)}<br>{escape(_REASON)}</p>
</div>
</body>
</html>
"""
