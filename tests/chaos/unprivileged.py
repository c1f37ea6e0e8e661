"""`python -m tests.chaos.unprivileged MODULE [ARGUMENT...]`: run a module that obeys file modes.

Root can write to any folder. Without two capabilities it cannot. A process that cannot drop them
was not root. https://man7.org/linux/man-pages/man7/capabilities.7.html
"""

import ctypes
import os
import sys

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def main() -> None:
    prctl = ctypes.CDLL(None).prctl
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    # The next program loses the capabilities that are not in the bounding set.
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    main()
