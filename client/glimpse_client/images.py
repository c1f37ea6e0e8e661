"""Images: classify, look up, list, read, delete, watch."""

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any

from glimpse_client.errors import WaitTimeout
from glimpse_client.flows import (
    Call,
    Clock,
    Effect,
    Flow,
    Follow,
    Request,
    Response,
    Sleep,
    nothing,
    request,
)
from glimpse_client.methods import (
    AsyncResource,
    Pages,
    Resource,
    Stream,
    async_blocking,
    async_paged,
    async_streamed,
    blocking,
    paged,
    streamed,
)
from glimpse_client.sources import Content, Source, is_url, source_of
from glimpse_client.types import Image, Page, image_of

IMAGES = "/api/v1/images"
LONGEST_PREFER = 30  # seconds that the service holds an answer at most
DEFAULT_WAIT = 60.0
LOOKUP_SIZE = 1000
THUMBNAIL_WAIT = 30.0  # seconds for a thumbnail that the service still has to make


def path_of(image_hash: str) -> str:
    """The path of an image."""
    return f"{IMAGES}/{image_hash}"


def _prefer(seconds: float) -> dict[str, str]:
    whole = int(min(LONGEST_PREFER, seconds))
    return {"prefer": f"wait={whole}"} if whole >= 1 else {}


def views(model: str | None, labels: int | None, min_confidence: float | None) -> dict[str, Any]:
    """The query parameters that select a model and a view of the result."""
    return {"model": model, "labels": labels, "min_confidence": min_confidence}


def classify_flow(image: Content, params: Mapping[str, Any], wait: float) -> Flow[Image]:
    """Hash, look up, upload if unknown, wait for the result.

    With a model, the look-up also starts the classification of an image that the service has. The
    service fetches an image at a URL itself.
    """
    began: float = yield Clock()
    if is_url(image):
        response: Response = yield Request(
            "POST", f"{IMAGES}/from-url", params=params, json={"url": image}, headers=_prefer(wait)
        )
        found = image_of(response.document, uploaded=True)
    else:
        found = yield from _classify_bytes_flow(image, params, wait)
    if found.done or wait <= 0:
        return found
    now: float = yield Clock()
    return (yield from wait_flow(found, params, wait - (now - began)))


def _classify_bytes_flow(
    image: Content, params: Mapping[str, Any], wait: float
) -> Generator[Effect, Any, Image]:
    """The state of the image, which is uploaded if the service does not know it."""
    source: Source = yield Call(lambda: source_of(image))
    image_hash: str = yield Call(source.sha256)
    path = path_of(image_hash)
    known = ("POST", f"{path}/classify") if params["model"] else ("GET", path)
    response: Response = yield Request(*known, params=params, expect=frozenset({404}))
    found = None if response.status == 404 else image_of(response.document)
    if found is not None and not (found.error is not None and found.error.retryable):
        return found
    response = yield Request(
        *("POST", IMAGES),
        params=params,
        source=source,
        headers={"content-type": "application/octet-stream", **_prefer(wait)},
    )
    return image_of(response.document, uploaded=True)


def wait_flow(
    found: Image, params: Mapping[str, Any], seconds: float
) -> Generator[Effect, Any, Image]:
    """Wait for the end of `found`: by its event stream, then by polling.

    `params` select the view. The model is that of `found`.
    """
    now: float = yield Clock()
    ends = now + seconds
    params = {**params, "model": found.model or params.get("model")}
    if seconds > 0:
        yield Follow(f"{path_of(found.hash)}/stream", params, seconds)
    while True:
        now = yield Clock()
        response: Response = yield Request(
            "GET", path_of(found.hash), params=params, headers=_prefer(ends - now)
        )
        latest = image_of(response.document, uploaded=found.uploaded)
        if latest.done:
            return latest
        now = yield Clock()
        if now >= ends:
            raise WaitTimeout(
                f"the image {latest.hash} is still {latest.status} after the wait", latest
            )
        yield Sleep(min(1.0, max(0.05, ends - now)))


def list_flow(
    filters: Mapping[str, Any], cursor: str | None, limit: int | None = None
) -> Flow[Page[Image]]:
    """One page of the tenant's images."""

    def page(document: Any) -> Page[Image]:
        return Page([image_of(each) for each in document["images"]], document.get("next_cursor"))

    params = {**filters, "cursor": cursor, "limit": limit}
    return request("GET", IMAGES, page, params=params)


