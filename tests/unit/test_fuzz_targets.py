"""What fuzzing begins with, and simple damage to it, without the fuzzer (P7)."""

import pytest

from tests.fuzz.__main__ import TARGETS as NAMES
from tests.fuzz.seeds import replayed, seeds
from tests.fuzz.targets import TARGETS


def test_every_target_is_fuzzed() -> None:
    assert tuple(TARGETS) == NAMES


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow tells of the damage
@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_breaks_nothing(target: str) -> None:
    inputs = replayed(target)
    assert len(inputs) > 200
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_small(target: str) -> None:
    assert sum(map(len, seeds(target))) < 200_000
