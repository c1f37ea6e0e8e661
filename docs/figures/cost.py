"""What a million images cost on Google Cloud: the arithmetic of docs/cost.md.

List prices in US dollars, no free tier, no discount. Every result is units times a unit's price, so
to use another one, change it here and run `make figures`.
"""

from dataclasses import dataclass, replace

from docs.figures.measured import Measured
from docs.figures.page import DOCS, filled, table

PAGE = DOCS / "cost.md"
MILLION = 1_000_000
GIB, TIB = 2**30, 2**40
MONTH = 730 * 3600  # seconds


@dataclass(frozen=True)
class Prices:
    """US dollars a unit.

    `cpu` and `memory` are request-based, `*_always` instance-based. `*_idle` is request-based too,
    for an instance of `min_instances` while it has no request.
    """

    cpu: float = 0.000024  # vCPU-second
    memory: float = 0.0000025  # GiB-second
    requests: float = 0.40 / MILLION
    cpu_always: float = 0.000018
    memory_always: float = 0.000002
    cpu_idle: float = 0.0000025
    memory_idle: float = 0.0000025
    reads: float = 0.03 / 100_000
    writes: float = 0.09 / 100_000
    class_a: float = 0.005 / 1000  # writing an object
    class_b: float = 0.0004 / 1000  # reading one
    stored: float = 0.020  # GB-month
    messages: float = 40 / TIB  # byte, published or delivered
    balanced: float = 0.008 / GIB  # byte through the load balancer
    balancer: float = 18.25  # month
    logged: float = 0.50 / GIB  # byte
    scheduled: float = 0.10  # Cloud Scheduler job and month
    secret: float = 0.06  # active version of a secret, a month


IOWA = Prices()
# Cloud Run has two lists of prices; the dearer one is 1.4 times the other, requests apart.
FRANKFURT = replace(
    IOWA,
    cpu=0.0000336,
    memory=0.0000035,
    cpu_always=0.0000252,
    memory_always=0.0000028,
    cpu_idle=0.0000035,
    memory_idle=0.0000035,
)
# A database in several regions of a continent.
TWO_REGIONS = replace(IOWA, reads=0.06 / 100_000, writes=0.18 / 100_000)


@dataclass(frozen=True)
class Work:
    """The usage of one image by component. Times are billed seconds of an instance."""

    api_seconds: float = 0.0
    worker_seconds: float = 0.0
    api_requests: float = 0.0
    pushes: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    stored_objects: float = 0.0
    read_objects: float = 0.0
    message_bytes: float = 0.0
    balanced_bytes: float = 0.0
    logged_bytes: float = 0.0
    stored_bytes: float = 0.0  # for a month
    worker_memory: float = 1.0  # GiB
    api_memory: float = 1.0  # GiB
    cpus: float = 1.0


IMAGE_BYTES = 110_000
ANSWER_BYTES = 1_500  # body and header fields
LINE_BYTES = 500  # one JSON log line
MESSAGE_BYTES = 1_000  # the least that Pub/Sub counts
# Assumed, not measured: seven requests to Google's services in the same region, 15 ms each.
WORKER_WAITS = 0.105
# Assumed: a new image's two transactions, object and message, and the upload itself.
API_NEW, API_POLL, API_KNOWN = 0.150, 0.020, 0.005


def new_image(worker_seconds: float, memory: float = 1.0) -> Work:
    """An upload, one status request that gets 202 and one that gets the labels."""
    return Work(
        api_seconds=API_NEW + 2 * API_POLL,
        worker_seconds=worker_seconds,
        api_requests=3,
        pushes=1,
        # Look-up, is it still there, `queued`, claim, completion, two questions.
        reads=9,
        # Creation, `queued`, claim, completion.
        writes=4,
        stored_objects=1,
        read_objects=1,
        message_bytes=2 * MESSAGE_BYTES,
        balanced_bytes=IMAGE_BYTES + 3 * ANSWER_BYTES,
        # Three requests and a push, `accepted` and `classified`.
        logged_bytes=6 * LINE_BYTES,
        stored_bytes=IMAGE_BYTES,
        worker_memory=memory,
    )


# Assumed: an image's share of the request that brings a thousand.
API_IN_BATCH = 0.050
# Assumed as above: is the job over, three requests for the item, and two at once for the job.
JOB_WAITS = 0.075
RESULT_BYTES = 300  # a row of the results


