"""Encoded bytes to the network's input tensor: decode under limits, set upright, resize, normalise.

Everything here blocks and belongs in a classifier process.
"""

import contextlib
import math
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
from core.imaging.avif import check_announced, is_avif_container
from core.imaging.bounded_reader import BoundedReads
from core.imaging.limits import MAX_TEXT_CHUNK, check_sides

# `max_pixels` is the limit, and it is checked here: Pillow's own would contradict the setting.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT_CHUNK

# Naming the plugins registers them, and keeps Pillow from importing all forty on the first WebP.
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

# What undoes each EXIF orientation: https://exiftool.org/TagNames/EXIF.html (tag 0x0112).
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
# Stored axes that then run the other way, so that an odd margin goes to the same side as upright.
_REVERSES_X: Final = frozenset({2, 3, 7, 8})
_REVERSES_Y: Final = frozenset({3, 4, 6, 7})

# Reads that one picture may take. Each chunk of a PNG takes three or four, and ten megabytes in
# chunks of one kilobyte are still an honest file.
_MAX_READS: Final = 60_000

# Cheap reductions (JPEG's scaled decoding, box averaging) stop at this multiple of the final size;
# the manifest's filter does the rest, so that the result stays next to a plain resize.
_REDUCING_GAP: Final = 2.0


class Preprocessor:
    """One manifest's way from encoded bytes to a float32 tensor. Stateless."""

    def __init__(self, manifest: BundleManifest, max_pixels: int) -> None:
        """`max_pixels` is width times height. Raises BundleError for a rule that cannot work."""
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
        # A box average of box averages is not the average of the box, unless their edges meet.
        exact = rule.resample in ("nearest", "box")
        self._reducing_gap = None if exact else _REDUCING_GAP
        self._max_pixels = max_pixels
        # (v * rescale - mean) / std as one multiplication and one addition a value.
        std = np.asarray(manifest.std, np.float64)
        with np.errstate(all="ignore"):  # what comes of it is looked at
            scale = (manifest.rescale / std).astype(np.float32)
            shift = (-np.asarray(manifest.mean, np.float64) / std).astype(np.float32)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise BundleError("The manifest's rescale, mean and std must give finite numbers.")
        self._channels_first = spec.layout == "NCHW"
        shape = (3, 1, 1) if self._channels_first else (1, 1, 3)
        self._scale, self._shift = scale.reshape(shape), shift.reshape(shape)

    def tensor(self, data: bytes) -> NDArray[np.float32]:
        """The batch of one: 1 x 3 x height x width, or 1 x height x width x 3 for NHWC.

        Raises InvalidImage above the pixel limit, UndecodableImage where the bytes fail to decode.
        """
        pixels = np.asarray(self.picture(data))
        if self._channels_first:
            pixels = pixels.transpose(2, 0, 1)
        tensor = np.empty((1, *pixels.shape), np.float32)
        np.multiply(pixels, self._scale, out=tensor[0])
        tensor += self._shift
        return tensor

    def picture(self, data: bytes) -> Image.Image:
        """The picture as the network sees it: upright, RGB, of the input's size."""
        if is_avif_container(data):
            check_announced(data, self._max_pixels)
        with contextlib.ExitStack() as stack:
            try:
                image = stack.enter_context(
                    Image.open(BoundedReads(data, _MAX_READS), formats=_FORMATS)
                )
            except MemoryError:  # ours, and not the file's: its size is not known yet
                raise
            except Exception as error:
                raise UndecodableImage("The bytes are not a picture that can be read.") from error
            width, height = image.size
            if width * height > self._max_pixels:
                raise InvalidImage(
                    f"{width} x {height} pixels are more than the {self._max_pixels} allowed."
                )
            check_sides(width, height)
            # Pillow's parsers raise whatever a broken file leads them to (OSError, SyntaxError,
            # struct.error, zlib.error, ...), so there is no closed list to catch.
            try:
                if isinstance(image, PngImagePlugin.PngImageFile):
                    # Looking for EXIF would decode it too, and forgive what is wrong with pixels.
                    image.load()
                return self._reduced(image)
            except MemoryError:  # ours: what is allowed fits elsewhere, or later
                raise
            except Exception as error:
                raise UndecodableImage("The picture is damaged or incomplete.") from error

    def _reduced(self, image: Image.Image) -> Image.Image:
        """Shrink first, then turn and convert: by then there are few pixels left to touch."""
        orientation = _orientation(image)
        swap = orientation in _SWAPS_SIDES
        target = (self._height, self._width) if swap else (self._width, self._height)
        whole = self._whole(image.size, target)
        size: tuple[float, float] = image.size
        drafted = image.draft(None, (int(whole[0] * _REDUCING_GAP), int(whole[1] * _REDUCING_GAP)))
        if drafted is not None:  # a JPEG, with a fraction of a pixel of padding beyond this box
            size = drafted[1][2:]
        left, top = (whole[0] - target[0]) / 2, (whole[1] - target[1]) / 2
        left = math.ceil(left) if orientation in _REVERSES_X else math.floor(left)
        top = math.ceil(top) if orientation in _REVERSES_Y else math.floor(top)
        x, y = size[0] / whole[0], size[1] / whole[1]
        # The last pixel may lie a rounding error outside, which Pillow would refuse.
        right, bottom = min((left + target[0]) * x, size[0]), min((top + target[1]) * y, size[1])
        reduced = _resizable(image).resize(
            target,
            self._resample,
            box=(left * x, top * y, right, bottom),
            reducing_gap=self._reducing_gap,
        )
        reduced = _on_white(reduced)
        return reduced.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else reduced

    def _whole(self, size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
        """The size that the whole picture would have, of which `target` is the centre."""
        if self._short_side is None:
            return target
        # As torchvision and transformers do it: the longer side is rounded down.
        width, height = size
        if width <= height:
            return self._short_side, int(self._short_side * height / width)
        return int(self._short_side * width / height), self._short_side


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none to be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - junk beside a picture, of any kind, leaves it a picture
        return 1


def _resizable(image: Image.Image) -> Image.Image:
    """Decode; a mode whose values can be averaged, 8 bits a channel."""
    if image.mode.startswith(("I", "F")):
        # 16-bit greyscale. Pillow would clip it to 255; the high byte is the picture.
        wide = np.asarray(image).clip(0, 65535).astype(np.uint16)
        return Image.fromarray((wide >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode in ("RGB", "L", "CMYK"):
        return image
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent shown on white, as a page would show it."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page
