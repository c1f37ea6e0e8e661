"""Pages with calculated figures show what their scripts compute, and these compute rightly."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from core.domain.policy import MAX_JOB_ITEMS, DeliveryPolicy
from docs.figures import channels, cost, measured, scale
from docs.figures.page import DOCS, filled
from docs.figures.queueing import Scaling, Service, erlang_c, mean_wait, quantile, simulate

MEASURED = measured.read_measured()
EXPONENTIAL, CONSTANT = Service(0.0, 0.1), Service(0.1, 0.0)


# --- The pages -----------------------------------------------------------------------------------
def test_cost_page_is_current() -> None:
    assert cost.PAGE.read_text() == cost.page(MEASURED), "run make figures"


def test_scale_page_is_current() -> None:
    assert scale.PAGE.read_text() == scale.page(MEASURED), "run make figures"


def test_pictures_are_current() -> None:
    for name, svg in scale.pictures(MEASURED).items():
        assert (DOCS / "images" / name).read_text() == svg, "run make figures"
        assert f"](images/{name})" in scale.PAGE.read_text()


def test_charts_are_complete_and_have_alternative_text() -> None:
    labels = {
        scale.LOAD_PICTURE.name: {"1 slot", "4 slots", "16 slots", "64 slots", "aim"},
        scale.BURST_PICTURE.name: {start.label for start in scale.STARTS},
        scale.CHANNELS_PICTURE.name: set(scale.WAYS),
    }
    for name, svg in scale.pictures(MEASURED).items():
        texts: dict[str, set[str]] = {"title": set(), "desc": set(), "text": set()}
        for element in ElementTree.fromstring(svg).iter():
            texts.get(element.tag.rpartition("}")[2], set()).add(element.text or "")
        assert len(texts["title"]) == len(texts["desc"]) == 1
        assert labels[name] <= texts["text"]
        assert "prefers-color-scheme: dark" in svg
        assert "nan" not in svg


def test_assumptions_are_in_the_text() -> None:
    costs, scales = cost.PAGE.read_text(), scale.PAGE.read_text()
    assert round(cost.WORKER_WAITS / 0.015) == 7
    assert "seven\n  requests" in costs
    assert "15 ms each" in costs
    assert f"{cost.API_NEW:g} s for the upload and {cost.API_POLL:g} s for each" in costs
    assert f"an image of {cost.IMAGE_BYTES / 1000:g} kB" in costs
    assert f"{cost.API_NEW:g} s for the upload and {scale.PUSH:g} s for the push" in scales
    assert f"busy for {100 * scale.BUSY:g} %" in scales
    assert f"have {scale.IN_FLIGHT} requests in flight" in scales
    assert f"{channels.LOW_IMAGES:,} images of low priority" in scales
    assert f"each {MAX_JOB_ITEMS:,} images, {channels.RECEIVERS} receivers" in scales
    assert f"takes {channels.RECEIVER_SECONDS:g} s to respond" in scales
    assert f"upload {channels.SINGLE_RATE:g} single images a second" in scales
    assert f"[{channels.HOLD_SECONDS:g} s]" in scales


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs one"):
        filled("# Page", "new", "table")
    page = "<!-- new: begin -->\nold\n<!-- new: end -->"
    assert filled(page, "new", "table") == "<!-- new: begin -->\ntable\n<!-- new: end -->"


def test_measured_figures_are_those_of_the_benchmarks() -> None:
    page = measured.BENCHMARKS.read_text()
    assert f"| cached GET | {MEASURED.cached_gets:g} requests/s" in page
    assert f"one core | {MEASURED.worker_images:g} images/s" in page
    evaluation = (DOCS.parent / "models/default/MODEL_CARD.md").read_text()
    assert f"| median {1000 * MEASURED.annotate:.2f} ms" in evaluation


# --- Cost ----------------------------------------------------------------------------------------
def test_a_bill_by_hand() -> None:
    """The numbers are round, and each line is calculated here."""
    work = replace(cost.new_image(0.5), api_seconds=0.2)
    assert {line.part: round(line.dollars, 4) for line in cost.bill(work)} == {
        "worker": 13.25,  # 500,000 s x (0.000024 + 0.0000025)
        "API": 5.3,  # 200,000 s x (0.000024 + 0.0000025)
        "Cloud Run requests": 1.6,  # 4 million at 0.40
        "Datastore writes": 3.6,  # 40 x 0.09
        "Datastore reads": 2.7,  # 90 x 0.03
        "Cloud Storage operations": 5.4,  # 1000 x (0.005 + 0.0004)
        "Cloud Storage, a month": 2.2,  # 110 GB x 0.020
        "Pub/Sub": 0.0728,  # 2e9 bytes of a TiB, x 40
        "load balancer, traffic": 0.8531,  # 114.5e9 bytes in GiB, x 0.008
        "logs": 1.397,  # 3e9 bytes in GiB, x 0.50
    }
    assert cost.total(work) == pytest.approx(36.37, abs=0.01)


def test_a_bill_of_a_job_by_hand() -> None:
    work = replace(cost.image_of_a_job(0.425), api_seconds=0.2)
    lines = {line.part: round(line.dollars, 4) for line in cost.bill(work)}
    assert lines["worker"] == 13.25  # 425,000 s, and 75,000 s of waiting for item and job
    assert lines["Cloud Run requests"] == 0.4  # the push
    assert lines["Datastore writes"] == 4.5  # 50 x 0.09
    assert lines["Datastore reads"] == 3.3  # 110 x 0.03
    alone = {line.part: line.dollars for line in cost.bill(cost.bundled_work(MEASURED))}
    for part in ("Cloud Storage operations", "Cloud Storage, a month", "Pub/Sub"):
        assert lines[part] == round(alone[part], 4)


def test_assumptions_about_jobs_are_in_the_text() -> None:
    text = cost.PAGE.read_text()
    assert f"{cost.API_IN_BATCH:g} s for an image's share" in text
    assert round(cost.JOB_WAITS / 0.015) == 5
    assert "five at 15 ms" in text
    work = cost.job_work(MEASURED)
    assert (work.writes, work.reads) == (5, 11)
    assert "five writes" in text
    assert "eleven reads" in text


def test_each_price_counts_once() -> None:
    """A dollar more a unit is as many dollars more as there are units."""
    work = cost.bundled_work(MEASURED)
    before = cost.total(work)
    for field, units in (
        ("reads", 9e6),
        ("writes", 4e6),
        ("requests", 4e6),
        ("class_a", 1e6),
        ("class_b", 1e6),
        ("cpu", 1e6 * (work.api_seconds + work.worker_seconds)),
    ):
        dearer = replace(cost.IOWA, **{field: getattr(cost.IOWA, field) + 1})
        assert cost.total(work, dearer) - before == pytest.approx(units)


def test_a_known_image_asks_nothing_of_queue_worker_and_storage() -> None:
    for work in (cost.KNOWN, cost.LOOKED_UP, cost.SENT_AGAIN):
        parts = {line.part for line in cost.bill(work)}
        assert not parts & {"worker", "Pub/Sub", "Datastore writes", "Cloud Storage operations"}
        assert cost.total(work) < cost.total(cost.bundled_work(MEASURED)) / 10


def terraform_variables() -> dict[str, str]:
    """The declaration of each variable of the example."""
    variables = DOCS.parent / "terraform/envs/example/variables.tf"
    if not variables.exists():
        pytest.skip("no Terraform in this checkout")
    return dict(re.findall(r'^variable "(\w+)" {\n(.*?)^}', variables.read_text(), re.M | re.S))


def numbers(declaration: str) -> dict[str, float]:
    """The default of each number in it."""
    found = re.findall(r'(\w+) += optional\(\w+, "?(\d+)', declaration)
    return {name: float(value) for name, value in found}


def test_instances_are_those_that_terraform_makes() -> None:
    """A worker's instance holds a slot for each CPU; the bill has one slot."""
    sizes = {name: numbers(body) for name, body in terraform_variables().items()}
    work = cost.bundled_work(MEASURED)
    assert (sizes["api"]["cpu"], sizes["api"]["memory"]) == (work.cpus, work.api_memory)
    assert sizes["api"]["concurrency"] == scale.IN_FLIGHT
    assert sizes["worker"]["memory"] / sizes["worker"]["cpu"] == work.worker_memory / work.cpus


