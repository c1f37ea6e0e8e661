"""Both services respond as their OpenAPI documents describe; `make abuse` runs longer (P7)."""

from pathlib import Path

import pytest

from tests.support.seeds import drawn_seed
from tests.support.stack import Stack

EXAMPLES = 8


@pytest.mark.timeout(300)
def test_every_response_is_as_documented(tmp_path: Path, colour_bundle: Path) -> None:
    from tests.abuse import schema  # here: each test worker would import schemathesis (0.5 s)

    seed = drawn_seed("requests")
    with Stack(tmp_path, colour_bundle) as stack:
        for service in schema.SERVICES:
            outcome = schema.attack(stack, service, EXAMPLES, seed)
            assert outcome.wrong == []
            assert outcome.requests >= 20
            assert outcome.operations >= 5
            assert {200, 204} <= outcome.statuses.keys()
