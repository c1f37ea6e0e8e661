"""Locations of bundles: `gs://bucket/folder`, or a path."""

import pytest

from core.bundles.location import BucketFolder


@pytest.mark.parametrize(
    ("uri", "bucket", "folder"),
    [
        ("gs://models/vit", "models", "vit"),
        ("gs://models/vit/", "models", "vit"),
        ("gs://my.models_2-b/2026/vit-base@1 ä", "my.models_2-b", "2026/vit-base@1 ä"),
        ("gs://models/" + "a" * 900, "models", "a" * 900),
    ],
)
def test_a_uri_has_a_bucket_and_a_folder(uri: str, bucket: str, folder: str) -> None:
    found = BucketFolder.of(uri)
    assert found == BucketFolder(bucket, folder)
    assert found is not None
    assert str(found) == uri.rstrip("/")
    assert found.object("model.json") == f"{folder}/model.json"


@pytest.mark.parametrize(
    "path", ["models/default", "/srv/bundles/x", ".", "", "gs:/models/x", "C:\\models", "gs/x"]
)
def test_a_path_is_not_a_bucket_folder(path: str) -> None:
    assert BucketFolder.of(path) is None


@pytest.mark.parametrize(
    "uri",
    [
        *("gs://", "gs://models", "gs://models/", "gs:///vit", "gs://models//", "gs://models//x"),
        *("gs://models/a//b", "gs://models/../x", "gs://models/a/./b", "gs://models/x//"),
        *("gs://Models/x", "gs://a/x", "gs://models:443/x", "gs://u:p@models/x", "gs://mod els/x"),
        *("GS://models/x", "s3://models/x", "https://models/x", "file:///srv/bundles"),
        *("gs://models/a\nb", "gs://models/a\x00b", "gs://models/" + "a" * 901),
        "gs://models/" + "ä" * 451,
    ],
)
def test_an_invalid_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"^is "):
        BucketFolder.of(uri)