def test_priced_services_are_those_that_terraform_makes() -> None:
    declared = terraform_variables()
    found = {"api": numbers(declared["api"])} | {
        name: numbers(body)
        for name, body in re.findall(
            r"(\w+) = optional\(object\({(.*?)}\), {}\)", declared["worker"], re.S
        )
    }
    assert {each.name: (each.cpus, each.memory) for each in cost.SERVICES} == {
        name: (size["cpu"], size["memory"]) for name, size in found.items()
    }
    assert {size["min_instances"] for size in found.values()} == {0}


def test_instances_by_hand() -> None:
    """2 vCPU and 2 GiB for 2,628,000 seconds."""
    (batch,) = (each for each in cost.SERVICES if each.name == "batch")
    assert batch.month(cost.IOWA.cpu_idle, cost.IOWA.memory_idle) == pytest.approx(26.28)
    assert batch.month(cost.IOWA.cpu_always, cost.IOWA.memory_always) == pytest.approx(105.12)
    # 1000 x 0.005, 8 GB x 0.020, and 2,000 s x (0.000024 + 0.0000025)
    assert cost.total(cost.THUMBNAIL) == pytest.approx(5.0 + 0.16 + 0.053)


# --- Channels ------------------------------------------------------------------------------------
WORK = channels.ImageWork(cpu=0.01, waits=0.1)


