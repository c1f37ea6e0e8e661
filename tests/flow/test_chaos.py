"""A short storm of faults; `make chaos` is the long one."""

import random
from pathlib import Path

import pytest

from compose.emulators import RunningEmulators
from tests.chaos.experiment import ChaosStack, Experiment, Outcome
from tests.support.emulators import free_addresses, own_corner, running_emulators

SECONDS = 12.0


def storm(
    stack: ChaosStack, seed: int, emulators: RunningEmulators | None, uploads_a_second: float
) -> Outcome:
    print(f"faults drawn from seed {seed}")
    experiment = Experiment(
        stack,
        SECONDS,
        seed,
        lambda phase, share: print(phase),
        emulators,
        uploads_a_second,
    )
    return experiment.run()


def assert_kept(outcome: Outcome) -> None:
    """Nothing lost, nothing twice, nothing changed after its end, no 5xx other than 503."""
    assert not outcome.lost
    assert not outcome.duplicates
    assert not outcome.changed
    assert not outcome.stuck
    assert not outcome.wrong
    assert outcome.accepted >= 3  # the emulators are down most of the time
    assert sum(outcome.injected.values()) > 3


@pytest.mark.timeout(500)
def test_the_embedded_backend_survives_a_storm(tmp_path: Path, colour_bundle: Path) -> None:
    seed = random.randrange(10**6)
    assert_kept(storm(ChaosStack(tmp_path, colour_bundle, seed), seed, None, 20.0))


@pytest.mark.timeout(500)
def test_the_emulators_survive_a_storm(tmp_path: Path, colour_bundle: Path) -> None:
    seed = random.randrange(10**6)
    corner = own_corner(free_addresses())
    addresses = {name: value for name, value in corner.items() if name.endswith("_HOST")}
    with running_emulators(tmp_path / "emulators", addresses) as emulators:
        stack = ChaosStack(tmp_path / "stack", colour_bundle, seed, **corner)
        assert_kept(storm(stack, seed, emulators, 6.0))
