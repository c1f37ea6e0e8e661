"""Makes thumbnails: small WebP images without metadata.

All functions block and run in a classifier process.
"""

import io

from PIL import Image

MAX_SIDE = 256  # pixels
QUALITY = 75
# Of libwebp's efforts from 0 to 6 the fastest. The next one takes twice the time and saves 5 %.
EFFORT = 0


def reduced_to_thumbnail(image: Image.Image) -> Image.Image:
    """`image` with at most `MAX_SIDE` pixels a side. It is not enlarged."""
    scale = min(1.0, MAX_SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def encoded_thumbnail(image: Image.Image) -> bytes:
    """An RGB image as WebP. Pillow writes metadata only on request, so there is none."""
    output = io.BytesIO()
    image.save(output, "WEBP", quality=QUALITY, method=EFFORT)
    return output.getvalue()
