"""Forms are read one image at a time, within limits."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batches.limits import BatchLimits
from core.errors import BatchTooLarge, InvalidRequest, MalformedBody
from tests.support.batches import cut, form, manifest, part, read_batch, refused_batch
from tests.support.sender import Sender


async def test_images_of_a_form_are_read_in_order(tmp_path: Path) -> None:
    images = [b"one", b"two" * 100, b"three"]
    body = form(*(part(each, filename=b"%d.jpg" % n) for n, each in enumerate(images)))
    stored, document = await read_batch(body, tmp_path)
    assert stored.bytes == images
    assert [each.name for each in stored.items] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [each.image_hash for each in stored.items] == [
        hashlib.sha256(each).hexdigest() for each in images
    ]
    assert document == b""


async def test_manifest_may_precede_or_follow_the_images(tmp_path: Path) -> None:
    for body in (form(manifest(b"{}"), part(b"x")), form(part(b"x"), manifest(b"{}"))):
        stored, document = await read_batch(body, tmp_path)
        assert (stored.bytes, document) == ([b"x"], b"{}")


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(1, 300))
async def test_any_chunk_boundaries_give_the_same_images(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], size: int
) -> None:
    body = form(manifest(b"[]"), *map(part, images))
    stored, document = await read_batch(Sender(cut(body, size)), tmp_path_factory.getbasetemp())
    assert stored.bytes == images
    assert document == b"[]"
    assert stored.codes == ["" if each else "invalid_image" for each in images]


async def test_image_that_is_too_large_fails_alone(tmp_path: Path) -> None:
    body = form(part(b"a"), part(bytes(1000)), part(bytes(1001)), part(bytes(50_000)), part(b"b"))
    stored, _ = await read_batch(body, tmp_path)
    assert stored.codes == ["", "", "image_too_large", "image_too_large", ""]
    assert stored.bytes[0] == b"a" and stored.bytes[4] == b"b"
    assert stored.items[2].image_hash == ""
    assert stored.most_reserved <= 1000 + 64, "the rest is skipped"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"cat.jpg", "cat.jpg"),
        (b"../../etc/passwd", "passwd"),
        (b"C:\\\\photos\\\\cat.jpg", "cat.jpg"),
        (b"/", ""),
        (b"a\x1b[31m\x7f.jpg", "a[31m.jpg"),
        ("\u202egpj.exe".encode(), "gpj.exe"),
        ("Büro €.png".encode(), "Büro €.png"),
        (b"\xff\xfe.jpg", "\ufffd\ufffd.jpg"),
        (b"x" * 900, "x" * 200),
    ],
)
async def test_file_names_are_for_display_only(tmp_path: Path, sent: bytes, shown: str) -> None:
    stored, _ = await read_batch(form(part(b"x", filename=sent)), tmp_path)
    assert stored.items[0].name == shown


async def test_form_with_too_many_images_is_refused_at_once(tmp_path: Path) -> None:
    body = form(*[part(b"x")] * 6) + bytes(10**6)
    sender = Sender(cut(body, 200))
    error = await refused_batch(sender, tmp_path, limits=BatchLimits(10**8, 1000, max_items=5))
    assert isinstance(error, BatchTooLarge)
    assert error.extra == {"max_items": 5}
    assert sender.taken < 6, "the rest is not read"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        form(part(b"bytes"), end=b""),
        form(part(b"bytes"))[:40],
        form(b"no headers here"),
        form(part(b"x"), b"X: " + b"y" * 20_000 + b"\r\n\r\n"),
    ],
)
async def test_unparsable_forms_are_malformed(tmp_path: Path, body: bytes) -> None:
    assert isinstance(await refused_batch(body, tmp_path), MalformedBody)
    assert isinstance(
        await refused_batch(form(part(b"x")), tmp_path, "multipart/form-data"), MalformedBody
    )


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (form(part(b"x"), part(b"high", "priority", b"")), "'imgs' and 'manifest'"),
        (form(part(b"x", "img")), "'imgs' and 'manifest'"),
        (form(b"Content-Type: image/png\r\n\r\nx"), "'imgs' and 'manifest'"),
        (form(manifest(b"{}"), manifest(b"{}")), "more than one field 'manifest'"),
    ],
)
async def test_unknown_and_repeated_fields_are_refused(
    tmp_path: Path, body: bytes, detail: str
) -> None:
    error = await refused_batch(body, tmp_path)
    assert isinstance(error, InvalidRequest)
    assert detail in error.detail


async def test_size_of_the_manifest_is_limited(tmp_path: Path) -> None:
    limits = BatchLimits(10**7, 1000)
    body = form(manifest(bytes(1024 * 1024)))
    _, document = await read_batch(Sender(cut(body, 60_000)), tmp_path, limits=limits)
    assert len(document) == 1024 * 1024
    body = form(manifest(bytes(1024 * 1024 + 1)))
    error = await refused_batch(Sender(cut(body, 60_000)), tmp_path, limits=limits)
    assert isinstance(error, BatchTooLarge)
