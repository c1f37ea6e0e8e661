"""The resources for a load and the latency under it: the figures of docs/scale.md."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from docs.figures import channels, cost
from docs.figures.chart import Axis, Chart, Series
from docs.figures.measured import Measured
from docs.figures.page import DOCS, filled, table
from docs.figures.queueing import (
    Outcome,
    Scaling,
    Service,
    mean_wait,
    quantile,
    simulate,
)

PAGE = DOCS / "scale.md"
LOAD_PICTURE = DOCS / "images/latency-against-load.svg"
BURST_PICTURE = DOCS / "images/burst.svg"
CHANNELS_PICTURE = DOCS / "images/channels.svg"

PUSH = 0.06  # seconds from publishing to the push; p50 of Google's emulator
POOLS = (1, 4, 16, 64)
LOADS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96)
IMAGES = 40_000  # followed for each point
TABLE_LOADS = (0.5, 0.7, 0.8, 0.9, 0.96)

BUSY = 0.7  # share of the time in which a slot should work
IN_FLIGHT = 40  # requests at once in an API instance
LADDER = (1, 10, 100, 1_000, 10_000)
# https://cloud.google.com/firestore/quotas: writes a second whose indexed values follow each other.
SEQUENTIAL_WRITES = 500
INDEXED_WRITES = 3  # of a new image: creation, `queued`, claim

CALM, PEAK = 10.0, 100.0  # new images a second
BURST_BEGINS, BURST_ENDS, BURST_WATCHED = 20.0, 140.0, 160.0
AIM_SECONDS = 2.0  # for a single upload
SLICE = 2.5  # seconds that one point of the picture stands for


@dataclass(frozen=True)
class Start:
    """How a pool scales in a burst: seconds until a new slot works, and minimum slots."""

    label: str
    delay: float
    least: int


STARTS = (
    Start("20 s to start", 20.0, 2),
    Start("10 s to start", 10.0, 2),
    Start("3 s to start", 3.0, 2),
    Start("3 s, 12 warm", 3.0, 12),
)


def worker_service(measured: Measured) -> Service:
    """One image in a worker: its computation, and waits of which half vary."""
    return Service(measured.worker_seconds + cost.WORKER_WAITS / 2, cost.WORKER_WAITS / 2)


@cache
def under_load(service: Service, slots: int, load: float) -> Outcome:
    """A pool that is busy for `load` of the time, in the steady state."""
    rate = load * slots / service.mean
    seconds = IMAGES / rate
    return simulate(rate, service, slots, seconds, warm_up=seconds / 10)


@cache
def in_a_burst(service: Service, start: Start) -> Outcome:
    def rate(time: float) -> float:
        return PEAK if BURST_BEGINS <= time < BURST_ENDS else CALM

    scaling = Scaling(most=200, delay=start.delay, interval=2.0)
    return simulate(
        rate, service, start.least, BURST_WATCHED, highest=PEAK, scaling=scaling, seed=7
    )


# Where single uploads meet the jobs and the receivers of one tenant.
WAYS = {"three services": channels.THREE_SERVICES, "one service": channels.ONE_SERVICE}


def beside_jobs(measured: Measured, way: str) -> channels.Result:
    work = channels.ImageWork(measured.worker_seconds, cost.WORKER_WAITS)
    return channels.simulate(WAYS[way], work)


def sliced(images: Iterable[tuple[float, float]], share: float) -> list[tuple[float, float]]:
    """(middle of a time slice, quantile of the images that arrived in it).

    `images` are pairs of arrival and latency.
    """
    slices: dict[int, list[float]] = {}
    for arrived, latency in images:
        slices.setdefault(int(arrived // SLICE), []).append(latency)
    return [((n + 0.5) * SLICE, quantile(v, share)) for n, v in sorted(slices.items())]


def _images(outcome: Outcome) -> Iterable[tuple[float, float]]:
    return zip(outcome.arrived, outcome.latency, strict=True)


def load_chart(service: Service) -> Chart:
    way = cost.API_NEW + PUSH
    series = [
        Series(
            _slots(slots),
            [(100 * x, way + under_load(service, slots, x).quantile(0.99)) for x in LOADS],
        )
        for slots in POOLS
    ]
    return Chart(
        title="99th percentile of the time from upload to labels",
        description="Seconds from upload to labels against how busy the worker's slots are. One "
        "slot is slow from half load on; 64 slots stay fast up to 95 %.",
        x=Axis("share of the time in which the worker's slots are busy", 100, range(0, 101, 20),
               lambda value: f"{value:g} %"),
        y=Axis("seconds from the upload to its labels", 2.0, (0, 0.5, 1, 1.5, 2)),
        series=series,
        marks=[(100 * BUSY, "aim")],
    )  # fmt: skip


def burst_chart(service: Service) -> Chart:
    way = cost.API_NEW + PUSH
    series = [
        Series(
            start.label,
            [(x, way + y) for x, y in sliced(_images(in_a_burst(service, start)), 0.95)],
            dots=False,
        )
        for start in STARTS
    ]
    return Chart(
        title="Ten times the load: the effect of worker start-up time",
        description="Seconds from upload to labels, 95th percentile, while the load rises from 10 "
        "to 100 new images a second for two minutes. The longer a worker takes to start, the "
        "longer images wait; warm slots shorten it.",
        x=Axis("seconds", BURST_WATCHED, range(0, 161, 20)),
        y=Axis("seconds from the upload to its labels, 95 of 100", 16, (0, 4, 8, 12, 16)),
        series=series,
        marks=[(BURST_BEGINS, "100 a second"), (BURST_ENDS, "10 again")],
        legend=True,
    )


def channels_chart(measured: Measured) -> Chart:
    way = cost.API_NEW + PUSH
    series = [
        Series(
            name,
            [(x, way + y) for x, y in sliced(beside_jobs(measured, name).uploads, 1.0)],
            dots=False,
        )
        for name in WAYS
    ]
    return Chart(
        title="Single uploads beside 100,000 images of low priority",
        description="Seconds from a single upload to its labels, the slowest of each moment, while "
        "100,000 images of low priority wait. With three services they stay far below a second. "
        "With one service they wait for ten to twenty seconds until the other images are done.",
        x=Axis("seconds", channels.SECONDS, range(0, int(channels.SECONDS) + 1, 30)),
        y=Axis("seconds from the upload to its labels, slowest", 20, (0, 5, 10, 15, 20)),
        series=series,
        legend=True,
    )


def tables(measured: Measured) -> Mapping[str, str]:
    """The page's tables by the names of their markers."""
    service = worker_service(measured)
    return {
        "machine": _machine_table(measured),
        "ladder": _ladder_table(measured, service),
        "load": _load_table(service),
        "check": _check_table(service),
        "burst": _burst_table(service),
        "channels": _channels_table(measured),
        "index": _index_sentence(),
    }


