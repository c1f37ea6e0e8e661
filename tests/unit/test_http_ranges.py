"""Range requests for the bytes of an image."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api import Api, api_settings, open_api
from tests.support.pictures import picture, sha256

IMAGE = picture()
SIZE = len(IMAGE)
TAG = f'"{sha256(IMAGE)}"'


@pytest.fixture
async def api(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        await api.client.post("/api/v1/images", content=IMAGE)
        yield api


async def link(api: Api) -> str:
    answer = await api.client.get(f"/api/v1/images/{sha256(IMAGE)}/content")
    return answer.headers["location"]


@pytest.mark.parametrize(
    ("range_", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, SIZE - 1),
        ("bytes=-10", SIZE - 10, SIZE - 1),
        (f"bytes=-{SIZE + 5}", 0, SIZE - 1),
        (f"bytes=5-{SIZE + 1000}", 5, SIZE - 1),
        ("BYTES=1-2", 1, 2),
    ],
)
async def test_one_range_is_sent(api: Api, range_: str, first: int, last: int) -> None:
    answer = await api.client.get(await link(api), headers={"Range": range_})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.content == IMAGE[first : last + 1]
    assert int(answer.headers["content-length"]) == last - first + 1
    assert answer.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    "range_", ["", "bytes=", "bytes=-", "bytes=9-5", "bytes=0-1,5-6", "pages=1-2", "bytes=x-2"]
)
async def test_other_ranges_are_ignored(api: Api, range_: str) -> None:
    answer = await api.client.get(await link(api), headers={"Range": range_})
    assert (answer.status_code, answer.content) == (200, IMAGE)
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("range_", [f"bytes={SIZE}-", "bytes=-0", "bytes=99999999-"])
async def test_range_behind_the_end_is_416(api: Api, range_: str) -> None:
    answer = await api.client.get(await link(api), headers={"Range": range_})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{SIZE}")


async def test_range_continues_only_the_same_bytes(api: Api) -> None:
    for tag, status in ((TAG, 206), ('"other"', 200)):
        headers = {"Range": "bytes=1-", "If-Range": tag}
        assert (await api.client.get(await link(api), headers=headers)).status_code == status
    answer = await api.client.get(await link(api), headers={"If-None-Match": TAG})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_download_has_a_name(api: Api) -> None:
    answer = await api.client.get(await link(api))
    disposition = answer.headers["content-disposition"]
    assert disposition == f'inline; filename="{sha256(IMAGE)}.jpeg"'
    head = await api.client.head(await link(api))
    assert (head.status_code, head.headers["content-length"]) == (200, str(SIZE))