def test_services_are_those_that_terraform_makes() -> None:
    worker = terraform_variables()["worker"]
    for name, service in (
        ("interactive", channels.INTERACTIVE),
        ("batch", channels.BATCH),
        ("notify", channels.NOTIFY),
    ):
        (body,) = re.findall(rf"\b{name} = optional\(object\({{(.*?)}}\), {{}}\)", worker, re.S)
        size = numbers(body)
        assert size["cpu"] == service.cpus
        assert size["concurrency"] == service.concurrency
        assert size["max_instances"] == service.instances


def test_single_uploads_do_not_wait_for_jobs_and_slow_receivers() -> None:
    """The promise of the page: less than two seconds each, transport included."""
    together = scale.beside_jobs(MEASURED, "one service").seconds()
    apart = scale.beside_jobs(MEASURED, "three services").seconds()
    assert len(apart) == len(together) > 500
    way = cost.API_NEW + scale.PUSH
    assert way + max(apart) < scale.AIM_SECONDS == 2.0
    assert way + max(together) > scale.AIM_SECONDS


@pytest.mark.parametrize("services", [channels.THREE_SERVICES, channels.ONE_SERVICE])
def test_idle_services_add_no_wait(services: tuple[channels.CloudRun, ...]) -> None:
    result = channels.simulate(services, WORK, low=0)
    assert min(result.seconds()) > WORK.cpu + WORK.waits / 2
    assert quantile(result.seconds(), 0.5) < WORK.cpu + 1.2 * WORK.waits
    assert (result.refused_uploads, result.images_done, result.notifications_done) == (0, 0.0, 0.0)


def test_images_and_notifications_take_the_time_of_their_slots() -> None:
    """One instance with one request at a time: one image after the other, and 20 receivers."""
    batch = replace(channels.BATCH, instances=1, concurrency=1)
    notify = replace(channels.NOTIFY, instances=1, concurrency=1)
    services = (channels.INTERACTIVE, batch, notify)
    result = channels.simulate(services, WORK, low=MAX_JOB_ITEMS)
    alone = MAX_JOB_ITEMS * (WORK.cpu + WORK.waits)
    assert alone * 0.95 < result.images_done
    notified = result.notifications_done - result.images_done
    assert notified >= channels.RECEIVERS * channels.RECEIVER_SECONDS


def test_refused_push_is_repeated_after_the_backoff() -> None:
    """A service with one request, which a notification holds longer than Cloud Run waits."""
    one = replace(channels.ONE_SERVICE[0], instances=1, concurrency=1)
    result = channels.simulate((one,), WORK, low=MAX_JOB_ITEMS)
    assert result.refused_uploads > 0
    assert len(result.uploads) == len(channels.simulate(channels.THREE_SERVICES, WORK, 0).uploads)
    assert max(result.seconds()) > channels.HOLD_SECONDS + DeliveryPolicy().min_backoff


