"""Messages and envelopes: any input gives an envelope or MalformedEnvelope."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.messages import ClassifyImage, MakeThumbnail, PushEnvelope, message_of
from core.domain.records import RecordKey
from core.errors import MalformedEnvelope

KEY = RecordKey("public", "ab" * 32, "colours@0123456789ab")

keys = st.builds(
    RecordKey,
    tenant=st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"),
    image_hash=st.from_regex(r"\A[0-9a-f]{64}\Z"),
    model=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}@[0-9a-f]{12}\Z"),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(key=keys, traceparent=st.text())
def test_message_round_trips_through_its_attributes(key: RecordKey, traceparent: str) -> None:
    message = ClassifyImage(key, traceparent)
    assert ClassifyImage.from_attributes(message.attributes()) == message


@given(key=keys, traceparent=st.text())
def test_thumbnail_message_round_trips_through_its_attributes(
    key: RecordKey, traceparent: str
) -> None:
    message = MakeThumbnail(key.tenant, key.image_hash, traceparent)
    assert message_of(message.attributes()) == message
    for name in ("tenant", "image_hash"):
        with pytest.raises(MalformedEnvelope, match=name):
            message_of({**message.attributes(), name: "a/b"})


@given(key=keys)
def test_message_round_trips_through_the_envelope_of_the_emulator(key: RecordKey) -> None:
    """As seen with Pub/Sub's emulator 0.8.20: names twice, no attempt, unknown fields."""
    message = ClassifyImage(key)
    body = json.dumps(
        {
            "subscription": "projects/demo/subscriptions/p",
            "message": {
                "publishTime": "2026-11-21T09:30:00.125Z",
                "publish_time": "2026-11-21T09:30:00.125Z",
                "messageId": "1",
                "message_id": "1",
                "data": "aGVsbG8=",
                "attributes": message.attributes(),
            },
        }
    )
    envelope = PushEnvelope.parse(body.encode())
    assert envelope.image_message() == message
    assert envelope.message.payload() == b"hello"
    assert envelope.deliveryAttempt is None


@pytest.mark.parametrize("name", ["tenant", "image_hash", "model"])
def test_missing_attribute_is_named(name: str) -> None:
    attributes = ClassifyImage(KEY).attributes()
    del attributes[name]
    with pytest.raises(MalformedEnvelope, match=name):
        ClassifyImage.from_attributes(attributes)


@given(body=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedEnvelope):
        PushEnvelope.parse(body).image_message()


@given(
    message=json_values,
    subscription=json_values,
    attempt=json_values,
)
def test_arbitrary_json_is_refused(message: object, subscription: object, attempt: object) -> None:
    body = {"message": message, "subscription": subscription, "deliveryAttempt": attempt}
    with pytest.raises(MalformedEnvelope):
        PushEnvelope.parse(json.dumps(body).encode()).image_message()


@given(
    field=st.sampled_from(["messageId", "attributes", "data", "image_hash", "tenant", "model"]),
    value=json_values,
)
def test_wrong_field_is_refused_or_harmless(field: str, value: object) -> None:
    attributes: dict[str, object] = {**ClassifyImage(KEY).attributes()}
    message: dict[str, object] = {"messageId": "1", "attributes": attributes, "data": ""}
    (attributes if field in attributes else message)[field] = value
    body = json.dumps({"message": message, "subscription": "s"}).encode()
    try:
        found = PushEnvelope.parse(body).image_message()
    except MalformedEnvelope:
        return
    if isinstance(found, MakeThumbnail):
        return  # the changed field is the kind
    # If it is accepted, the key is well-formed, and only the changed field differs.
    changed = {"image_hash", "tenant", "model"} & {field}
    for name in {"image_hash", "tenant", "model"} - changed:
        assert getattr(found.key, name) == getattr(KEY, name)