def image_of_a_job(worker_seconds: float, memory: float = 1.0) -> Work:
    """One of a thousand images in a job; the client reads all results once.

    What the job itself needs, a thousandth of it, is left out.
    """
    return replace(
        new_image(worker_seconds + JOB_WAITS, memory),
        api_seconds=API_IN_BATCH,
        api_requests=0,
        # Of the record: look-up, its turn, claim, completion, result. Of the item: its turn, its
        # end, result. Of the job: before the work, and at the item's end whether it is the last.
        reads=5 + 3 + 3,
        # Creation, claim, completion of the record; creation and end of the item.
        writes=3 + 2,
        balanced_bytes=IMAGE_BYTES + RESULT_BYTES,
        # The audit line, the push and `classified`.
        logged_bytes=3 * LINE_BYTES,
    )


THUMBNAIL_BYTES = 8_000
THUMBNAIL_SECONDS = 0.002  # of a core, to scale and encode a decoded image
# While the worker stores the thumbnail, it completes the record. So this adds no wait.
THUMBNAIL = Work(worker_seconds=THUMBNAIL_SECONDS, stored_objects=1, stored_bytes=THUMBNAIL_BYTES)
THUMBNAIL_LOAD = Work(
    api_seconds=API_POLL,
    api_requests=1,
    read_objects=1,
    balanced_bytes=THUMBNAIL_BYTES,
    logged_bytes=LINE_BYTES,
)


@dataclass(frozen=True)
class Service:
    """A Cloud Run service of the Terraform with the size of its instances. `memory` is in GiB."""

    name: str
    work: str
    cpus: float
    memory: float

    def month(self, cpu: float, memory: float) -> float:
        """Dollars for an instance that exists for a month, at these prices."""
        return MONTH * (self.cpus * cpu + self.memory * memory)


SERVICES = (
    Service("api", "requests of clients", 1, 1),
    Service("interactive", "single uploads, dead letters, scheduled calls", 2, 2),
    Service("batch", "jobs and their images, training", 2, 2),
    Service("notify", "webhooks, e-mail", 1, 1),
)


# A client that hashes first requests the result by hash; it is in the process's memory.
KNOWN = Work(
    api_seconds=API_KNOWN, api_requests=1, balanced_bytes=ANSWER_BYTES, logged_bytes=LINE_BYTES
)
# The same, if the process has to read the database.
LOOKED_UP = replace(KNOWN, api_seconds=API_POLL, reads=1)
# The same, from a single client: Cloud Run rounds up to a tenth of a second.
ALONE = replace(KNOWN, api_seconds=0.1)
# A client that sends the image again.
SENT_AGAIN = replace(KNOWN, api_seconds=API_POLL, balanced_bytes=IMAGE_BYTES + ANSWER_BYTES)


@dataclass(frozen=True)
class Line:
    """A line of a bill, for a million images."""

    part: str
    units: str
    dollars: float


def bill(work: Work, prices: Prices = IOWA) -> list[Line]:
    """The cost of a million times `work`, by component."""

    def compute(seconds: float, memory: float) -> float:
        return MILLION * seconds * (work.cpus * prices.cpu + memory * prices.memory)

    requests = work.api_requests + work.pushes
    lines = [
        Line(
            "worker",
            f"{_sized(work.worker_seconds)} s x ({work.cpus:g} vCPU + {work.worker_memory:g} GiB)",
            compute(work.worker_seconds, work.worker_memory),
        ),
        Line(
            "API",
            f"{_sized(work.api_seconds)} s x ({work.cpus:g} vCPU + {work.api_memory:g} GiB)",
            compute(work.api_seconds, work.api_memory),
        ),
        Line("Cloud Run requests", f"{requests:g}", MILLION * requests * prices.requests),
        Line("Datastore writes", f"{work.writes:g}", MILLION * work.writes * prices.writes),
        Line("Datastore reads", f"{work.reads:g}", MILLION * work.reads * prices.reads),
        Line(
            "Cloud Storage operations",
            f"{work.stored_objects:g} written, {work.read_objects:g} read",
            MILLION * (work.stored_objects * prices.class_a + work.read_objects * prices.class_b),
        ),
        Line(
            "Cloud Storage, a month",
            f"{work.stored_bytes / 1000:g} kB",
            MILLION * work.stored_bytes / 1e9 * prices.stored,
        ),
        Line(
            "Pub/Sub",
            f"{work.message_bytes / 1000:g} kB",
            MILLION * work.message_bytes * prices.messages,
        ),
        Line(
            "load balancer, traffic",
            f"{work.balanced_bytes / 1000:g} kB",
            MILLION * work.balanced_bytes * prices.balanced,
        ),
        Line(
            "logs", f"{work.logged_bytes / 1000:g} kB", MILLION * work.logged_bytes * prices.logged
        ),
    ]
    return [line for line in lines if line.dollars]


