"""A few hundred hostile images through real processes; `make abuse` sends thousands (P4, P7)."""

from pathlib import Path

import pytest

from tests.abuse.experiment import SETTINGS, Abuse
from tests.abuse.hostile import hostile_images
from tests.abuse.odd import odd_pictures
from tests.abuse.viewer import compare
from tests.support.seeds import drawn_seed
from tests.support.stack import Stack

INPUTS = 240


@pytest.mark.timeout(400)
def test_hostile_images_are_refused_or_end(tmp_path: Path, colour_bundle: Path) -> None:
    seed = drawn_seed("images")
    with Stack(tmp_path, colour_bundle, **SETTINGS) as stack:
        outcome = Abuse(stack).run(hostile_images(INPUTS, seed))
    assert outcome.wrong == []
    assert outcome.server_errors == 0
    assert outcome.inputs > INPUTS * 0.9  # duplicates, because some damage has no effect
    assert len(outcome.families) == 11
    # Some are refused and some accepted. Otherwise this would test little.
    assert outcome.refused.total() > INPUTS / 10
    assert outcome.ended["success"] > INPUTS / 20
    assert outcome.ended["error undecodable_image"] > INPUTS / 20


@pytest.mark.timeout(400)
def test_odd_pictures_are_seen_as_a_viewer_shows_them(tmp_path: Path, colour_bundle: Path) -> None:
    # It uploads one picture after the other.
    with Stack(tmp_path, colour_bundle, **{**SETTINGS, "WORKER_CONCURRENCY": 1}) as stack:
        outcome = compare(stack, odd_pictures())
    assert outcome.wrong == []
    assert outcome.seen > 90 and outcome.refused > 20
