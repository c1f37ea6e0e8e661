"""The text of API keys: its form, its recognition, its digest."""

import re
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.key_tokens import KEY_ID, KeyHasher, display

HASHER = KeyHasher(b"s" * 32)


def test_key_has_its_form_and_more_than_256_random_bits() -> None:
    token = HASHER.new()
    assert re.fullmatch(r"glp_[0-9a-z]{12}[0-9A-Za-z]{43}[0-9A-Za-z]{8}", token.text)
    assert KEY_ID.fullmatch(token.key_id)
    assert token.text[4:16] == token.key_id
    assert 62**43 > 2**256
    assert len(token.digest) == 32


def test_keys_are_distinct_and_use_every_character() -> None:
    texts = [HASHER.new().text for _ in range(300)]
    assert len(set(texts)) == 300
    assert len(set("".join(text[16:59] for text in texts))) == 62


def test_key_is_recognised_only_with_the_secret() -> None:
    token = HASHER.new()
    assert HASHER.key_id(token.text.encode()) == token.key_id
    assert HASHER.digest(token.text.encode()) == token.digest
    other = KeyHasher(b"t" * 32)
    assert other.key_id(token.text.encode()) is None
    assert other.digest(token.text.encode()) != token.digest


def test_rotated_key_keeps_its_id() -> None:
    first = HASHER.new()
    second = HASHER.new(first.key_id)
    assert second.key_id == first.key_id
    assert second.text != first.text
    assert HASHER.key_id(second.text.encode()) == first.key_id


@given(st.binary(max_size=100))
def test_other_text_is_not_a_key(text: bytes) -> None:
    assert HASHER.key_id(text) is None


@given(st.integers(0, 66), st.sampled_from(b"aZ9_\n\x00\xff"))
def test_key_with_a_changed_character_is_not_a_key(place: int, character: int) -> None:
    good = HASHER.new().text.encode()
    bad = good[:place] + bytes([character]) + good[place + 1 :]
    assert bad == good or HASHER.key_id(bad) is None


@pytest.mark.parametrize("around", [b"%b ", b" %b", b"%b\n", b"%b%b"])
def test_text_around_a_key_is_not_accepted(around: bytes) -> None:
    text = HASHER.new().text.encode()
    filled = around % ((text,) * around.count(b"%b"))
    assert HASHER.key_id(filled) is None


def test_displayed_part_does_not_contain_the_secret() -> None:
    token = HASHER.new()
    assert display(token.key_id) == f"glp_{token.key_id}…"
    assert token.text not in repr(token)
    assert repr(token.digest) not in repr(token)


def test_short_secret_is_refused_and_a_long_one_is_used_completely() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyHasher(b"s" * 31)
    long = secrets.token_bytes(200)
    token = KeyHasher(long).new().text.encode()
    assert KeyHasher(long).key_id(token)
    assert KeyHasher(long[:-1] + bytes([long[-1] ^ 1])).key_id(token) is None
