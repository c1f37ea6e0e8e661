"""Which lines of the log the terminal of `make run` shows."""

import pytest

from compose.terminal import shortened

AT = "2026-11-30T15:18:55.377843Z"
HASH = "4d0169c5aee1e7aa69698d7465766522f455c85a521f484bb29876453e8b3b1a"


def test_classified_image_is_one_short_line() -> None:
    line = (
        f"{AT} [info     ] classified                     attempt=1 image_hash={HASH} "
        "label='Egyptian cat' milliseconds=33.9 tenant=public trace=6ef62c041f12"
    )
    assert shortened(line) == "4d0169c5aee1 Egyptian cat, 33.9 ms"
    quoted = line.replace("'Egyptian cat'", '"jack-o\'-lantern"')
    assert shortened(quoted) == "4d0169c5aee1 jack-o'-lantern, 33.9 ms"


@pytest.mark.parametrize(
    "line",
    [
        f"{AT} [info     ] accepted                       bytes=27255 image_hash={HASH}",
        f"{AT} [info     ] request                        method=POST path=/what/slow status=200",
        f"{AT} [info     ] request refused                code=unsupported_image status=415",
        f"{AT} [audit    ] prediction tenant=public key= image_hash={HASH} status=success",
        f"{AT} [info     ] Application startup complete.",
        f"{AT} [info     ] Uvicorn running on http://127.0.0.1:8080 (Press CTRL+C to quit)",
    ],
)
def test_routine_is_not_shown(line: str) -> None:
    assert shortened(line) is None


@pytest.mark.parametrize(
    "line",
    [
        f"{AT} [warning  ] request                        path=/x status=500",
        f"{AT} [error    ] dead letter                    image_hash={HASH} reason='HTTP 500'",
        f"{AT} [info     ] model loaded                   milliseconds=1401 model=m@1",
        f"{AT} [info     ] worker reachable again",
        "ready: http://127.0.0.1:8080 is the page",
        "Traceback (most recent call last):",
        "  request",
        "",
    ],
)
def test_other_lines_are_shown_in_full(line: str) -> None:
    assert shortened(line) == line
