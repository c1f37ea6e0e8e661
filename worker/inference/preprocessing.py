"""Turns an encoded image into the network's input: decode, apply orientation, resize, normalise.

All functions block and run in a classifier process.
"""

import contextlib
import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from core.bundles.bundle import BundleManifest
from core.errors import BundleError, GlimpseError, InvalidImage, UndecodableImage
from core.imaging.bounded_reader import BoundedReader
from core.imaging.encoded import EncodedImage, TooManyParts
from core.imaging.formats import check_size, read_image
from core.imaging.heic import register_heic_decoder
from core.imaging.jpeg import END_OF_IMAGE, all_scans_present
from core.imaging.limits import PixelLimits
from core.imaging.png import without_checksum
from worker.inference.colour import ColourConverter, correct_gamma, lab_to_rgb
from worker.inference.run_lengths import without_run_lengths
from worker.inference.thumbnail import encoded_thumbnail, reduced_to_thumbnail

# The settings replace Pillow's own limit.
Image.MAX_IMAGE_PIXELS = None
# Classifier processes already use every core, and each thread of the decoder needs memory.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# libtiff reads uncompressed pixels as well. Pillow's own reader takes planes of 16 bits for planes
# of 8 bits, and cannot read YCbCr with fewer colour samples.
TiffImagePlugin.READ_LIBTIFF = True

# Importing these plugins registers them, so that Pillow does not import all forty for a WebP.
_FORMATS: Final = [
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        AvifImagePlugin.AvifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
]
if register_heic_decoder():
    _FORMATS.append("HEIF")

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

# The reads that decoding one image may take. A PNG chunk takes three or four, and a PNG of 20 MB in
# chunks of 1 kB is valid. A TIFF may have a strip for each row and channel.
_MAX_READS: Final = 150_000
_MAX_STRIP_READS: Final = 1_000_000

# Fast reductions (JPEG's scaled decoding, box averaging) stop at this multiple of the final size.
# The manifest's filter does the rest, so that the result stays close to a plain resize.
_REDUCING_GAP: Final = 2.0

# The memory that decoding an image may allocate, in bytes: a part for each pixel that the header
# declares, and a part for parsing. A decoder can be led to use more: an AVIF that declares 64 x 64
# pixels may be coded in 16,000 x 16,000. Measured with images of 50 megapixels, the most expensive
# valid ones take 17.4 bytes a pixel (AVIF, 10 bits, 4:4:4, with alpha, as a grid) and 16.3 (WebP).
# A JPEG that is decoded at full size takes 4, and the coefficients of a progressive one take 2 for
# each of up to four components.
_BYTES_PER_PIXEL: Final = 20
_JPEG_BYTES_PER_PIXEL: Final = 10
_PARSING_BYTES: Final = 96 * 2**20

# What a JPEG decoder may read beyond the end of a file that lacks its last marker: less than an
# eighth of a thousandth of a photo.
_MISSING_END: Final = bytes(16)
# No decoded row consists of this colour alone.
_NOT_DECODED: Final[dict[str, int | tuple[int, ...]]] = {
    "L": 253,
    "RGB": (253, 1, 254),
    "CMYK": (253, 1, 254, 2),
}

_UNREADABLE: Final = "The bytes are not an image that can be read."
_GREY_MODES: Final = frozenset({"1", "L", "LA"})

MemoryLimit = Callable[[int], contextlib.AbstractContextManager[None]]
# The image as the network sees it, and the thumbnail, both upright and in RGB.
Pictures = tuple[Image.Image, Image.Image | None]


def max_decoding_bytes(limits: PixelLimits) -> int:
    """The memory that decoding the largest allowed image may allocate."""
    largest = max(_BYTES_PER_PIXEL * limits.other, _JPEG_BYTES_PER_PIXEL * limits.jpeg)
    return _PARSING_BYTES + largest


