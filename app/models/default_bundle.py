"""The model that new images are classified by: the API reads its manifest at the start."""

import asyncio
import time
from collections.abc import Callable

import structlog

from core.backends.bundles import open_bundles, retry_delays
from core.bundles.python_bundle import AnyBundle, read_any_bundle
from core.errors import BundleUnavailable, Unavailable
from core.settings import Settings

log = structlog.get_logger(__name__)


def read_model(settings: Settings) -> AnyBundle:
    """The bundle of `MODEL_URI` with its card, without its weights. Blocks.

    Raises BundleUnavailable if it cannot be read now, and BundleError if it is invalid.
    """
    bundles = open_bundles(settings, (settings.model_uri,))
    try:
        bundle = bundles.manifest(settings.model_uri)
        bundles.card(settings.model_uri, bundle)
        return bundle
    finally:
        bundles.close()


def wait_for_model(settings: Settings, sleep: Callable[[float], None] = time.sleep) -> AnyBundle:
    """The bundle of `MODEL_URI`, once it can be read. Blocks.

    Raises BundleError if it is invalid, which time does not change.
    """
    logged = ""
    for pause in retry_delays():
        try:
            return read_model(settings)
        except BundleUnavailable as error:
            if error.detail != logged:
                log.error("waiting for the model", uri=settings.model_uri, reason=error.detail)
                logged = error.detail
            sleep(pause)
    raise AssertionError("`retry_delays` does not end")


async def check_model(bundle: AnyBundle) -> None:
    """Raise Unavailable if the files of `bundle` have changed since it was read.

    A bundle from a bucket was copied to this machine at the start, so the bucket does not matter.
    """
    found = await asyncio.to_thread(read_any_bundle, bundle.folder)
    if found.identity != bundle.identity:
        raise Unavailable(
            f"The bundle is now {found.identity}, this process serves {bundle.identity}: restart."
        )
