"""Jobs and items as JSON texts, for stores that keep them in that form."""

from functools import lru_cache

from pydantic import TypeAdapter

from core.domain.jobs import Job, JobItem

_JOB, _ITEM = TypeAdapter(Job), TypeAdapter(JobItem)


def text_of_job(job: Job) -> str:
    return _JOB.dump_json(job).decode()


# A worker reads the same text for most items of a job. A job is immutable.
@lru_cache(maxsize=64)
def job_of_text(text: str) -> Job:
    """The inverse of `text_of_job`."""
    return _JOB.validate_json(text)


def text_of_item(item: JobItem) -> str:
    return _ITEM.dump_json(item).decode()


def item_of_text(text: str) -> JobItem:
    """The inverse of `text_of_item`."""
    return _ITEM.validate_json(text)
