"""What one classifier process does with frames: which images it takes together, and with what."""

import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from core.bundles.bundle import read_bundle
from tests.support.bundles import write_colour_bundle, write_failing_bundle, write_network
from tests.support.pictures import encode, picture, sha256
from worker.inference.process import Models, Reply
from worker.inference.protocol import FILE, GROUP, IMAGE, LOAD, Frame, FrameReader

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
    """With the colours in memory, and one image behind them: what that took is known.

    A millisecond, whatever else the machine does: the clock goes on by one at each look.
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


def test_images_that_wait_are_taken_together_and_answered_in_order(
    models: Models, name: bytes
) -> None:
    asked = ["red", "green", "blue", "green", "red", "blue"]
    frames = [Frame(IMAGE, name, PHOTOS[each]) for each in asked]
    groups = list(models.answers(frames))
    assert [len(group) for group in groups] == [GROUP, 2]
    assert labels([reply for group in groups for reply in group]) == asked


def test_what_is_said_of_an_image_is_the_same_in_company(models: Models, name: bytes) -> None:
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


def test_in_company_an_images_faults_are_its_own(
    models: Models, name: bytes, tmp_path: Path
) -> None:
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
    # Four that all fail leave nothing to infer.
    (replies,) = models.answers([Frame(IMAGE, name, b"no picture")] * GROUP)
    assert {reply["error"][0] for reply in replies} == {"undecodable_image"}
    assert sizes(models, [Frame(IMAGE, name, PHOTOS["red"])] * GROUP) == [GROUP]


def test_who_asks_to_be_alone_is_alone(models: Models, name: bytes) -> None:
    one, alone = Frame(IMAGE, name, PHOTOS["red"]), Frame(IMAGE, name, PHOTOS["red"], alone=True)
    assert sizes(models, [one, alone, one, one]) == [1, 1, 2]
    assert sizes(models, [alone, one, one, alone]) == [1, 2, 1]


def test_images_of_different_models_go_apart(models: Models, name: bytes, tmp_path: Path) -> None:
    other = name_of(write_colour_bundle(tmp_path / "other", name="other"))
    frames = [Frame(IMAGE, each, PHOTOS["red"]) for each in (name, name, other, other)]
    # The other model's pace is not known before its first image.
    assert sizes(models, frames) == [2, 1, 1]
    assert sizes(models, frames) == [2, 2]
    loading = Frame(LOAD, name, b"")
    assert sizes(models, [frames[0], loading, frames[0], frames[0]]) == [1, 1, 2]


def test_a_slow_model_gets_one_image_at_a_time(models: Models, name: bytes) -> None:
    frames = [Frame(IMAGE, name, PHOTOS["red"])] * 8
    model = models._loaded[name]
    for seconds, most in ((0.001, GROUP), (0.03, 3), (0.05, 2), (0.2, 1)):
        model.seconds = seconds
        assert len(next(models.answers(frames))) == most
    # One slow picture does not make the model slow for long.
    model.seconds = 0.2
    assert GROUP in sizes(models, frames * 4)


def test_a_network_that_takes_several_in_name_only_gets_them_one_by_one(
    models: Models, tmp_path: Path
) -> None:
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
    assert sizes(models, frames) == [1, 2]  # the two were tried together, and then apart
    assert sizes(models, frames) == [1, 1, 1]
    for replies in models.answers(frames):
        assert "error" not in replies[0]


def test_an_image_that_the_network_fails_on_takes_no_other_along(
    models: Models, tmp_path: Path
) -> None:
    """The group is done again one by one, and the next one together."""
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


def test_frames_come_as_they_were_sent(ends: tuple[socket.socket, FrameReader]) -> None:
    ours, reader = ends
    ours.sendall(packed(ONE, TWO, Frame(LOAD, b"name", b"")))
    assert reader.take(4) == [ONE, TWO, Frame(LOAD, b"name", b"")]
    ours.shutdown(socket.SHUT_WR)
    assert reader.take(4) == []


def test_no_more_are_taken_than_asked_for_and_none_is_waited_for(
    ends: tuple[socket.socket, FrameReader],
) -> None:
    ours, reader = ends
    ours.sendall(packed(ONE, TWO, ONE) + packed(TWO)[:-1])
    assert reader.take(2) == [ONE, TWO]
    assert reader.take(2) == [ONE]  # the last one is not here yet
    ours.sendall(packed(TWO)[-1:])
    assert reader.take(2) == [TWO]


def test_a_frame_in_pieces_is_waited_for(ends: tuple[socket.socket, FrameReader]) -> None:
    ours, reader = ends
    content = packed(ONE)
    ours.sendall(content[:5])
    assert reader._arrived() is None
    ours.sendall(content[5:])
    assert reader.take(1) == [ONE]


def test_an_end_within_a_frame_is_an_end(ends: tuple[socket.socket, FrameReader]) -> None:
    ours, reader = ends
    ours.sendall(packed(ONE)[:-1])
    ours.close()
    assert reader.take(1) == []
