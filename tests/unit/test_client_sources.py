"""What the client takes as images, and what it finds in folders."""

import hashlib
import io
from pathlib import Path

import pytest
from glimpse_client.jobs import Item, split
from glimpse_client.sources import Source, find_images, source_of
from PIL import Image


def test_bytes_files_and_pictures(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    with file.open("rb") as opened:
        sources = [source_of(each) for each in (file, str(file), b"abc", bytearray(b"abc"), opened)]
    assert [each.sha256() for each in sources] == [digest] * 5
    assert [each.size() for each in sources] == [3] * 5
    picture = Image.new("RGB", (4, 4), "red")
    drawn = source_of(picture)
    assert Image.open(io.BytesIO(drawn.read())).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(TypeError, match="binary mode"):
        source_of(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not <class 'int'>"):
        source_of(3)  # type: ignore[arg-type]


def test_folders_are_searched_for_images(tmp_path: Path) -> None:
    for name in (
        "b.JPG", "a.png", "notes.txt", ".hidden.jpg", "Thumbs.db", "in/c.webp", "in/deeper/a.png",
        "@eaDir/a.jpg", "__MACOSX/a.jpg", ".git/a.jpg",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert [each.name for each in find_images([tmp_path])] == ["a.png", "b.JPG"]
    names = [each.name for each in find_images([tmp_path], recursive=True)]
    assert names == ["a.png", "b.JPG", "in/c.webp", "in/deeper/a.png"]
    odd = tmp_path / "notes.txt"
    assert [each.path for each in find_images([odd])] == [odd], "a named file is taken as it is"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(find_images([tmp_path / "nowhere"]))


def test_a_lazy_file_is_open_only_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"0123456789")
    lazy = Source("a", path=file).lazy()
    assert lazy.seek(0, io.SEEK_END) == 10
    assert lazy.seek(0) == 0
    assert lazy.read(4) == b"0123"
    assert lazy.read() == b"456789"
    assert lazy.read() == b""
    lazy.seek(8)
    assert lazy.read(10) == b"89"
    lazy.seek(0)
    file.write_bytes(b"01")
    assert lazy.read(2) == b"01"
    with pytest.raises(OSError, match="shorter"):
        lazy.read(2)


def _item(number: int, size: int) -> Item:
    return Item(Source(str(number)), f"{number:064x}", size, (str(number),))


def test_batches_are_split_by_bytes_to_send_and_by_count() -> None:
    items = [_item(n, 400) for n in range(10)]
    everything = {item.hash for item in items}
    parts = list(split(items, everything, max_bytes=3 * (400 + 1024)))
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    assert [item for part in parts for item in part] == items
    assert [len(part) for part in split(items, set(), max_bytes=1)] == [10], (
        "known ones weigh nothing"
    )
    many = [_item(n, 1) for n in range(2500)]
    assert [len(part) for part in split(many, set())] == [1000, 1000, 500]
    assert [len(part) for part in split(items, everything, max_bytes=1)] == [1] * 10
    assert list(split([], set())) == []
