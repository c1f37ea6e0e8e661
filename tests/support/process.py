"""`python -m tests.support.process MODULE`: run a module of Glimpse with other constants.

Some constants are times that no user has a reason to change, but that a test of processes cannot
wait for. `with_constants` gives the variable that changes them.
"""

import importlib
import json
import os
import runpy
import sys

VARIABLE = "TEST_CONSTANTS"
# The module of each. Nothing that it imports copies the constant.
MODULES = {
    "KEY_CACHE_SECONDS": "core.domain.api_keys",
    "MIN_ACK_DEADLINE": "core.domain.policy",
    "MIN_UPLOAD_BYTES_PER_SECOND": "app.uploads.limiter",
    "SHUTDOWN_SECONDS": "core.domain.policy",
    "STALE_SECONDS": "core.domain.policy",
}


def with_constants(**constants: float) -> dict[str, str]:
    """Environment variables for a process, or for a `Stack`, in which the constants differ."""
    assert constants.keys() <= MODULES.keys()
    return {VARIABLE: json.dumps(constants)}


def change_constants() -> None:
    """Change the constants that the environment names, before other modules import them."""
    for name, value in json.loads(os.environ.get(VARIABLE, "{}")).items():
        module = importlib.import_module(MODULES[name])
        assert hasattr(module, name)
        setattr(module, name, value)


if __name__ == "__main__":
    change_constants()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