def no_memory_limit(size: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


class Decoder(ABC):
    """Decodes images upright and in RGB, at the size that the subclass chooses. Stateless."""

    def __init__(
        self, resample: str, max_pixels: PixelLimits | int, memory_limit: MemoryLimit
    ) -> None:
        """`max_pixels` is width times height. `memory_limit` bounds what decoding allocates."""
        self._resample = _RESAMPLE[resample]
        # Reducing in two steps changes the result of these filters.
        exact = resample in ("nearest", "box")
        self._reducing_gap = None if exact else _REDUCING_GAP
        self._max_pixels = max_pixels
        self._colours = ColourConverter()
        self._memory_limit = memory_limit

    def picture(self, data: bytes) -> Image.Image:
        """The image. Raises InvalidImage and UndecodableImage as `pictures` does."""
        return self.pictures(data, thumbnail=False)[0]

    def pictures(self, data: bytes, *, thumbnail: bool) -> Pictures:
        """The image, and its thumbnail if that is asked for.

        Raises InvalidImage if the image exceeds a limit, UndecodableImage if it cannot be decoded.
        """
        encoded = self._read(data)
        width, height = encoded.size
        per_pixel = _JPEG_BYTES_PER_PIXEL if encoded.reducible else _BYTES_PER_PIXEL
        try:
            with self._memory_limit(_PARSING_BYTES + per_pixel * width * height):
                return self._decoded(encoded, encoded.without_metadata(data), thumbnail)
        except MemoryError:
            raise InvalidImage(
                "Decoding the image takes more memory than its dimensions account for."
            ) from None

    def _read(self, data: bytes) -> EncodedImage:
        """What the container says. Raises InvalidImage and UndecodableImage."""
        try:
            encoded = read_image(data)
        except (GlimpseError, TooManyParts, ValueError, IndexError) as error:
            detail = error.detail if isinstance(error, GlimpseError) else _UNREADABLE
            raise UndecodableImage(detail) from error
        check_size(encoded, self._max_pixels)
        return encoded

    def _decoded(self, encoded: EncodedImage, data: bytes, thumbnail: bool) -> Pictures:
        # Pillow's parsers raise many types of error for broken files (OSError, SyntaxError,
        # struct.error, zlib.error, ...).
        try:
            if encoded.run_lengths:
                data = without_run_lengths(data)
            with _open(data) as image:
                # A decoder may declare another size than the container.
                check_size(dataclasses.replace(encoded, size=image.size), self._max_pixels)
                return self._reduced(encoded, image, data, thumbnail)
        except (MemoryError, GlimpseError):
            raise
        except Exception as error:
            raise UndecodableImage("The image is damaged or incomplete.") from error

    def _reduced(
        self, encoded: EncodedImage, image: ImageFile.ImageFile, data: bytes, thumbnail: bool
    ) -> Pictures:
        """Shrink the image first: turning and converting it are then cheap."""
        orientation = encoded.orientation or _orientation(image)
        swap = orientation in _SWAPS_SIDES
        canvas = image.size if encoded.frame is None else encoded.size
        target, whole = self._sizes(canvas, swap)
        size: tuple[float, float] = canvas
        least: tuple[int, int] | None = None
        if encoded.reducible:
            least = int(whole[0] * _REDUCING_GAP), int(whole[1] * _REDUCING_GAP)
            drafted = image.draft(None, least)
            if drafted is not None:  # the box excludes the padding of part of a pixel
                size = drafted[1][2:]
        profile = encoded.profile or image.info.get("icc_profile")
        grey = image.mode in _GREY_MODES or image.mode.startswith(("I", "F"))
        pixels = _on_canvas(
            encoded, _resizable(encoded, _loaded(encoded, image, data, least), data)
        )
        left, top = (whole[0] - target[0]) / 2, (whole[1] - target[1]) / 2
        left = math.ceil(left) if orientation in _REVERSES_X else math.floor(left)
        top = math.ceil(top) if orientation in _REVERSES_Y else math.floor(top)
        x, y = size[0] / whole[0], size[1] / whole[1]
        # A rounding error could put the last pixel outside, which Pillow refuses.
        right, bottom = min((left + target[0]) * x, size[0]), min((top + target[1]) * y, size[1])
        reduced = pixels.resize(
            target,
            self._resample,
            box=(left * x, top * y, right, bottom),
            reducing_gap=self._reducing_gap,
        )

        def finished(small: Image.Image) -> Image.Image:
            if profile:
                small = self._colours.to_srgb(small, profile, grey=grey)
            elif encoded.gamma is not None:
                small = correct_gamma(small, encoded.gamma)
            return _upright(small, orientation)

        return finished(reduced), finished(reduced_to_thumbnail(pixels)) if thumbnail else None

    @abstractmethod
    def _sizes(self, size: tuple[int, int], swap: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        """The final size of an image of `size`, and that of the whole image at the same scale.

        The result is the centre of the whole image. All sizes are as stored; `swap` tells that the
        orientation exchanges the sides later.
        """


class FittingDecoder(Decoder):
    """Decodes images to at most `max_side` pixels a side. Smaller images keep their size."""

    def __init__(
        self,
        max_side: int,
        max_pixels: PixelLimits | int,
        memory_limit: MemoryLimit = no_memory_limit,
    ) -> None:
        super().__init__("bilinear", max_pixels, memory_limit)
        self._max_side = max_side

    def _sizes(self, size: tuple[int, int], swap: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        scale = min(1.0, self._max_side / max(size))
        fitting = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        return fitting, fitting


class Preprocessor(Decoder):
    """Applies one manifest's preprocessing. Stateless."""

    def __init__(
        self,
        manifest: BundleManifest,
        max_pixels: PixelLimits | int,
        memory_limit: MemoryLimit = no_memory_limit,
    ) -> None:
        """`max_pixels` is width times height. `memory_limit` bounds what decoding allocates.

        Raises BundleError if the manifest's rules contradict each other.
        """
        rule, spec = manifest.resize, manifest.input
        super().__init__(rule.resample, max_pixels, memory_limit)
        if 0 in manifest.std:
            raise BundleError("The manifest's std must not hold a zero.")
        self._short_side: int | None = None
        if rule.method == "crop":
            if rule.short_side is None or rule.short_side < max(spec.height, spec.width):
                raise BundleError("A crop needs a short_side of at least the input's longer side.")
            self._short_side = rule.short_side
        self._width, self._height = spec.width, spec.height
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
        picture, small = self.pictures(data, thumbnail=thumbnail)
        pixels = np.asarray(picture)
        if self._channels_first:
            pixels = pixels.transpose(2, 0, 1)
        tensor = np.empty((1, *pixels.shape), np.float32)
        np.multiply(pixels, self._scale, out=tensor[0])
        tensor += self._shift
        return tensor, b"" if small is None else encoded_thumbnail(small)

    def _sizes(self, size: tuple[int, int], swap: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        target = (self._height, self._width) if swap else (self._width, self._height)
        return target, self._whole(size, target)

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


def _open(data: bytes) -> ImageFile.ImageFile:
    most = _MAX_STRIP_READS if data.startswith((b"II", b"MM")) else _MAX_READS
    image = Image.open(BoundedReader(data, most), formats=_FORMATS)
    assert isinstance(image, ImageFile.ImageFile)
    return image


def _loaded(
    encoded: EncodedImage, image: ImageFile.ImageFile, data: bytes, least: tuple[int, int] | None
) -> Image.Image:
    """The decoded image. Raises OSError and others if its pixels are damaged or incomplete.

    `least` is the size below which a JPEG is not reduced.
    """
    if encoded.lossless_jpeg and encoded.jfif and image.mode == "RGB":
        image.draft("YCbCr", None)  # libjpeg converts the colours of no lossless image
    try:
        image.load()
    except OSError:
        if isinstance(image, JpegImagePlugin.JpegImageFile) and END_OF_IMAGE not in data:
            return _jpeg_without_end(data, least)
        if isinstance(image, PngImagePlugin.PngImageFile) and (rest := without_checksum(data)):
            retried = _open(rest)
            retried.load()
            return retried
        raise
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 if it is absent or unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - broken metadata must not cost the image
        return 1


def _resizable(encoded: EncodedImage, image: Image.Image, data: bytes) -> Image.Image:
    """`image` in a mode with 8 bits a channel, whose values can be averaged."""
    if encoded.colour_key is not None:
        return _with_colour_key(image, encoded.colour_key, encoded.depth, data)
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image), encoded))
    if image.has_transparency_data:
        return _with_alpha(image)
    if image.mode == "LAB":
        return lab_to_rgb(image)
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied alpha, which Pillow converts to LA alone
        image = image.convert("LA")
    with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
    # Programs that know no transparency leave zeros in the fourth byte of a BMP.
    if image.format == "BMP" and with_alpha.getchannel("A").getextrema() == (0, 0):
        return with_alpha.convert("RGB")
    return with_alpha


def _eight_bits(values: NDArray[Any], encoded: EncodedImage) -> NDArray[np.uint8]:
    """Samples of 10 to 32 bits as 8 bits. Pillow would clip them at 255.

    Integers have 16 bits unless the file says fewer, or one needs more. Floating-point samples end
    at 1, or at the largest.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).clip(0)
        bytes_ = np.asarray(values * (255 / max(1.0, values.max(initial=0.0))), np.uint8)
    else:
        if encoded.depth == 32 and not encoded.signed:
            values = values.view(np.uint32)  # Pillow reads them as signed
        values = values.clip(0).astype(np.int64 if values.dtype.itemsize > 2 else np.uint16)
        largest = int(values.max(initial=0))
        step = 1 << (encoded.depth if 8 < encoded.depth < 16 else 16) - 8
        if largest > 0xFFFF:
            step = largest // 256 + 1
        bytes_ = np.asarray((values // step).clip(0, 255), np.uint8)
    return 255 - bytes_ if encoded.white_is_zero else bytes_


def _with_colour_key(
    image: Image.Image, key: tuple[int, ...], depth: int, data: bytes
) -> Image.Image:
    """`image` as RGBA. Pixels of the colour `key`, compared in all their bits, are transparent."""
    if depth <= 8:
        image = image.convert("L") if image.mode == "1" else image
        scaled = tuple(each * 255 // ((1 << depth) - 1) for each in key)
        matching = _mask(image.split(), scaled)
    elif len(key) == 1:
        wide = np.asarray(image).astype(np.uint16)
        matching = Image.fromarray(np.where(wide == key[0], 255, 0).astype(np.uint8))
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    else:
        high, low = [each >> 8 for each in key], [each & 0xFF for each in key]
        matching = ImageChops.darker(
            _mask(image.split(), high), _mask(_low_bytes(data).split(), low)
        )
    keyed = image.convert("RGB")
    keyed.putalpha(ImageChops.invert(matching))
    return keyed


def _mask(channels: Sequence[Image.Image], values: Sequence[int]) -> Image.Image:
    """255 where each channel has its value, else 0."""
    masks = [
        channel.point([255 if level == value else 0 for level in range(256)])
        for channel, value in zip(channels, values, strict=True)
    ]
    return functools.reduce(ImageChops.darker, masks)


def _low_bytes(data: bytes) -> Image.Image:
    """The low bytes of a PNG with 16 bits a sample. Pillow decodes the high ones."""
    with _open(data) as image:
        (tile,) = image.tile
        image.tile = [tile._replace(args="RGB;16L")]
        image.load()
        return image


def _on_canvas(encoded: EncodedImage, image: Image.Image) -> Image.Image:
    """The canvas of an animation with its first frame. The rest of it is transparent."""
    if encoded.frame is None:
        return image
    canvas = Image.new("RGBA", encoded.size, (255, 255, 255, 0))
    canvas.paste(image.convert("RGBA"), encoded.frame[:2])
    return canvas


def _on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB. Transparent pixels become white, as on a web page."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page


def _jpeg_without_end(data: bytes, least: tuple[int, int] | None) -> Image.Image:
    """A JPEG that lacks its last marker, and no pixels. Raises OSError if it lacks more.

    libjpeg takes an end that is added for the end of all pixels, and fills the missing ones with
    grey. So it gets a few more bytes but no end: it then stops behind the last complete row.
    """
    if all_scans_present(data):
        retried = _open(data + END_OF_IMAGE)
        retried.draft(None, least)
        retried.load()
        return retried
    retried = _open(data + _MISSING_END)
    retried.draft(None, least)
    colour = _NOT_DECODED[retried.mode]
    pixels = Image.new(retried.mode, retried.size, colour)
    retried.im = pixels.im
    with contextlib.suppress(OSError):
        retried.load()
    last = pixels.crop((0, pixels.height - 1, pixels.width, pixels.height))
    if last.getcolors() == [(pixels.width, colour)]:
        raise OSError("the image data end early")
    return pixels
