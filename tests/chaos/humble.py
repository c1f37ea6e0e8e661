"""`python -m tests.chaos.humble MODULE [ARGUMENT...]`: run the module, bound by the modes of files.

Root may write below any folder; without these two capabilities root may not. Where they cannot be
given up, nobody was root. https://man7.org/linux/man-pages/man7/capabilities.7.html
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
    # What was dropped from the bounding set is lost with the next program.
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    main()