def total(work: Work, prices: Prices = IOWA) -> float:
    """Dollars for a million times `work`."""
    return sum(line.dollars for line in bill(work, prices))


@dataclass(frozen=True)
class Model:
    """`seconds` a core needs for decoding and inference, `memory` in GiB."""

    name: str
    seconds: float
    memory: float = 1.0


def models(measured: Measured) -> list[Model]:
    """The bundled model, and others by figures of our own on the same kind of core."""
    return [
        Model("bundled, 240 pixels", measured.annotate),
        Model("ViT-B/16, int8", 0.076 + 0.010, 2.0),
        Model("ViT-B/16, fp32", 0.270 + 0.010, 2.0),
    ]


def bundled_work(measured: Measured) -> Work:
    return new_image(WORKER_WAITS + measured.worker_seconds)


def job_work(measured: Measured) -> Work:
    return image_of_a_job(WORKER_WAITS + measured.worker_seconds)


def tables(measured: Measured) -> dict[str, str]:
    """The page's tables by the names of their markers."""
    work = bundled_work(measured)
    return {
        "prices": _price_table(),
        "new": _bill_table(work),
        "job": _bill_table(job_work(measured), "a million new images in jobs"),
        "known": _known_table(),
        "worker-time": _worker_time_table(),
        "models": _model_table(measured),
        "regions": _region_table(work),
        "thumbnails": _thumbnail_table(),
        "services": _service_table(),
        "fixed": _fixed_table(),
        "billing": _billing(),
    }


def page(measured: Measured) -> str:
    """docs/cost.md with its tables as they are now."""
    text = PAGE.read_text(encoding="utf-8")
    for name, content in tables(measured).items():
        text = filled(text, name, content)
    return text


def _price_table() -> str:
    head = ["", "unit", "us-central1", "Cloud Run tier 2", "database in two regions"]
    places = (IOWA, FRANKFURT, TWO_REGIONS)

    def row(name: str, unit: str, field: str, scale: float) -> list[str]:
        values = [getattr(place, field) * scale for place in places]
        return [name, unit, *(f"{value:.7f}".rstrip("0").rstrip(".") for value in values)]

    return table(
        head,
        [
            row("Cloud Run, request-based", "vCPU-second", "cpu", 1),
            row("", "GiB-second", "memory", 1),
            row("", "million requests", "requests", MILLION),
            row("Cloud Run, instance-based", "vCPU-second", "cpu_always", 1),
            row("", "GiB-second", "memory_always", 1),
            row("Cloud Run, idle minimum instance", "vCPU-second", "cpu_idle", 1),
            row("", "GiB-second", "memory_idle", 1),
            row("Datastore", "100,000 reads", "reads", 100_000),
            row("", "100,000 writes", "writes", 100_000),
            row("Cloud Storage", "1,000 written", "class_a", 1000),
            row("", "1,000 read", "class_b", 1000),
            row("", "GB-month", "stored", 1),
            row("Pub/Sub", "TiB", "messages", TIB),
            row("Load balancer", "GiB", "balanced", GIB),
            row("", "month", "balancer", 1),
            row("Logs", "GiB", "logged", GIB),
            row("Cloud Scheduler", "job and month", "scheduled", 1),
            row("Secret Manager", "version and month", "secret", 1),
        ],
    )


def _bill_table(work: Work, title: str = "a million new images") -> str:
    lines = bill(work)
    rows = [[line.part, line.units, _dollars(line.dollars)] for line in lines]
    return table(
        [title, "each", "US$"],
        [*rows, ["**together**", "", f"**{_dollars(total(work))}**"]],
    )


def _known_table() -> str:
    cases = [
        ("asked by hash, in the process's memory", KNOWN),
        ("asked by hash, from the database", LOOKED_UP),
        ("asked by hash, one request now and then", ALONE),
        ("sent again", SENT_AGAIN),
    ]
    rows = []
    for name, work in cases:
        by_part = {line.part: line.dollars for line in bill(work)}
        parts = ("API", "Cloud Run requests", "Datastore reads", "load balancer, traffic", "logs")
        shares = [_dollars(by_part.get(part, 0.0)) for part in parts]
        rows.append([name, *shares, f"**{_dollars(total(work))}**"])
    head = ["a million known images", "API", "requests", "reads", "traffic", "logs", "US$"]
    return table(head, rows)


