"""HEIC needs a decoder that is not installed by default.

The wheels of `pillow-heif` contain x265, whose licence is GPL-2.0. Operators may accept it, or
build `pillow-heif` against their system's libheif (docs/pictures.md).
"""

from functools import cache
from importlib.util import find_spec

HEIC = "image/heic"


@cache
def heic_decoder_installed() -> bool:
    """Whether `pillow_heif` can be imported. Does not import it."""
    return find_spec("pillow_heif") is not None


def register_heic_decoder() -> bool:
    """Let Pillow open HEIC files. Returns False if the decoder is not installed."""
    if not heic_decoder_installed():
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False, decode_threads=1)
    return True
