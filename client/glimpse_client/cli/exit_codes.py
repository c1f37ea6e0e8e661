"""Exit codes of `glimpse`. They are stable: scripts may rely on them."""

from glimpse_client.errors import (
    ApiError,
    ConnectionFailed,
    Forbidden,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    Unauthenticated,
)

OK = 0
SOME_FAILED = 1
USAGE = 2
NOT_FOUND = 3
NOT_ALLOWED = 4
REFUSED = 5
UNREACHABLE = 6
INTERRUPTED = 130


def exit_code(error: Exception) -> int:
    """The exit code for an error of the client."""
    if isinstance(error, ConnectionFailed):
        return UNREACHABLE
    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, Unauthenticated | Forbidden):
        return NOT_ALLOWED
    if isinstance(error, RateLimited | ServiceUnavailable):
        return REFUSED
    if isinstance(error, ApiError):
        return USAGE
    return SOME_FAILED
