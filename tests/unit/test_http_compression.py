"""Large JSON and CSV responses are compressed for clients that accept it."""

import gzip
import json

from tests.support.api import Api
from tests.support.pictures import picture, sha256

JOBS = "/api/v1/jobs"


async def results_url(api: Api) -> str:
    hashes = [f"{number:064x}" for number in range(300)]
    answer = await api.client.post(f"{JOBS}/batch-predict", json={"image_hashes": hashes})
    return f"{JOBS}/{answer.json()['job_id']}/results"


async def raw(api: Api, url: str, accept: str) -> tuple[dict[str, str], bytes]:
    """The headers, and the content as it is sent."""
    headers = {"Accept-Encoding": accept}
    async with api.client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        return dict(answer.headers), b"".join([piece async for piece in answer.aiter_raw()])


ACCEPTED = {
    "gzip": True,
    "br, gzip;q=0.5": True,
    "*": True,
    "GZIP": True,
    "gzip;q=0": False,
    "br": False,
    "*, gzip;q=0": False,
    "identity": False,
    "": False,
}  # whether the response is compressed


async def test_large_documents_are_compressed_on_request(api: Api) -> None:
    url = await results_url(api)
    for path in (url, f"{url}?format=csv", f"{url}?format=ndjson", "/openapi.json"):
        plain = (await raw(api, path, "identity"))[1]
        for accept, compressed in ACCEPTED.items():
            headers, content = await raw(api, path, accept)
            assert (headers.get("content-encoding") == "gzip") is compressed, (path, accept)
            assert "accept-encoding" in headers["vary"].lower(), (path, accept)
            decoded = gzip.decompress(content) if compressed else content
            assert decoded == plain, (path, accept)
            if compressed:
                assert len(content) < len(plain) / 4, (path, accept)
            if "content-length" in headers:
                assert int(headers["content-length"]) == len(content), (path, accept)


async def test_small_documents_and_single_results_are_not_compressed(api: Api) -> None:
    """They fit into one packet, and compressing them would cost more than it saves."""
    image = picture()
    await api.client.post("/api/v1/images", content=image)
    for url in (JOBS, f"/api/v1/images/{sha256(image)}"):
        async with api.client.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as answer:
            assert "content-encoding" not in answer.headers
            json.loads(await answer.aread())
