"""Jobs and their results as clients see them: JSON, lines of JSON, and CSV."""

import csv
import io
import json
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from app.images.representation import annotation_documents
from app.jobs.service import ItemResult
from core.domain.job_document import error_document, images, job_path
from core.domain.jobs import ItemState, Job
from core.domain.records import RecordError, Status

RESULT_DELETED = "result_deleted"  # the code of an item whose image was deleted after it succeeded

COLUMNS = (
    *("index", "image_hash", "name", "status", "label", "confidence"),
    *("annotations", "error_code", "error_detail", "metadata"),
)
# What spreadsheets take for the beginning of a formula:
# https://owasp.org/www-community/attacks/CSV_Injection
# Some take `;` for the end of a cell, wherever there are commas, and quotes behind it for the
# cell's own.
_FORMULA = re.compile(r'(^|;"*)(?=[=+\-@\t\r])')
_DELETED = RecordError(RESULT_DELETED, "The image was deleted, and its result with it.", False)


class ItemStatus(StrEnum):
    """How far an image of a job is."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


def accepted_document(job: Job, public_url: str) -> dict[str, Any]:
    """What whoever has created a job is told."""
    path = public_url + job_path(job.key.id)
    return {
        "job_id": job.key.id,
        "status": job.status,
        "message": f"{images(job.counts.total)} accepted: poll poll_url, or listen to stream_url.",
        "poll_url": path,
        "stream_url": f"{path}/stream",
    }


def result_document(job: Job, result: ItemResult) -> dict[str, Any]:
    """One item as it stands; its labels are those of its image."""
    item, record = result.item, result.record
    status, error = _state_of(job, result)
    succeeded = record is not None and status is ItemStatus.SUCCEEDED
    stored = record if record is not None and succeeded else None
    return {
        "index": item.position,
        "image_hash": item.image_hash or None,
        "name": item.name or None,
        "status": status,
        "annotations": annotation_documents(stored.annotations) if stored else [],
        "categories": annotation_documents(stored.categories) if stored else [],
        "confident": stored.confident if stored else None,
        "error": error and error_document(error),
        "metadata": dict(item.metadata),
    }


def json_lines(job: Job, results: Iterable[ItemResult]) -> bytes:
    """One result a line (https://github.com/ndjson/ndjson-spec)."""
    lines = (_compact(result_document(job, each)) + "\n" for each in results)
    return "".join(lines).encode()


def csv_header() -> bytes:
    return _csv([COLUMNS])


def csv_lines(job: Job, results: Iterable[ItemResult]) -> bytes:
    """One result a line (RFC 4180); no text in it is a formula to a spreadsheet."""
    return _csv(_row(result_document(job, each)) for each in results)


def _row(document: dict[str, Any]) -> tuple[object, ...]:
    labels, error = document["annotations"], document["error"] or {}
    best = labels[0] if labels else {}
    return (
        document["index"],
        document["image_hash"],
        _text(document["name"]),
        document["status"],
        _text(best.get("label")),
        best.get("confidence"),
        _json(labels) if labels else "",
        error.get("code"),
        _text(error.get("detail")),
        _json(document["metadata"]) if document["metadata"] else "",
    )


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _text(value: str | None) -> str:
    return _FORMULA.sub(r"\1'", value or "")


def _json(document: object) -> str:
    """The same document without a `;`, which JSON has within strings alone."""
    return _compact(document).replace(";", r"\u003b")


def _state_of(job: Job, result: ItemResult) -> tuple[ItemStatus, RecordError | None]:
    item, record = result.item, result.record
    if item.state is ItemState.FAILED:
        return ItemStatus.FAILED, item.error
    if item.state is ItemState.SUCCEEDED:
        if record is None or record.status is not Status.SUCCESS:
            return ItemStatus.FAILED, _DELETED
        return ItemStatus.SUCCEEDED, None
    if job.status.terminal:
        return ItemStatus.CANCELLED, None
    if record is None:
        return ItemStatus.PENDING, None
    # A record that has ended is about to settle its item.
    return (ItemStatus.RUNNING if record.status.terminal else ItemStatus(record.status)), None


def _compact(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
