"""Converts the colours of a decoded image to sRGB, as a browser does."""

import hashlib
import io
from functools import lru_cache

import numpy as np
from cachetools import LRUCache
from PIL import Image, ImageCms

MAX_PROFILES = 32  # transforms that a process keeps; phones and editors use few profiles

# The largest difference, of 255, between the colours that a profile gives and those of sRGB.
# Many files have a variant of the sRGB profile, for which no conversion is needed.
_SAME = 2
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
_STEPS = 9  # values of each channel in the colours that are compared


class ColourConverter:
    """Applies ICC profiles. Keeps the transforms of recent ones. Not safe to use from threads."""

    def __init__(self) -> None:
        self._transforms: LRUCache[tuple[bytes, bool], _Transform | None] = LRUCache(MAX_PROFILES)

    def to_srgb(self, image: Image.Image, profile: bytes, *, grey: bool) -> Image.Image:
        """`image` in RGB or RGBA; unchanged if the profile is broken, or belongs to other colours.

        `image` is L, RGB, RGBA, CMYK or LAB. `grey` tells whether its file holds no colours.
        """
        key = hashlib.sha256(profile).digest(), grey
        if key not in self._transforms:
            self._transforms[key] = _transform(profile, grey=grey)
        transform = self._transforms[key]
        if transform is None:
            return image
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        if transform.mode == "L":
            colours = image.getchannel(0)
        else:
            colours = image.convert("RGB") if image.mode in ("RGBA", "L") else image
        if colours.mode != transform.mode:
            return image
        converted = transform.apply(colours)
        if alpha is not None:
            converted.putalpha(alpha)
        return converted


class _Transform:
    """A conversion of images in `mode` to RGB."""

    def __init__(self, mode: str, transform: ImageCms.ImageCmsTransform) -> None:
        self.mode = mode
        self._transform = transform

    def apply(self, image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image, self._transform)
        assert converted is not None
        return converted


def lab_to_rgb(image: Image.Image) -> Image.Image:
    """CIELAB, relative to D50, as sRGB."""
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")
    return _Transform("LAB", transform).apply(image)


def correct_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """`image` (L, RGB or RGBA) with the curve of sRGB. Its samples are light to the power `gamma`.

    PNG files without a profile may declare such an exponent (PNG, 11.3.2.2).
    """
    light = (np.arange(256) / 255) ** (1 / gamma)
    # IEC 61966-2-1
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = np.rint(255 * curve).astype(np.uint8).tolist()
    if image.mode == "RGBA":
        return image.point(table * 3 + list(range(256)))
    return image.point(table * len(image.getbands()))


def _transform(profile: bytes, *, grey: bool) -> _Transform | None:
    """None if the profile needs no conversion, is broken, or is not for such images."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(source.profile.xcolor_space.strip())
        if mode is None or grey != (mode == "L"):
            return None
        transform = _Transform(mode, ImageCms.buildTransform(source, _srgb(), mode, "RGB"))
        return None if _changes_nothing(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _changes_nothing(transform: _Transform) -> bool:
    if transform.mode not in ("RGB", "L"):
        return False
    levels = np.linspace(0, 255, _STEPS).astype(np.uint8)
    if transform.mode == "L":
        image = Image.fromarray(levels.reshape(1, -1))
    else:
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        image = Image.fromarray(cube.reshape(_STEPS, -1, 3))
    wanted = np.asarray(image.convert("RGB"))
    after = np.asarray(transform.apply(image))
    return bool(np.abs(after.astype(np.int16) - wanted.astype(np.int16)).max() <= _SAME)
