"""The seed of tests that draw their inputs or moments.

Every run of the suite draws the same, so that a change fails for what it does and not by chance.
`make chaos` and `make abuse` draw other seeds, and `GLIMPSE_SEED=random make test` does, too.
"""

import os
import random

VARIABLE = "GLIMPSE_SEED"  # a number, or `random`
DEFAULT = 20261130


def drawn_seed(what: str) -> int:
    """Return the seed of this run, and print it for the report of a test that fails."""
    value = os.environ.get(VARIABLE, str(DEFAULT))
    seed = random.randrange(10**6) if value == "random" else int(value)
    print(f"{what} drawn from seed {seed}; {VARIABLE}={seed} draws the same")
    return seed
