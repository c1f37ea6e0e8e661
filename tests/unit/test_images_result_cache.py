"""The cache of results forgets exactly the image that was deleted."""

from app.images.representation import Representation
from app.images.result_cache import MAX_CACHED_BYTES, ResultCache
from core.domain.records import RecordKey, Status

IMAGE, OTHER = "a" * 64, "b" * 64
OLD, NEW = "colours@000000000000", "colours@111111111111"


def result(image_hash: str = IMAGE, status: Status = Status.SUCCESS) -> Representation:
    return Representation(image_hash, OLD, status, b"{}", '"tag"')


def test_large_result_is_not_kept() -> None:
    cache = ResultCache(10, 60)
    key = RecordKey("acme", IMAGE, OLD)
    for size, kept in ((MAX_CACHED_BYTES + 1, False), (MAX_CACHED_BYTES, True)):
        cache.put(key, Representation(IMAGE, OLD, Status.SUCCESS, b"x" * size, '"tag"'))
        assert (cache.get(key) is not None) is kept


def test_deleted_image_is_forgotten_under_every_model_of_its_tenant_alone() -> None:
    cache = ResultCache(10, 60)
    deleted = [RecordKey("acme", IMAGE, model) for model in (OLD, NEW)]
    kept = [
        *(RecordKey("other", IMAGE, model) for model in (OLD, NEW)),
        *(RecordKey("acme", OTHER, model) for model in (OLD, NEW)),
    ]
    for key in [*deleted, *kept]:
        cache.put(key, result(key.image_hash))
    cache.drop_image("acme", IMAGE)
    assert [cache.get(key) for key in deleted] == [None, None]
    assert [cache.get(key) for key in kept] == [result(key.image_hash) for key in kept]


def test_only_successes_are_kept() -> None:
    cache = ResultCache(10, 60)
    key = RecordKey("acme", IMAGE, OLD)
    for status in set(Status) - {Status.SUCCESS}:
        cache.put(key, result(status=status))
        assert cache.get(key) is None


def test_number_of_entries_is_bounded() -> None:
    cache = ResultCache(2, 60)
    keys = [RecordKey("acme", digit * 64, OLD) for digit in "abc"]
    for key in keys:
        cache.put(key, result(key.image_hash))
    assert sum(cache.get(key) is not None for key in keys) == 2


def test_no_entries_means_no_cache() -> None:
    cache = ResultCache(0, 60)
    key = RecordKey("acme", IMAGE, OLD)
    cache.put(key, result())
    assert cache.get(key) is None