# --- Queueing ------------------------------------------------------------------------------------
def test_erlang_s_formula_where_it_is_known() -> None:
    # One slot waits as often as it is busy; two with a load of one: a third of all wait.
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    # Against the sum that the formula is usually written as.
    assert erlang_c(5, 4.0) == pytest.approx(0.5541, abs=1e-4)
    assert erlang_c(100, 0.0) == 0.0
    with pytest.raises(ValueError, match="without bound"):
        erlang_c(2, 2.0)


@pytest.mark.parametrize(("slots", "load"), [(1, 0.5), (2, 0.7), (8, 0.75)])
def test_simulation_agrees_with_erlang(slots: int, load: float) -> None:
    """Exponential times: the share that waits, and for how long."""
    rate = load * slots / EXPONENTIAL.mean
    seconds = 120_000 / rate
    outcome = simulate(rate, EXPONENTIAL, slots, seconds, warm_up=seconds / 20)
    waits = [wait for wait in outcome.waited if wait > 0]
    share = len(waits) / len(outcome.waited)
    assert share == pytest.approx(erlang_c(slots, rate * 0.1), rel=0.03)
    mean = sum(outcome.waited) / len(outcome.waited)
    assert mean == pytest.approx(mean_wait(slots, rate, EXPONENTIAL), rel=0.08)
    assert len(outcome.waited) / (seconds * 0.95) == pytest.approx(rate, rel=0.02)


def test_simulation_agrees_with_pollaczek_and_khinchine() -> None:
    """One slot, constant times: half of the exponential wait."""
    outcome = simulate(8.0, CONSTANT, 1, 15_000.0, warm_up=500.0)
    mean = sum(outcome.waited) / len(outcome.waited)
    assert mean == pytest.approx(0.8 * 0.1 / (2 * 0.2), rel=0.05)
    assert mean_wait(1, 8.0, CONSTANT) == pytest.approx(mean_wait(1, 8.0, EXPONENTIAL) / 2)


def test_same_seed_same_figures() -> None:
    first = simulate(20.0, EXPONENTIAL, 4, 50.0, seed=3)
    assert first == simulate(20.0, EXPONENTIAL, 4, 50.0, seed=3)
    assert first != simulate(20.0, EXPONENTIAL, 4, 50.0, seed=4)


def test_every_image_is_classified_in_order_of_arrival() -> None:
    outcome = simulate(50.0, CONSTANT, 2, 60.0)  # far more than two slots can do
    assert len(outcome.latency) == pytest.approx(3000, rel=0.1)
    assert outcome.arrived == sorted(outcome.arrived)
    assert max(outcome.latency) > 60
    assert min(outcome.latency) >= CONSTANT.mean


def test_a_changing_rate_is_followed() -> None:
    outcome = simulate(
        lambda time: 100.0 if time < 50 else 10.0, CONSTANT, 100, 100.0, highest=100.0
    )
    early = sum(arrived < 50 for arrived in outcome.arrived)
    assert early == pytest.approx(5000, rel=0.05)
    assert len(outcome.arrived) - early == pytest.approx(500, rel=0.15)


def test_instances_start_after_their_delay_up_to_the_maximum() -> None:
    scaling = Scaling(most=7, step=3, interval=1.0, delay=4.0)
    outcome = simulate(200.0, CONSTANT, 1, 30.0, scaling=scaling)
    assert outcome.slots == [(0.0, 1), (5.0, 4), (5.0, 7)]


def test_slow_starts_hurt_and_warm_places_help() -> None:
    service = scale.worker_service(MEASURED)
    slowest, slow, quick, warm = (
        quantile(scale.in_a_burst(service, start).latency, 0.99) for start in scale.STARTS
    )
    assert slowest > slow > quick > warm


def test_quantile_is_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert quantile(values, 0.99) == 99.0
    assert quantile(values, 0.5) == 50.0
    assert quantile([3.0], 0.01) == 3.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_pool_for_a_load_has_the_work_and_some_rest() -> None:
    assert scale.slots_for(0.1, EXPONENTIAL) == 1
    assert scale.slots_for(70.0, EXPONENTIAL) == 10  # 7 at work, 70 % of 10
