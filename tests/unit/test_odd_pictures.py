"""Odd pictures are classified as a viewer shows them, or refused with a reason (P7)."""

import numpy as np
import pytest
from numpy.typing import NDArray

from app.images.header import inspect_header
from core.bundles.bundle import BundleManifest
from core.errors import GlimpseError
from core.imaging.formats import accepted_type
from tests.abuse.odd import Odd, odd_pictures
from tests.support.pictures import encode
from worker.inference.preprocessing import Preprocessor

LIMIT = 20_000_000
ODD = list(odd_pictures())
MANIFEST = BundleManifest.model_validate(
    {
        "name": "test",
        "input": {"name": "pixels", "layout": "NHWC", "height": 48, "width": 64},
        "resize": {"method": "stretch", "resample": "bilinear"},
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "outputs": {"scores": "logits", "kind": "logits"},
        "opset": 18,
    }
)


def seen(data: bytes) -> NDArray[np.int16]:
    return np.asarray(Preprocessor(MANIFEST, LIMIT).picture(data)).astype(np.int16)


@pytest.mark.parametrize("odd", [each for each in ODD if each.shown], ids=str)
def test_odd_picture_is_seen_as_a_viewer_shows_it(odd: Odd) -> None:
    assert odd.shown is not None
    data = odd.make()
    inspect_header(data, accepted_type(data), LIMIT)
    difference = abs(seen(data) - seen(encode(odd.shown(), "PNG")))
    assert difference.mean() < 1.5
    assert np.quantile(difference, 0.99) < 12


@pytest.mark.parametrize("odd", [each for each in ODD if not each.shown], ids=str)
def test_variety_that_is_not_decoded_is_refused_before_it_is_stored(odd: Odd) -> None:
    data = odd.make()
    with pytest.raises(GlimpseError) as refused:
        inspect_header(data, accepted_type(data), LIMIT)
    assert refused.value.status == odd.status
    assert "broken" not in refused.value.detail or odd.status == 422
