"""Headers that every answer carries, so that a browser does nothing with it that nobody meant."""

from core.observability.request_middleware import RawHeaders
from core.settings import Settings

HSTS_SECONDS = 365 * 24 * 3600


def security_headers(settings: Settings) -> RawHeaders:
    """Made once. https://owasp.org/www-project-secure-headers/ explains each of them."""
    headers: RawHeaders = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        # JSON needs nothing; pages of ours bring a policy of their own.
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    )
    if settings.public_url.startswith("https://"):
        headers += ((b"strict-transport-security", b"max-age=%d" % HSTS_SECONDS),)
    return headers
