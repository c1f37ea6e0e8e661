"""One classifier process: batches of images, their errors, and the protocol's frames."""

import base64
import io
import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from PIL import Image

from core.bundles.bundle import read_bundle, write_sums
from tests.support.bundles import write_colour_bundle, write_failing_bundle, write_network
from tests.support.heads import write_head
from tests.support.pictures import encode, picture, sha256
from worker.inference.process import Models, Reply
from worker.inference.protocol import (
    EMBEDDING,
    FILE,
    IMAGE,
    LOAD,
    MAX_BATCH,
    REPLY,
    Frame,
    FrameReader,
    packed_reply,
)

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
BLACK = encode(Image.new("RGB", (16, 16)), "PNG")
PHOTOS = {name: picture(3, rgb, (40, 40)) for name, rgb in COLOURS.items()}


def name_of(folder: Path) -> bytes:
    bundle = read_bundle(folder)
    return json.dumps([bundle.identity, str(folder)]).encode()


@pytest.fixture
def name(tmp_path: Path) -> bytes:
    return name_of(write_colour_bundle(tmp_path / "colours"))


@pytest.fixture
def models(name: bytes) -> Models:
    """The colour model, loaded and measured with one image.

    The clock advances by a millisecond at each call, so an image always takes a millisecond.
    """
    ticks = itertools.count()
    models = Models(2, max_pixels=10**6, labels_per_image=3, now=lambda: next(ticks) / 1000)
    warm_up = [Frame(LOAD, name, b""), Frame(IMAGE, name, PHOTOS["red"])]
    assert [len(replies) for replies in models.answers(warm_up)] == [1, 1]
    return models


def labels(replies: list[Reply]) -> list[str]:
    return [reply["annotations"][0][0] for reply in replies]


def sizes(models: Models, frames: list[Frame]) -> list[int]:
    return [len(replies) for replies in models.answers(frames)]


def test_waiting_images_run_as_a_batch_and_are_answered_in_order(
    models: Models, name: bytes
) -> None:
    asked = ["red", "green", "blue", "green", "red", "blue"]
    frames = [Frame(IMAGE, name, PHOTOS[each]) for each in asked]
    groups = list(models.answers(frames))
    assert [len(group) for group in groups] == [MAX_BATCH, 2]
    assert labels([reply for group in groups for reply in group]) == asked


def test_folder_that_holds_another_model_by_now_is_not_loaded(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path / "changed")
    name = name_of(folder)
    write_colour_bundle(folder, sharpness=5.0)
    models = Models(2, max_pixels=10**6, labels_per_image=3)
    ((reply,),) = models.answers([Frame(IMAGE, name, PHOTOS["red"])])
    assert "the folder now holds colours@" in reply["error"][1]


def test_result_does_not_depend_on_the_batch(models: Models, name: bytes) -> None:
    frames = [Frame(IMAGE, name, photo) for photo in PHOTOS.values()]
    (together,) = models.answers(frames)
    alone = [reply for frame in frames for (reply,) in models.answers([frame])]
    for one, other in zip(together, alone, strict=True):
        said, expected = dict(one["annotations"]), dict(other["annotations"])
        assert said == pytest.approx(expected, abs=1e-6)
        # Its own decoding, and the inference that it shared.
        assert [step.name for step in one["steps"]] == ["decode", "infer"]
    (shared,) = {reply["steps"][1] for reply in together}
    assert shared.images == 3
    assert all(reply["steps"][0].images == 1 for reply in together)


def test_broken_image_in_a_batch_fails_alone(models: Models, name: bytes, tmp_path: Path) -> None:
    red, other = tmp_path / sha256(PHOTOS["red"]), tmp_path / sha256(PHOTOS["green"])
    for file in (red, other):
        file.write_bytes(PHOTOS["red"])
    frames = [
        Frame(IMAGE, name, b"no picture"),
        Frame(FILE, name, str(red).encode()),
        Frame(FILE, name, str(tmp_path / "absent").encode()),
        Frame(IMAGE, name, PHOTOS["blue"]),
    ]
    (replies,) = models.answers(frames)
    assert [reply.get("error", [""])[0] for reply in replies] == [
        *("undecodable_image", "", "not_found", "")
    ]
    assert labels([replies[1], replies[3]]) == ["red", "blue"]
    assert [step.name for step in replies[1]["steps"]] == ["read image", "decode", "infer"]
    (replies,) = models.answers([Frame(FILE, name, str(other).encode())])
    assert replies[0]["error"][:2] == ["not_found", "The stored image is damaged."]
    # A batch of broken images runs no inference.
    (replies,) = models.answers([Frame(IMAGE, name, b"no picture")] * MAX_BATCH)
    assert {reply["error"][0] for reply in replies} == {"undecodable_image"}
    assert sizes(models, [Frame(IMAGE, name, PHOTOS["red"])] * MAX_BATCH) == [MAX_BATCH]


