"""Parts of OpenAPI for jobs."""

from core.domain.messages import JOB_ID

JOB_ID_PARAMETER = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{JOB_ID.pattern}$"},
}
