"""Turns an encoded image into the network's input: decode, apply orientation, resize, normalise.

All functions block and run in a classifier process.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from core.bundles.bundle import BundleManifest
from core.errors import BundleError, InvalidImage, UndecodableImage
from core.imaging.avif_header import is_avif
from core.imaging.bounded_reader import BoundedReader
from core.imaging.limits import MAX_TEXT_CHUNK, check_sides
from worker.inference.thumbnail import encoded_thumbnail, reduced_to_thumbnail

# The setting replaces Pillow's own limit.
Image.MAX_IMAGE_PIXELS = None
# Classifier processes already use every core, and each thread of the decoder needs memory.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT_CHUNK

# Importing these plugins registers them, so that Pillow does not import all forty for a WebP.
_FORMATS: Final = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        AvifImagePlugin.AvifImageFile,
    )
)

_RESAMPLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# The operation that undoes each EXIF orientation: https://exiftool.org/TagNames/EXIF.html, 0x0112.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES: Final = frozenset({5, 6, 7, 8})
# Orientations that reverse a stored axis. The spare pixel of an odd margin changes sides with it.
_REVERSES_X: Final = frozenset({2, 3, 7, 8})
_REVERSES_Y: Final = frozenset({3, 4, 6, 7})

# The reads that decoding one image may take. A PNG chunk takes three or four, and a PNG of 10 MB in
# chunks of 1 kB is valid.
_MAX_READS: Final = 60_000

# Fast reductions (JPEG's scaled decoding, box averaging) stop at this multiple of the final size.
# The manifest's filter does the rest, so that the result stays close to a plain resize.
_REDUCING_GAP: Final = 2.0

# The memory that decoding an image may allocate, in bytes: a part for each pixel that the header
# declares, and a part for parsing. A decoder can be led to use more: an AVIF that declares 64 x 64
# pixels may be coded in 16,000 x 16,000. Measured with images of 50 megapixels, the most expensive
# valid ones take 17.4 bytes a pixel (AVIF, 10 bits, 4:4:4, with alpha, as a grid) and 16.3 (WebP).
_BYTES_PER_PIXEL: Final = 20
_PARSING_BYTES: Final = 96 * 2**20

MemoryLimit = Callable[[int], contextlib.AbstractContextManager[None]]
# The image as the network sees it, and the thumbnail, both upright and in RGB.
Pictures = tuple[Image.Image, Image.Image | None]


def no_memory_limit(size: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


class Preprocessor:
    """Applies one manifest's preprocessing. Stateless."""

    def __init__(
        self,
        manifest: BundleManifest,
        max_pixels: int,
        memory_limit: MemoryLimit = no_memory_limit,
    ) -> None:
        """`max_pixels` is width times height. `memory_limit` bounds what decoding allocates.

        Raises BundleError if the manifest's rules contradict each other.
        """
        rule, spec = manifest.resize, manifest.input
        if 0 in manifest.std:
            raise BundleError("The manifest's std must not hold a zero.")
        self._short_side: int | None = None
        if rule.method == "crop":
            if rule.short_side is None or rule.short_side < max(spec.height, spec.width):
                raise BundleError("A crop needs a short_side of at least the input's longer side.")
            self._short_side = rule.short_side
        self._width, self._height = spec.width, spec.height
        self._resample = _RESAMPLE[rule.resample]
        # Reducing in two steps changes the result of these filters.
        exact = rule.resample in ("nearest", "box")
        self._reducing_gap = None if exact else _REDUCING_GAP
        self._max_pixels = max_pixels
        self._memory_limit = memory_limit
        # (v * rescale - mean) / std as one multiplication and one addition a value.
        std = np.asarray(manifest.std, np.float64)
        with np.errstate(all="ignore"):  # the result is checked below
            scale = (manifest.rescale / std).astype(np.float32)
            shift = (-np.asarray(manifest.mean, np.float64) / std).astype(np.float32)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise BundleError("The manifest's rescale, mean and std must give finite numbers.")
        self._channels_first = spec.layout == "NCHW"
        shape = (3, 1, 1) if self._channels_first else (1, 1, 3)
        self._scale, self._shift = scale.reshape(shape), shift.reshape(shape)

    def tensor(self, data: bytes) -> NDArray[np.float32]:
        """The tensor of `prepare`."""
        return self.prepare(data)[0]

    def prepare(self, data: bytes, *, thumbnail: bool = False) -> tuple[NDArray[np.float32], bytes]:
        """A batch of one, and the thumbnail, which is empty unless it is asked for.

        The batch is 1 x 3 x height x width, or 1 x height x width x 3 for NHWC. Raises InvalidImage
        if the image exceeds a limit, UndecodableImage if it cannot be decoded.
        """
        picture, small = self._pictures(data, thumbnail)
        pixels = np.asarray(picture)
        if self._channels_first:
            pixels = pixels.transpose(2, 0, 1)
        tensor = np.empty((1, *pixels.shape), np.float32)
        np.multiply(pixels, self._scale, out=tensor[0])
        tensor += self._shift
        return tensor, b"" if small is None else encoded_thumbnail(small)

    def picture(self, data: bytes) -> Image.Image:
        """The image as the network sees it: upright, RGB, of the input's size.

        Raises InvalidImage and UndecodableImage as `prepare` does.
        """
        return self._pictures(data, False)[0]

    def _pictures(self, data: bytes, thumbnail: bool) -> Pictures:
        try:
            with contextlib.ExitStack() as stack:
                # libwebp allocates its canvas here, before its size is known.
                pixels = 0 if is_avif(data) else self._max_pixels
                with self._memory_limit(_PARSING_BYTES + _BYTES_PER_PIXEL * pixels):
                    image = stack.enter_context(_open(data))
                width, height = image.size
                self._check_size(width, height)
                with self._memory_limit(_PARSING_BYTES + _BYTES_PER_PIXEL * width * height):
                    return self._decoded(image, thumbnail)
        except MemoryError:
            raise InvalidImage(
                "Decoding the image takes more memory than its dimensions account for."
            ) from None

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise InvalidImage(
                f"The image is {width} x {height} pixels. "
                f"The limit is {self._max_pixels} in total.",
            )
        check_sides(width, height)

    def _decoded(self, image: Image.Image, thumbnail: bool) -> Pictures:
        # Pillow's parsers raise many types of error for broken files (OSError, SyntaxError,
        # struct.error, zlib.error, ...).
        try:
            if isinstance(image, PngImagePlugin.PngImageFile):
                # Reading EXIF would decode the pixels too, and ignore their errors.
                image.load()
            return self._reduced(image, thumbnail)
        except MemoryError:
            raise
        except Exception as error:
            raise UndecodableImage("The image is damaged or incomplete.") from error

    def _reduced(self, image: Image.Image, thumbnail: bool) -> Pictures:
        """Shrink the image first: turning and converting it are then cheap."""
        orientation = _orientation(image)
        swap = orientation in _SWAPS_SIDES
        target = (self._height, self._width) if swap else (self._width, self._height)
        whole = self._whole(image.size, target)
        size: tuple[float, float] = image.size
        drafted = image.draft(None, (int(whole[0] * _REDUCING_GAP), int(whole[1] * _REDUCING_GAP)))
        if drafted is not None:  # a JPEG; the box excludes its padding of part of a pixel
            size = drafted[1][2:]
        left, top = (whole[0] - target[0]) / 2, (whole[1] - target[1]) / 2
        left = math.ceil(left) if orientation in _REVERSES_X else math.floor(left)
        top = math.ceil(top) if orientation in _REVERSES_Y else math.floor(top)
        x, y = size[0] / whole[0], size[1] / whole[1]
        # A rounding error could put the last pixel outside, which Pillow refuses.
        right, bottom = min((left + target[0]) * x, size[0]), min((top + target[1]) * y, size[1])
        pixels = _resizable(image)
        reduced = pixels.resize(
            target,
            self._resample,
            box=(left * x, top * y, right, bottom),
            reducing_gap=self._reducing_gap,
        )
        small = reduced_to_thumbnail(pixels) if thumbnail else None
        return _upright(reduced, orientation), small and _upright(small, orientation)

    def _whole(self, size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
        """The size of the whole image at the scale at which `target` is its centre."""
        if self._short_side is None:
            return target
        # torchvision and transformers also round the longer side down.
        width, height = size
        if width <= height:
            return self._short_side, int(self._short_side * height / width)
        return int(self._short_side * width / height), self._short_side


def _upright(reduced: Image.Image, orientation: int) -> Image.Image:
    """The image in RGB, turned as its EXIF orientation says."""
    reduced = _on_white(reduced)
    return reduced.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else reduced


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BoundedReader(data, _MAX_READS), formats=_FORMATS)
    except MemoryError:
        raise
    except Exception as error:
        raise UndecodableImage("The bytes are not an image that can be read.") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 if it is absent or unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - broken metadata must not cost the image
        return 1


def _resizable(image: Image.Image) -> Image.Image:
    """Decode the image to a mode with 8 bits a channel, whose values can be averaged."""
    if image.mode.startswith(("I", "F")):
        # 16-bit greyscale: Pillow would clip the values at 255. Keep the high byte instead.
        wide = np.asarray(image).clip(0, 65535).astype(np.uint16)
        return Image.fromarray((wide >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode in ("RGB", "L", "CMYK"):
        return image
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB. Transparent pixels become white, as on a web page."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page
