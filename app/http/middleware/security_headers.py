"""Security headers of every response (https://owasp.org/www-project-secure-headers/)."""

from core.observability.request_middleware import RawHeaders
from core.settings import Settings

HSTS_SECONDS = 365 * 24 * 3600


def security_headers(settings: Settings) -> RawHeaders:
    """Return the headers. The middleware adds them to each response."""
    headers: RawHeaders = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        # For JSON. Pages send a policy that replaces this one.
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    )
    if settings.public_url.startswith("https://"):
        headers += ((b"strict-transport-security", b"max-age=%d" % HSTS_SECONDS),)
    return headers
