"""A short chaos experiment. `make chaos` runs a long one."""

from pathlib import Path

import pytest

from tests.chaos.experiment import LEAST_ACCEPTED, LEAST_FAULTS, Experiment, prepared
from tests.support.seeds import drawn_seed

SECONDS = 8.0


@pytest.mark.timeout(500)
@pytest.mark.parametrize("backend", ["embedded", "emulator"])
def test_accepted_images_survive_faults(tmp_path: Path, colour_bundle: Path, backend: str) -> None:
    """Nothing is lost, repeated or changed after its end, and no 5xx occurs other than 503."""
    seed = drawn_seed("faults")
    with prepared(backend, tmp_path, colour_bundle, seed) as (stack, emulators, rate):

        def show(phase: str, share: float) -> None:
            print(phase)

        outcome = Experiment(stack, SECONDS, seed, show, emulators, rate).run()
    assert not outcome.lost
    assert not outcome.duplicates
    assert not outcome.changed
    assert not outcome.stuck
    assert not outcome.wrong
    assert outcome.accepted >= LEAST_ACCEPTED  # the emulators are stopped most of the time
    assert outcome.injected.total() >= LEAST_FAULTS