def test_frame_marked_alone_is_not_batched(models: Models, name: bytes) -> None:
    one, alone = Frame(IMAGE, name, PHOTOS["red"]), Frame(IMAGE, name, PHOTOS["red"], alone=True)
    assert sizes(models, [one, alone, one, one]) == [1, 1, 2]
    assert sizes(models, [alone, one, one, alone]) == [1, 2, 1]


def test_images_of_different_models_are_not_batched(
    models: Models, name: bytes, tmp_path: Path
) -> None:
    other = name_of(write_colour_bundle(tmp_path / "other", name="other"))
    frames = [Frame(IMAGE, each, PHOTOS["red"]) for each in (name, name, other, other)]
    # The other model has no measurement before its first image.
    assert sizes(models, frames) == [2, 1, 1]
    assert sizes(models, frames) == [2, 2]
    loading = Frame(LOAD, name, b"")
    assert sizes(models, [frames[0], loading, frames[0], frames[0]]) == [1, 1, 2]


def test_batch_size_falls_with_the_time_of_an_image(models: Models, name: bytes) -> None:
    frames = [Frame(IMAGE, name, PHOTOS["red"])] * 8
    model = models._loaded[name]
    for seconds, most in ((0.001, MAX_BATCH), (0.03, 3), (0.05, 2), (0.2, 1)):
        model.seconds = seconds
        assert len(next(models.answers(frames))) == most
    # One slow image affects the batch size only briefly.
    model.seconds = 0.2
    assert MAX_BATCH in sizes(models, frames * 4)


def test_network_that_fails_on_batches_gets_single_images(models: Models, tmp_path: Path) -> None:
    weights = {"flat": np.array([1, 192], np.int64), "weight": np.ones((192, 6), np.float32)}
    folder = write_network(
        tmp_path / "one",
        nodes=[
            helper.make_node("Reshape", ["pixels", "flat"], ["row"]),  # of one image exactly
            helper.make_node("MatMul", ["row", "weight"], ["scores"]),
        ],
        shape=["batch", 3, 8, 8],
        initializers=weights,
    )
    frames = [Frame(IMAGE, name_of(folder), photo) for photo in PHOTOS.values()]
    assert sizes(models, frames) == [1, 2]  # the batch of two failed and was repeated
    assert sizes(models, frames) == [1, 1, 1]
    for replies in models.answers(frames):
        assert "error" not in replies[0]


def test_failed_batch_is_repeated_image_by_image(models: Models, tmp_path: Path) -> None:
    """The next images run as a batch again."""
    name = name_of(write_failing_bundle(tmp_path / "failing"))
    dark, lit = Frame(IMAGE, name, BLACK), Frame(IMAGE, name, PHOTOS["red"])
    assert sizes(models, [dark]) == [1]
    (replies,) = models.answers([dark, lit, dark])
    assert ["error" in reply for reply in replies] == [False, True, False]
    assert replies[1]["error"][0] == "inference_failed"
    assert sizes(models, [dark, dark]) == [2]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, FrameReader]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, FrameReader(theirs)


def packed(*frames: Frame) -> bytes:
    return b"".join(b"".join(frame.packed()) for frame in frames)


ONE, TWO = Frame(IMAGE, b"name", b"one"), Frame(FILE, b"other", b"/two", alone=True)


def test_frames_arrive_as_sent(ends: tuple[socket.socket, FrameReader]) -> None:
    ours, reader = ends
    ours.sendall(packed(ONE, TWO, Frame(LOAD, b"name", b"")))
    assert reader.take(4) == [ONE, TWO, Frame(LOAD, b"name", b"")]
    ours.shutdown(socket.SHUT_WR)
    assert reader.take(4) == []


def test_reader_takes_at_most_the_limit_and_waits_for_no_second_frame(
    ends: tuple[socket.socket, FrameReader],
) -> None:
    ours, reader = ends
    ours.sendall(packed(ONE, TWO, ONE) + packed(TWO)[:-1])
    assert reader.take(2) == [ONE, TWO]
    assert reader.take(2) == [ONE]  # the last one has not arrived
    ours.sendall(packed(TWO)[-1:])
    assert reader.take(2) == [TWO]


def test_reader_waits_for_the_rest_of_a_frame(ends: tuple[socket.socket, FrameReader]) -> None:
    ours, reader = ends
    content = packed(ONE)
    ours.sendall(content[:5])
    assert reader._arrived() is None
    ours.sendall(content[5:])
    assert reader.take(1) == [ONE]


def test_connection_closed_within_a_frame_ends_reading(
    ends: tuple[socket.socket, FrameReader],
) -> None:
    ours, reader = ends
    ours.sendall(packed(ONE)[:-1])
    ours.close()
    assert reader.take(1) == []


def embedding(reply: Reply) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(reply["embedding"]), "<f4")


def test_embedding_is_what_the_network_computes(models: Models, name: bytes) -> None:
    """The colour model's embedding is the picture's mean colour."""
    ((reply,),) = models.answers([Frame(IMAGE, name, PHOTOS["red"], embed=True)])
    assert embedding(reply) == pytest.approx([220 / 255, 20 / 255, 20 / 255], abs=0.05)
    assert [step.name for step in reply["steps"]] == ["decode", "infer"]


