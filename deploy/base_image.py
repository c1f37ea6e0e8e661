"""Prints the base image of a release, pinned by digest: `python3 -m deploy.base_image`.

A release passes it to the builds as PYTHON_IMAGE. The default of that build argument in
`compose/Dockerfile` is the same tag without a digest, for local builds and other registries.

This module needs only the standard library.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED, DOCKERFILE = Path("compose/base/Dockerfile"), Path("compose/Dockerfile")
_IMAGE = re.compile(r"(?P<tag>[^\s@]+)@sha256:[0-9a-f]{64}")


class Unpinned(Exception):
    """The base image of a release is not pinned, or it is another one than that of local builds."""


def base_image(root: Path = ROOT) -> str:
    """The image as `name:tag@sha256:digest`. Raises Unpinned."""
    found = re.findall(r"^FROM\s+(.+?)\s*$", (root / PINNED).read_text(), re.MULTILINE)
    image = _IMAGE.fullmatch(found[0]) if len(found) == 1 else None
    if image is None:
        raise Unpinned(f"{PINNED} must have one FROM, an image with its digest: {found}")
    local = re.search(r"^ARG PYTHON_IMAGE=(\S+)", (root / DOCKERFILE).read_text(), re.MULTILINE)
    if local is None or local[1].partition("@")[0] != image["tag"]:
        raise Unpinned(
            f"{PINNED} has the tag {image['tag']}, and PYTHON_IMAGE in {DOCKERFILE} is "
            f"{local and local[1]}: change both to one tag"
        )
    return image[0]


def main() -> int:
    """Print the build argument. Exit code 1 if there is no pinned image."""
    try:
        print(f"PYTHON_IMAGE={base_image()}")
    except (OSError, Unpinned) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