def thumbnail_flow(image_hash: str, wait: float) -> Flow[bytes]:
    """The thumbnail; asks again while the service makes it."""
    began: float = yield Clock()
    while True:
        response: Response = yield Request("GET", f"{path_of(image_hash)}/thumbnail")
        if response.status == 200:
            return response.body
        now: float = yield Clock()
        if now - began >= wait:
            raise WaitTimeout(f"the thumbnail of {image_hash} is not made yet", None)
        yield Sleep(0.25)


def lookup_flow(hashes: Sequence[str], model: str | None = None) -> Flow[set[str]]:
    """The hashes whose bytes have to be uploaded, in requests of at most 1,000."""
    missing: set[str] = set()
    for start in range(0, len(hashes), LOOKUP_SIZE):
        body: dict[str, Any] = {"image_hashes": list(hashes[start : start + LOOKUP_SIZE])}
        if model:
            body["model"] = model
        response: Response = yield Request("POST", f"{IMAGES}/lookup", json=body)
        missing.update(response.document["missing"])
    return missing


def _state(document: Mapping[str, Any]) -> Image | None:
    return image_of(document) if "image_hash" in document else None


class Images(Resource):
    """`client.images`."""

    @blocking
    def classify(
        self,
        image: Content,
        *,
        model: str | None = None,
        labels: int | None = None,
        min_confidence: float | None = None,
        wait: float = DEFAULT_WAIT,
    ) -> Flow[Image]:
        """The labels of an image: a path, bytes, an open file, a Pillow image or a URL.

        The client hashes the bytes first and uploads them only if the service does not know them.
        The service fetches a URL (`https:`, `http:`, `data:`), from public addresses only.
        `model` is a name or an id. `labels` (1 to 20) and `min_confidence` (0 to 1) select which
        labels the result has. `wait` is in seconds; with 0 the image returned may have no result
        yet. An image that cannot be classified is returned with its `error`.

        Raises WaitTimeout, ApiError, ConnectionFailed, OSError, TypeError.
        """
        return classify_flow(image, views(model, labels, min_confidence), wait)

    @blocking
    def get(
        self,
        image_hash: str,
        *,
        model: str | None = None,
        labels: int | None = None,
        min_confidence: float | None = None,
    ) -> Flow[Image]:
        """An image by the SHA-256 of its bytes. Raises NotFound."""
        params = views(model, labels, min_confidence)
        return request("GET", path_of(image_hash), image_of, params=params)

    @blocking
    def page(
        self, /, *, cursor: str | None = None, limit: int | None = None, **filters: Any
    ) -> Flow[Page[Image]]:
        """One page of the tenant's images, newest first. Filters as in `list`."""
        return list_flow(filters, cursor, limit)

    @paged
    def list(self, /, **filters: Any) -> Pages[Image]:
        """All of the tenant's images, newest first.

        Filters: `label` and `category` with `min_confidence`, `status`, `model`, and the times
        `after` and `before`.
        """
        return [partial(list_flow, filters)]

    @blocking
    def thumbnail(self, image_hash: str, *, wait: float = THUMBNAIL_WAIT) -> Flow[bytes]:
        """A WebP of at most 256 pixels a side. Raises NotFound if there is none, and WaitTimeout.

        `wait` is in seconds: the service makes a missing thumbnail first.
        """
        return thumbnail_flow(image_hash, wait)

    @blocking
    def missing(self, hashes: Sequence[str], *, model: str | None = None) -> Flow[set[str]]:
        """The hashes of images whose bytes the service does not have."""
        return lookup_flow(hashes, model)

    @blocking
    def delete(self, image_hash: str) -> Flow[None]:
        """Delete the image, its thumbnail and its results."""
        return request("DELETE", path_of(image_hash), nothing)

    @blocking
    def content(self, image_hash: str) -> Flow[bytes]:
        """The bytes of the image."""
        response: Response = yield Request("GET", f"{path_of(image_hash)}/content")
        return response.body

    @streamed
    def watch(self, image_hash: str, *, model: str | None = None) -> Sequence[Stream[Image]]:
        """The states of an image as they change, until it is done."""
        return [Stream(f"{path_of(image_hash)}/stream", _state, {"model": model})]


class AsyncImages(AsyncResource):
    """`client.images` of the asynchronous client."""

    classify = async_blocking(Images.classify)
    get = async_blocking(Images.get)
    page = async_blocking(Images.page)
    list = async_paged(Images.list)
    thumbnail = async_blocking(Images.thumbnail)
    missing = async_blocking(Images.missing)
    delete = async_blocking(Images.delete)
    content = async_blocking(Images.content)
    watch = async_streamed(Images.watch)