def page(measured: Measured) -> str:
    """docs/scale.md with its tables as they are now."""
    text = PAGE.read_text(encoding="utf-8")
    for name, content in tables(measured).items():
        text = filled(text, name, content)
    return text


def pictures(measured: Measured) -> dict[str, str]:
    """File name below docs/images: SVG."""
    service = worker_service(measured)
    return {
        LOAD_PICTURE.name: load_chart(service).svg(),
        BURST_PICTURE.name: burst_chart(service).svg(),
        CHANNELS_PICTURE.name: channels_chart(measured).svg(),
    }


def write(measured: Measured) -> None:
    """Bring the page and its pictures up to date."""
    PAGE.write_text(page(measured), encoding="utf-8")
    for name, svg in pictures(measured).items():
        (DOCS / "images" / name).write_text(svg, encoding="utf-8")


def _machine_table(measured: Measured) -> str:
    rows = [
        ["known image, requested by hash", f"{measured.cached_gets:,.0f}"],
        ["known image, uploaded again", f"{measured.known_uploads:,.0f}"],
        ["new image, up to its 202", f"{measured.new_uploads:,.0f}"],
        ["new image, labelled", f"{measured.worker_images:,.0f}"],
    ]
    return table(["one core each", "a second"], rows)


def slots_for(rate: float, service: Service) -> int:
    """Slots that `rate` images a second keep busy for `BUSY` of the time."""
    return max(1, math.ceil(rate * service.mean / BUSY))


