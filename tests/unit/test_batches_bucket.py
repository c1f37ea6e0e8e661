"""`gs://bucket/prefix`: what it is, what it is not, and what an item is called."""

import pytest

from app.batches.bucket import ObjectPrefix, relative_name


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("gs://photos/", "photos", ""),
        ("gs://photos/2026/11", "photos", "2026/11"),
        ("gs://my.photos_2-b//a?b#c*[1] \u00e4", "my.photos_2-b", "/a?b#c*[1] \u00e4"),
        ("gs://photos/../images/x", "photos", "../images/x"),
        ("gs://photos/" + "\u00e4" * 512, "photos", "\u00e4" * 512),
    ],
)
def test_valid_prefixes(text: str, bucket: str, prefix: str) -> None:
    assert ObjectPrefix.parse(text) == ObjectPrefix(bucket, prefix)


@pytest.mark.parametrize(
    "text",
    [
        *("", "photos", "gs://", "gs://photos", "gs:///a", "gs://ab/", "GS://photos/a"),
        *("https://photos/a", "file:///etc/passwd", "gs://Photos/a", "gs://u:p@photos/a"),
        *("gs://photos:443/a", "gs://pho tos/a", "gs://-photos/a", "gs://photos./a"),
        *(" gs://photos/a", "gs://photos/a\nb", "gs://photos/a\n", "gs://photos/\ud800"),
        *("gs://photos/" + "\u00e4" * 513, f"gs://{'a' * 223}/"),
    ],
)
def test_invalid_prefixes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is "):
        ObjectPrefix.parse(text)


@pytest.mark.parametrize(
    ("prefix", "name", "shown"),
    [
        ("", "a.jpg", "a.jpg"),
        ("2026/", "2026/a.jpg", "a.jpg"),
        ("2026/a.jpg", "2026/a.jpg", "a.jpg"),
        ("2026/a", "2026/ab/c.jpg", "ab/c.jpg"),
        ("", "/../../etc/./passwd", "etc/passwd"),
        ("", "a\x1b[31m\r\n/b\u202e.jpg", "a[31m/b.jpg"),
        ("", "c:\\..\\x.jpg", "x.jpg"),
        ("", "a/" + "x" * 300, "a/" + "x" * 198),
    ],
)
def test_names_are_relative_to_the_folder_of_the_prefix(prefix: str, name: str, shown: str) -> None:
    assert relative_name(name, ObjectPrefix("photos", prefix)) == shown