def _worker_time_table() -> str:
    rows = []
    for seconds in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0):
        work = new_image(seconds)
        (worker,) = (line.dollars for line in bill(work) if line.part == "worker")
        rows.append([f"{seconds:g} s", _dollars(worker), _dollars(total(work))])
    return table(["worker's time for an image", "worker, US$", "everything, US$"], rows)


def _model_table(measured: Measured) -> str:
    rows = []
    for model in models(measured):
        busy = model.seconds + measured.handling
        alone = new_image(WORKER_WAITS + busy, model.memory)
        # Several images in flight keep the core busy while one of them waits for Google.
        shared = new_image(max(busy, (WORKER_WAITS + busy) / 4), model.memory)
        rows.append(
            [
                model.name,
                f"{1000 * model.seconds:.0f} ms",
                f"{model.memory:g} GiB",
                f"{1000 * alone.worker_seconds:.0f} ms",
                _dollars(total(alone)),
                _dollars(total(shared)),
            ]
        )
    head = ["model", "a core's time", "memory", "with waits", "US$, one at a time"]
    return table([*head, "US$, four in flight"], rows)


def _region_table(work: Work) -> str:
    both = replace(FRANKFURT, reads=TWO_REGIONS.reads, writes=TWO_REGIONS.writes)
    places = [
        ("Cloud Run tier 1, database in one region", IOWA),
        ("Cloud Run tier 2, database in one region", FRANKFURT),
        ("Cloud Run tier 1, database in two regions", TWO_REGIONS),
        ("Cloud Run tier 2, database in two regions", both),
    ]
    return table(
        ["", "a million new, US$", "a million known, US$"],
        [
            [name, _dollars(total(work, prices)), _dollars(total(LOOKED_UP, prices))]
            for name, prices in places
        ],
    )


def _thumbnail_table() -> str:
    made, loaded = bill(THUMBNAIL), bill(THUMBNAIL_LOAD)
    return table(
        ["a million thumbnails", "each", "US$"],
        [
            *([f"made: {line.part}", line.units, _dollars(line.dollars)] for line in made),
            ["**made, together**", "", f"**{_dollars(total(THUMBNAIL))}**"],
            *([f"loaded: {line.part}", line.units, _dollars(line.dollars)] for line in loaded),
            ["**loaded, together**", "", f"**{_dollars(total(THUMBNAIL_LOAD))}**"],
        ],
    )


def _service_table() -> str:
    rows = [
        [
            f"`{service.name}`",
            service.work,
            f"{service.cpus:g} vCPU, {service.memory:g} GiB",
            _dollars(3600 * (service.cpus * IOWA.cpu + service.memory * IOWA.memory)),
            _dollars(service.month(IOWA.cpu_idle, IOWA.memory_idle)),
            _dollars(service.month(IOWA.cpu_always, IOWA.memory_always)),
        ]
        for service in SERVICES
    ]
    head = ["service", "work", "instance", "a busy hour, US$", "idle for a month, US$"]
    return table([*head, "never stopped for a month, US$"], rows)


def _fixed_table() -> str:
    stream = MONTH * (IOWA.cpu + IOWA.memory)
    looks = MONTH / 60
    # Billed by tenths of a second, of two CPUs and two GiB; a query for each part of the index.
    schedule = looks * (0.1 * 2 * (IOWA.cpu + IOWA.memory) + IOWA.requests + 8 * IOWA.reads)
    return table(
        ["a month", "US$"],
        [
            ["load balancer", _dollars(IOWA.balancer)],
            ["an API instance that always holds a stream open", _dollars(stream)],
            ["the schedule's look each minute, any number of tenants", _dollars(schedule)],
            ["Cloud Scheduler, two jobs", _dollars(2 * IOWA.scheduled)],
            ["Secret Manager, the secret behind the API keys", _dollars(IOWA.secret)],
        ],
    )


def _billing() -> str:
    share = IOWA.cpu_always / IOWA.cpu
    return (
        f"A CPU's second costs {100 * share:.0f} % as much when instances are billed for all their "
        "life instead of for their requests.\nA service that is busy for a larger share of the "
        "time than that is cheaper with `cpu_idle = false`."
    )


def _sized(seconds: float) -> str:
    return f"{seconds:.4f}".rstrip("0")


def _dollars(value: float) -> str:
    return f"{value:,.2f}"


def write(measured: Measured) -> None:
    """Bring the page up to date."""
    PAGE.write_text(page(measured), encoding="utf-8")