def _ladder_table(measured: Measured, service: Service) -> str:
    work = cost.bundled_work(measured)
    rows = []
    for rate in LADDER:
        answering = rate * work.api_seconds
        month = rate * cost.MONTH / cost.MILLION * cost.total(work)
        rows.append(
            [
                f"{rate:,}",
                f"{max(1, math.ceil(answering / IN_FLIGHT)):,}",
                f"{slots_for(rate, service):,}",
                f"{rate * (work.reads + work.writes):,.0f}",
                f"{rate * work.stored_objects:,.0f}",
                _bytes(rate * work.message_bytes),
                _bytes(rate * cost.IMAGE_BYTES),
                f"{_round(month):,.0f}",
            ]
        )
    head = ["new images a second", "API instances", "worker slots", "Datastore operations/s"]
    tail = ["objects/s", "messages", "images", "US$ a month"]
    return table([*head, *tail], rows)


def _load_table(service: Service) -> str:
    way = cost.API_NEW + PUSH
    rows = []
    for load in TABLE_LOADS:
        values = [way + under_load(service, slots, load).quantile(0.99) for slots in POOLS]
        rows.append([f"{100 * load:g} %", *(f"{value:.2f} s" for value in values)])
    return table(["busy", *(_slots(slots) for slots in POOLS)], rows)


def _check_table(service: Service) -> str:
    rows = []
    for slots in POOLS:
        for load in (0.7, 0.9):
            rate = load * slots / service.mean
            waited = under_load(service, slots, load).waited
            rows.append(
                [
                    f"{_slots(slots)}, {100 * load:g} % busy",
                    f"{1000 * mean_wait(slots, rate, service):.1f} ms",
                    f"{1000 * sum(waited) / len(waited):.1f} ms",
                ]
            )
    return table(["mean wait in the queue", "formula", "simulation"], rows)


def _burst_table(service: Service) -> str:
    way = cost.API_NEW + PUSH
    rows = []
    for start in STARTS:
        outcome = in_a_burst(service, start)
        points = [(x, way + y) for x, y in sliced(_images(outcome), 0.95)]
        slow = [x for x, y in points if BURST_BEGINS <= x < BURST_ENDS and y > 1.0]
        rows.append(
            [
                start.label,
                f"{max(y for _, y in points):.1f} s",
                f"{max(slow, default=BURST_BEGINS - SLICE / 2) + SLICE / 2 - BURST_BEGINS:.0f} s",
                str(outcome.slots[-1][1]),
            ]
        )
    head = ["start of a worker slot", "worst 95th percentile", "time until below 1 s"]
    return table([*head, "slots at the end"], rows)


def _channels_table(measured: Measured) -> str:
    way = cost.API_NEW + PUSH
    results = [beside_jobs(measured, name) for name in WAYS]
    waits = [[way + seconds for seconds in result.seconds()] for result in results]
    rows = [
        ["single upload, median", *(f"{quantile(each, 0.5):.2f} s" for each in waits)],
        ["99th percentile", *(f"{quantile(each, 0.99):.2f} s" for each in waits)],
        ["slowest", *(f"{max(each):.2f} s" for each in waits)],
        [f"slower than {AIM_SECONDS:g} s", *(f"{_share(each):.1f} %" for each in waits)],
        ["refused pushes of single uploads", *(f"{result.refused_uploads}" for result in results)],
        ["images of low priority done after", *(f"{each.images_done:.0f} s" for each in results)],
        ["notifications done after", *(f"{each.notifications_done:.0f} s" for each in results)],
    ]
    return table(["", *WAYS], rows)


def _share(waits: list[float]) -> float:
    """Per cent of the waits above the aim."""
    return 100 * sum(wait > AIM_SECONDS for wait in waits) / len(waits)


def _index_sentence() -> str:
    images = SEQUENTIAL_WRITES // INDEXED_WRITES
    return (
        f"Google names {SEQUENTIAL_WRITES} writes a second for such an index, as "
        "[a soft limit](https://cloud.google.com/firestore/quotas).\nA new image makes "
        f"{INDEXED_WRITES} of them, so a tenant with more than about {images} new images a second "
        "may meet this limit."
    )


def _slots(count: int) -> str:
    return f"{count} slot{'s' if count > 1 else ''}"


def _bytes(value: float) -> str:
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B/s"


def _round(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.2g}")
