"""The image of a form or a raw body is read exactly, whatever its chunks."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from app.uploads.image_upload import Upload, read_upload
from app.uploads.limiter import CHUNK_BYTES, UploadLimiter, UploadLimits
from core.errors import GlimpseError, ImageTooLarge, InvalidRequest, MalformedBody
from core.settings import FORM_OVERHEAD
from tests.support.sender import Sender

LIMIT = 1000
LIMITS = UploadLimits(max_bytes=2**30, min_bytes_per_second=1)
BOUNDARY = "frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(content: bytes, disposition: bytes = b'form-data; name="img"; filename="a.jpg"') -> bytes:
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + content


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    delimiter = b"--" + BOUNDARY.encode()
    return b"".join(delimiter + b"\r\n" + each + b"\r\n" for each in parts) + delimiter + end


async def read(
    body: bytes | Sender,
    content_type: str = FORM,
    *,
    length: str | None = None,
    form_only: bool = False,
    limit: int = LIMIT,
) -> Upload:
    sender = body if isinstance(body, Sender) else Sender([body])
    headers = [(b"content-type", content_type.encode())] if content_type else []
    if length is not None:
        headers.append((b"content-length", length.encode()))
    request = Request({"type": "http", "method": "POST", "headers": headers}, sender)
    with UploadLimiter(LIMITS).slot() as slot:
        return await read_upload(request, limit, slot, form_only=form_only)


async def refusal(*args: object, **kwargs: object) -> GlimpseError:
    with pytest.raises(GlimpseError) as refused:
        await read(*args, **kwargs)  # type: ignore[arg-type]
    return refused.value


async def test_field_img_is_read_and_hashed() -> None:
    upload = await read(form(part(b"bytes")))
    assert bytes(upload.data) == b"bytes"
    assert upload.image_hash == hashlib.sha256(b"bytes").hexdigest()


async def test_raw_body_of_any_type_is_read_and_hashed() -> None:
    for content_type in ("image/jpeg", "application/octet-stream", "text/plain", ""):
        assert bytes((await read(b"bytes", content_type)).data) == b"bytes"


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(1, 40), max_size=30))
async def test_any_chunk_boundaries_give_the_same_image(content: bytes, cuts: list[int]) -> None:
    body = form(part(b"ignored", b'form-data; name="note"'), part(content), part(b"", b"form-data"))
    chunks, begin = [], 0
    for cut in cuts:
        chunks.append(body[begin : begin + cut])
        begin += cut
    upload = await read(Sender([*chunks, body[begin:]]))
    assert bytes(upload.data) == content
    assert upload.image_hash == hashlib.sha256(content).hexdigest()


async def test_content_that_looks_like_a_boundary_is_content() -> None:
    content = b"\r\n--frontie\r\n--frontie!\r\n--\r\n-frontier\r\n--Frontier\r\n"
    assert bytes((await read(form(part(content)))).data) == content


async def test_line_that_begins_with_the_boundary_is_no_content() -> None:
    """RFC 2046, 5.1.1: clients must choose a boundary that begins no line of their content."""
    assert isinstance(await refusal(form(part(b"\r\n--frontier!\r\n"))), MalformedBody)


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="img"',
        b"form-data; name=img",
        b'form-data; name="img"; filename=""',
        b'form-data; name="img"; filename="../../etc/passwd"',
        b'form-data; name="img"; filename="C:\\\\temp\\\\cat.jpg"',
        b'form-data; name="img"; filename="\xff\xfe\x00.jpg"',
        b'form-data; name="img"; filename="a;b=\\"c\\".jpg"',
        b"form-data; name=\"img\"; filename*=UTF-8''%e2%82%ac.jpg",
    ],
)
async def test_file_names_do_not_matter(disposition: bytes) -> None:
    assert bytes((await read(form(part(b"bytes", disposition)))).data) == b"bytes"


async def test_limit_counts_only_the_image_and_is_exact() -> None:
    note = part(bytes(500), b'form-data; name="note"')
    assert len((await read(form(note, part(bytes(LIMIT))))).data) == LIMIT
    assert isinstance(await refusal(form(note, part(bytes(LIMIT + 1)))), ImageTooLarge)
    assert len((await read(bytes(LIMIT), "image/png")).data) == LIMIT
    assert isinstance(await refusal(bytes(LIMIT + 1), "image/png"), ImageTooLarge)


@pytest.mark.parametrize(
    ("content_type", "length"), [("image/png", LIMIT + 1), (FORM, LIMIT + FORM_OVERHEAD + 1)]
)
async def test_announced_excess_is_refused_unread(content_type: str, length: int) -> None:
    sender = Sender([])
    assert isinstance(await refusal(sender, content_type, length=str(length)), ImageTooLarge)
    assert sender.taken == 0


@pytest.mark.parametrize("length", [None, "10", "ten", "-5", "٣"])
async def test_unannounced_excess_is_refused_while_reading(length: str | None) -> None:
    sender = Sender([bytes(400)] * 100)
    error = await refusal(sender, "image/png", length=length)
    assert isinstance(error, ImageTooLarge)
    assert error.extra == {"max_bytes": LIMIT}
    assert sender.taken == 3


async def test_large_messages_are_read_completely() -> None:
    content = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"tail"
    upload = await read(form(part(content)), limit=len(content))
    assert bytes(upload.data) == content
    assert upload.image_hash == hashlib.sha256(content).hexdigest()


async def test_size_of_other_fields_is_limited() -> None:
    note = part(bytes(FORM_OVERHEAD + 1), b'form-data; name="note"')
    assert isinstance(await refusal(form(note), limit=10 * FORM_OVERHEAD), ImageTooLarge)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (form(part(b"x", b'form-data; name="image"')), "'img'"),
        (form(part(b"x" * 99, b'form-data; name="image"; filename="a.jpg"')), "in the field 'img'"),
        (
            form(part(bytes(FORM_OVERHEAD + 500), b'form-data; name="file"; filename="a.jpg"')),
            "in the field 'img'",
        ),
        (form(part(b"")), "'img' is empty"),
        (form(part(b"x"), part(b"y")), "more than one field 'img'"),
        (form(*[part(b"", b'form-data; name="note"')] * 40), "more than 32 parts"),
        (form(b"Content-Type: image/png\r\n\r\nx"), "'img'"),
        (b"--frontier--\r\n", "'img'"),
    ],
)
async def test_forms_without_exactly_one_image_are_invalid(body: bytes, detail: str) -> None:
    error = await refusal(body)
    assert isinstance(error, InvalidRequest)
    assert detail in error.detail


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", FORM),
        (b"no form at all", FORM),
        (form(part(b"bytes"), end=b""), FORM),
        (form(part(b"bytes"))[:40], FORM),
        (form(b"no headers here"), FORM),
        (form(b"X: " + b"y" * 20_000 + b"\r\n\r\n"), FORM),
        (form(b"".join(b"X%d: y\r\n" % i for i in range(100)) + b"\r\n"), FORM),
        (form(part(b"bytes")), "multipart/form-data"),
        (form(part(b"bytes")), "multipart/form-data; boundary="),
        (form(part(b"bytes")), f"multipart/form-data; boundary={'b' * 500}"),
    ],
)
async def test_unparsable_forms_are_malformed(body: bytes, content_type: str) -> None:
    assert isinstance(await refusal(body, content_type), MalformedBody)


async def test_form_whose_lines_end_with_lf_is_told_so() -> None:
    body = form(part(b"bytes")).replace(b"\r\n", b"\n")
    assert "must end with CR LF" in (await refusal(body, FORM)).detail


async def test_empty_raw_body_is_invalid() -> None:
    assert isinstance(await refusal(b"", "image/png"), InvalidRequest)


async def test_raw_body_is_refused_unread_if_a_form_is_required() -> None:
    sender = Sender([b"bytes"])
    error = await refusal(sender, "image/png", form_only=True)
    assert isinstance(error, InvalidRequest)
    assert error.extra == {"field": "img"}
    assert sender.taken == 0


@pytest.mark.parametrize("content_type", [FORM, "image/png"])
async def test_disconnect_is_raised(content_type: str) -> None:
    with pytest.raises(ClientDisconnect):
        await read(Sender([form(part(b"bytes"))], leaves=True), content_type)
