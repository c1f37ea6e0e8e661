"""Forms are read one image at a time, within limits."""

import hashlib
from pathlib import Path
from zipfile import ZIP_STORED

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batches.limits import BatchLimits
from core.errors import BatchTooLarge, InvalidRequest, MalformedBody
from tests.support.batches import archive, cut, form, manifest, part, read_batch, refused_batch
from tests.support.sender import Sender

# What a browser sends for a field in which no file is chosen.
NO_FILE = b'Content-Disposition: form-data; name="imgs"; filename=""\r\n\r\n'
UNUSUAL = [
    "Screenshot at 9.41.00\u202fAM.png",
    "\U0001f469\u200d\U0001f680 \u3000\xa0.png",
    " leading and trailing .jpg ",
]
BROWSER = "Mozilla/5.0 (X11; Linux x86_64)"


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
        (b"../../etc/passwd", "etc/passwd"),
        (b"cats/IMG_0001.jpg", "cats/IMG_0001.jpg"),
        (b"/home/me/cat.jpg", "cat.jpg"),
        (b"C:\\\\photos\\\\cat.jpg", "cat.jpg"),
        (b"/", ""),
        (b"a\x1b[31m\x7f.jpg", "a\ufffd[31m\ufffd.jpg"),
        ("\u202egpj.exe".encode(), "\ufffdgpj.exe"),
        ("Büro €.png".encode(), "Büro €.png"),
        (b"\xff\xfe.jpg", "\xff\xfe.jpg"),
        ("Müller.jpg".encode("latin-1"), "Müller.jpg"),
        (b"5 \x80.jpg", "5 \u20ac.jpg"),
        (b"\x81.jpg", "\ufffd.jpg"),
        (b"x" * 900, "x" * 500),
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
        (form(part(b"x", "img")), "in the field 'imgs'"),
        (form(part(b"x" * 90_000, "file")), "file in the field 'file'"),
        (form(NO_FILE), "No file was chosen"),
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


@pytest.mark.parametrize(
    ("disposition", "shown"),
    [
        (b"filename*=UTF-8''M%C3%BCller.jpg", "Müller.jpg"),
        (b"filename*=iso-8859-1'de'M%FCller.jpg", "Müller.jpg"),
        (b"filename=\"M_ller.jpg\"; filename*=utf-8''M%c3%bcller.jpg", "Müller.jpg"),
        (b"filename*=nonsense''a%FF.jpg", "a\ufffd.jpg"),
        (b"filename*=nonsense''a%FF.jpg; filename=b.jpg", "b.jpg"),
        (b"filename*=UTF-8''; filename=b.jpg", "b.jpg"),
        (b"filename*0=M\xfc; filename*1=ller.jpg", "Müller.jpg"),
        (b'filename*0="long "; filename*1="name.jpg"', "long name.jpg"),
        (b"filename*0*=UTF-8''M%C3; filename*1*=%BCller.jpg", "Müller.jpg"),
        (b'filename="my%20cat%20%282%29.jpg"', "my cat (2).jpg"),
        (b'filename="%E7%8C%AB.jpg"', "猫.jpg"),
        (b'filename="100% cotton.jpg"', "100% cotton.jpg"),
        (b'filename="50%25.jpg"', "50%.jpg"),
        (b'filename="a%zz.jpg"', "a%zz.jpg"),
        (b'filename="=?utf-8?B?TcO8bGxlci5qcGc=?="', "Müller.jpg"),
        (b'filename="=?utf-8?Q?M=C3=BCller.jpg?="', "Müller.jpg"),
        (b'filename="=?nonsense?B?TcO8?="', "=?nonsense?B?TcO8?="),
        (b'filename="a \\"quoted\\" name.jpg"', 'a "quoted" name.jpg'),
        (b"filename=plain.jpg", "plain.jpg"),
        *((f'filename="{name}"'.encode(), name) for name in UNUSUAL),
        (b'FileName="case.jpg"', "case.jpg"),
        (b'filename="a;b.jpg"', "a;b.jpg"),
    ],
)
async def test_name_is_read_as_its_client_meant_it(
    tmp_path: Path, disposition: bytes, shown: str
) -> None:
    content = b'Content-Disposition: form-data; name="imgs"; ' + disposition + b"\r\n\r\nx"
    stored, _ = await read_batch(form(content), tmp_path)
    assert stored.items[0].name == shown


async def test_browser_encodes_quotes_alone(tmp_path: Path) -> None:
    body = form(part(b"x", filename=b"my%20cat%22.jpg"))
    stored, _ = await read_batch(body, tmp_path, user_agent=BROWSER)
    assert stored.items[0].name == 'my%20cat".jpg'


async def test_preamble_and_folded_headers_are_read(tmp_path: Path) -> None:
    folded = b'Content-Disposition: form-data;\r\n name="imgs";\r\n\tfilename="a.jpg"\r\n\r\nx'
    body = b"This is a message in several parts.\r\n" * 40 + form(folded) + b"epilogue"
    stored, _ = await read_batch(body, tmp_path)
    assert [
        (each.name, content) for each, content in zip(stored.items, stored.bytes, strict=True)
    ] == [("a.jpg", b"x")]


async def test_zip_in_a_form_is_read_as_its_images(tmp_path: Path) -> None:
    """It may be larger than an image, and stand between images."""
    zipped = archive([("x/a.jpg", b"a" * 900), ("Thumbs.db", b"t"), ("b.jpg", b"b")], ZIP_STORED)
    assert len(zipped) > 1000
    body = form(part(b"1"), part(zipped, filename=b"photos.zip"), part(b"2"), manifest(b"{}"))
    for size in (3, 64, 10_000):
        stored, document = await read_batch(Sender(cut(body, size)), tmp_path)
        assert stored.bytes == [b"1", b"a" * 900, b"b", b"2"]
        assert [each.name for each in stored.items] == ["a.jpg", "x/a.jpg", "b.jpg", "a.jpg"]
        assert (stored.skipped, document) == (1, b"{}")
    assert list((tmp_path / "spool").iterdir()) == []


async def test_zips_of_a_form_count_as_their_images(tmp_path: Path) -> None:
    three = archive([(f"{n}.jpg", b"x") for n in range(3)])
    error = await refused_batch(form(part(three), part(three)), tmp_path)
    assert isinstance(error, BatchTooLarge)
    assert error.extra == {"max_items": 5}
    large = archive([(f"{n}.jpg", bytes(3900)) for n in range(2)])
    limits = BatchLimits(max_bytes=10_000, max_image_bytes=4000, max_items=5)
    assert len((await read_batch(form(part(large)), tmp_path, limits=limits))[0].items) == 2
    assert isinstance(
        await refused_batch(form(part(large), part(large)), tmp_path, limits=limits), BatchTooLarge
    )


async def test_broken_zip_in_a_form_is_refused(tmp_path: Path) -> None:
    zipped = archive([("a.jpg", b"x")])
    assert isinstance(await refused_batch(form(part(zipped[:-5])), tmp_path), MalformedBody)
    assert list((tmp_path / "spool").iterdir()) == []


async def test_clutter_and_empty_fields_of_a_form_are_skipped(tmp_path: Path) -> None:
    body = form(part(b"x"), part(b"y", filename=b"x/Thumbs.db"), NO_FILE)
    stored, _ = await read_batch(body, tmp_path)
    assert (stored.bytes, stored.skipped) == ([b"x"], 1)