def test_embeddings_run_as_a_batch_of_their_own(models: Models, name: bytes) -> None:
    kinds = [True, True, False, False, True]
    frames = [
        Frame(IMAGE, name, photo, embed=embed)
        for photo, embed in zip([*PHOTOS.values(), *PHOTOS.values()], kinds, strict=False)
    ]
    groups = list(models.answers(frames))
    assert [len(group) for group in groups] == [2, 2, 1]
    replies = [reply for group in groups for reply in group]
    assert ["embedding" in reply for reply in replies] == kinds
    for frame, reply in zip(frames, replies, strict=True):
        if frame.embed:
            ((alone,),) = models.answers([frame])
            np.testing.assert_allclose(embedding(reply), embedding(alone), atol=1e-6)


def test_broken_image_has_no_embedding(models: Models, name: bytes) -> None:
    frames = [Frame(IMAGE, name, data, embed=True) for data in (PHOTOS["red"], b"broken")]
    replies = [reply for group in models.answers(frames) for reply in group]
    assert "embedding" in replies[0]
    assert replies[1]["error"][0] == "undecodable_image"


def test_model_without_an_embedding_fails(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path / "plain")
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["outputs"]["embedding"]
    (folder / "model.json").write_text(json.dumps(manifest))
    write_sums(folder)
    models = Models(2, max_pixels=10**6, labels_per_image=3)
    ((reply,),) = models.answers([Frame(IMAGE, name_of(folder), PHOTOS["red"], embed=True)])
    assert reply["error"][:2] == ["inference_failed", "The model has no embedding."]


def test_head_classifies_an_embedding(models: Models, tmp_path: Path) -> None:
    identity, path = write_head(tmp_path, "colours@0123456789ab")
    head = json.dumps([identity, str(path)]).encode()
    data = np.array([0.1, 0.9, 0.1], "<f4").tobytes()
    ((first,), (second,)) = models.answers([Frame(EMBEDDING, head, data)] * 2)
    assert [label for label, _ in first["annotations"]] == ["fresh", "warm", "cool"]
    assert first["confident"] is True
    assert (first["categories"], first["steps"]) == ([], [])
    assert second == first


def test_head_is_read_once(models: Models, tmp_path: Path) -> None:
    identity, path = write_head(tmp_path, "colours@0123456789ab")
    frame = Frame(EMBEDDING, json.dumps([identity, str(path)]).encode(), bytes(12))
    ((first,),) = models.answers([frame])
    path.unlink()
    ((second,),) = models.answers([frame])
    assert first == second


def test_damaged_head_is_refused(models: Models, tmp_path: Path) -> None:
    identity, path = write_head(tmp_path, "colours@0123456789ab")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    frame = Frame(EMBEDDING, json.dumps([identity, str(path)]).encode(), bytes(12))
    ((reply,),) = models.answers([frame])
    assert reply["error"][0] == "invalid_bundle"


def test_frame_keeps_its_flags_on_the_way() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames = [
            Frame(IMAGE, b"name", b"data", alone=alone, embed=embed)
            for alone, embed in itertools.product((False, True), repeat=2)
        ]
        for frame in frames:
            ours.sendall(b"".join(frame.packed()))
        assert FrameReader(theirs).take(4) == frames


# --- Thumbnails -----------------------------------------------------------------------------------


def test_each_image_of_a_batch_has_its_own_thumbnail(name: bytes) -> None:
    ticks = itertools.count()
    models = Models(
        2,
        max_pixels=10**6,
        labels_per_image=3,
        now=lambda: next(ticks) / 1000,
        thumbnails=True,
    )
    (loaded,), (alone,) = models.answers(
        [Frame(LOAD, name, b""), Frame(IMAGE, name, PHOTOS["red"])]
    )
    assert loaded["thumbnail"] == b""
    frames = [Frame(IMAGE, name, PHOTOS["red"]), Frame(IMAGE, name, b"no picture")]
    wide = picture(3, COLOURS["blue"], (512, 128), "PNG")
    ((red, broken, blue),) = models.answers([*frames, Frame(IMAGE, name, wide)])
    assert red["thumbnail"] == alone["thumbnail"]
    assert "thumbnail" not in broken
    with Image.open(io.BytesIO(blue["thumbnail"])) as small:
        assert (small.format, small.size) == ("WEBP", (256, 64))
        red_share, _, blue_share = np.asarray(small.convert("RGB")).astype(int)[20, 20]
    assert blue_share > 4 * red_share


def test_reply_keeps_bytes_apart_from_json() -> None:
    reply = {"annotations": [], "thumbnail": b"\x00\xff" * 9}
    packed = packed_reply(reply)
    size, more = REPLY.unpack_from(packed)
    assert json.loads(packed[REPLY.size : REPLY.size + size]) == {"annotations": []}
    assert packed[REPLY.size + size :] == reply["thumbnail"]
    assert more == 18
