"""`make compare`: its arithmetic, its pins, and that all contenders get the same work.

The run itself needs Redis and minutes, and measures; nothing of it is asserted.
"""

import io
import re
import tomllib

import pytest
from rich.console import Console

from benchmarks import table
from benchmarks.__main__ import chosen
from benchmarks.batch import WORKERS, Seen, Survived, digest_labels
from benchmarks.contenders import CONTENDERS
from benchmarks.environments import REQUIREMENTS, fingerprint, pins
from benchmarks.glimpse import Glimpse, left_of
from benchmarks.peer import Peer
from benchmarks.peers import surroundings, tasks
from benchmarks.redis_server import PERSISTENCE
from core.settings import Settings
from tests.support.stack import ROOT

FRAMEWORKS = ("celery", "rq", "taskiq")
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)( ; python_version [<>]=? \"3\.[0-9]+\")?")


def seen(accepted: float, ended: float, *milliseconds: float) -> Seen:
    return Seen(accepted, ended, [each / 1000 for each in milliseconds], 10 * ended, 20 * ended)


# --- Arithmetic ----------------------------------------------------------------------------------


def test_figures_are_the_medians_of_the_runs() -> None:
    runs = [seen(0.5, 2.0, 1, 1, 1), seen(9.0, 100.0, 9, 9, 9), seen(0.1, 1.0, 3, 3, 3)]
    figures = table.medians(1000, runs)
    assert (figures.rate, figures.accepted) == (500, 0.5)
    assert figures.p50 == pytest.approx(3)
    assert figures.p99 == pytest.approx(3)
    assert (figures.worker_memory, figures.memory) == (20, 40)
    assert figures.jobs_per_minute == 30


def test_tasks_of_one_call_have_no_latencies() -> None:
    figures = table.medians(10, [seen(1.0, 2.0)])
    assert (figures.p50, figures.p99) == (None, None)


def test_percentiles_are_milliseconds() -> None:
    run = seen(1.0, 2.0, *range(1, 101))
    assert run.percentile(50) == pytest.approx(50.5)
    assert run.percentile(99) == pytest.approx(99.99)


def test_ratios_are_to_the_first() -> None:
    rows = table.rows(
        {
            "first": table.medians(1000, [seen(0.25, 2.0)]),
            "half as fast": table.medians(1000, [seen(1.0, 4.0, 2, 2, 2)]),
        }
    )
    assert rows == [
        ("first", "500", "30.0", "1.00", "0.25", "", "20", "40"),
        ("half as fast", "250", "15.0", "0.50", "1.00", "2.0 / 2.0", "40", "80"),
    ]
    assert {len(row) for row in rows} == {len(table.COLUMNS)}
    assert table.rows({}) == []


def test_the_same_rows_are_shown_and_written() -> None:
    rows = table.survival_rows({"first": Survived(0, 12.4), "other": Survived(2, 0.6)})
    assert rows == [("first", "0", "12"), ("other", "2", "1")]
    columns = ("contender", "missing", "last")
    assert table.in_markdown(columns, rows) == [
        "| contender | missing | last |",
        "| --- | --- | --- |",
        "| first | 0 | 12 |",
        "| other | 2 | 1 |",
    ]
    screen = io.StringIO()
    Console(width=80, file=screen).print(table.on_screen("title", columns, rows))
    shown = screen.getvalue()
    assert all(cell in shown for row in [columns, *rows] for cell in row)


def test_labels_are_compared_in_any_order() -> None:
    labels = digest_labels({"a": "cat", "b": "dog"})
    assert labels == digest_labels({"b": "dog", "a": "cat"})
    assert labels != digest_labels({"a": "dog", "b": "cat"})


# --- A job's progress ----------------------------------------------------------------------------


def job(status: str, succeeded: int, failed: int) -> dict[str, object]:
    return {"status": status, "total": 10, "succeeded": succeeded, "failed": failed}


def test_job_has_ended_when_its_status_is_terminal() -> None:
    assert left_of(job("pending", 0, 0)) == 10
    assert left_of(job("running", 4, 1)) == 5
    assert left_of(job("running", 10, 0)) == 1
    assert left_of(job("completed", 10, 0)) == 0


@pytest.mark.parametrize("ended", [job("cancelled", 4, 0), job("failed", 0, 0)])
def test_a_job_that_ends_otherwise_is_no_figure(ended: dict[str, object]) -> None:
    with pytest.raises(RuntimeError, match=str(ended["status"])):
        left_of(ended)


# --- The same for everyone -----------------------------------------------------------------------


def test_contenders_are_distinguished() -> None:
    assert len({each.name for each in CONTENDERS}) == len(CONTENDERS)
    assert len({each.subject for each in CONTENDERS}) == len(CONTENDERS)
    # Ratios are to the first, so that one is ours.
    assert isinstance(CONTENDERS[0].subject, Glimpse)


def test_each_framework_runs_as_many_workers() -> None:
    peers = [each.subject for each in CONTENDERS if isinstance(each.subject, Peer)]
    assert {peer.framework for peer in peers} == set(FRAMEWORKS)
    for peer in peers:
        assert peer.persistence in PERSISTENCE
        for task in (surroundings.NO_OP, surroundings.CLASSIFY):
            command = peer.command(task)
            count = command[1 + [each in ("-c", "-n", "--workers") for each in command].index(True)]
            assert count == str(WORKERS), peer


def test_the_peers_classifier_has_our_settings() -> None:
    settings = Settings.model_fields
    assert settings["max_image_pixels"].default == tasks.MAX_PIXELS
    assert settings["labels_per_image"].default == tasks.LABELS_PER_IMAGE


def test_some_can_be_chosen() -> None:
    assert chosen("") == list(CONTENDERS)
    assert {type(each.subject) for each in chosen("glimpse")} == {Glimpse}
    frameworks = [
        each.subject.framework for each in chosen("RQ, stream") if isinstance(each.subject, Peer)
    ]
    assert frameworks == ["rq"] * 4 + ["taskiq"] * 2
    with pytest.raises(SystemExit, match="no-such-contender"):
        chosen("no-such-contender")


# --- Environments --------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_package_is_pinned_exactly(framework: str) -> None:
    lines = pins(framework)
    assert all(PIN.fullmatch(line) for line in lines), lines
    names = [line.partition("==")[0] for line in lines if ";" not in line]
    assert len(set(names)) == len(names)
    assert {framework, "redis", "onnxruntime", "pillow"} <= set(names)


def test_the_classifier_has_the_locked_versions() -> None:
    lock = tomllib.loads((ROOT / "poetry.lock").read_text())
    locked = {f"{each['name']}=={each['version']}" for each in lock["package"]}
    ours = {line.partition(" ;")[0] for line in pins("classifier")}
    assert ours <= locked, f"{REQUIREMENTS / 'classifier.txt'} and poetry.lock differ"


def test_other_pins_are_another_environment() -> None:
    assert len({fingerprint(each) for each in FRAMEWORKS}) == len(FRAMEWORKS)
    assert fingerprint("rq") == fingerprint("rq")
