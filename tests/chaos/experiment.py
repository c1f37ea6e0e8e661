"""One experiment: load and faults, then a quiet phase, then the checks."""

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from core.backends import open_backend
from core.clock import utc_now
from core.domain.jobs import JobKey
from core.domain.records import Record
from tests.chaos.batches import Batcher, JobLedger
from tests.chaos.dead_letters import Replayer, ReplayLedger, replay_all
from tests.chaos.deletions import Deleter, DeletionLedger
from tests.chaos.emulators import ChaosEmulators, running_behind_lines
from tests.chaos.faults import Fault, faults
from tests.chaos.load import Client, Ledger, Watcher
from tests.chaos.push_proxy import PushProxy
from tests.chaos.stepping_clock import set_offset
from tests.support.emulators import free_addresses, own_namespace
from tests.support.plain_http import NO_TLS
from tests.support.process import with_constants
from tests.support.stack import MODULES, ROOT, Stack, free_port

CLIENTS = 8
DELETERS = 3
PORT_FAULTS = 0.02  # share of port calls that fail; fifteen times as many are delayed
PUSH_FAULTS = 0.02  # share of pushes with each kind of fault
LONGEST_LULL = 1.0  # seconds between two faults
# The faults continue until enough had an effect: a restart takes long on a busy machine.
LEAST_FAULTS, LEAST_ACCEPTED = 4, 3
LONGEST_OVERTIME = 120.0  # seconds
SECOND_WORKER, SECOND_API = "worker-2", "api-2"
CALM_SECONDS = 240.0  # seconds for accepted images to end after the faults


WORKERS = ("worker", SECOND_WORKER)
APIS = ("api", SECOND_API)


class ChaosStack(Stack):
    """A stack of two faulty processes of each service, whose queue pushes through a proxy.

    With one worker, no other process would take over the claims of a frozen one. With one API
    process, uploads and deletions of an image would wait for each other.
    """

    def __init__(self, folder: Path, bundle: Path, seed: int, **settings: object) -> None:
        super().__init__(folder, bundle, **settings)
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = folder / "clock"
        set_offset(self.clock, 0.0)
        self.proxy_port = free_port()
        self._second_ports = {SECOND_WORKER: free_port(), SECOND_API: free_port()}
        self.names += self._second_ports
        self.environment |= {
            "CHAOS_RATE": str(PORT_FAULTS),
            "CHAOS_SEED": str(seed),
            "CHAOS_CLOCK": str(self.clock),
            **with_constants(STALE_SECONDS=5, MIN_ACK_DEADLINE=10 if "BACKEND" in settings else 2),
            # A delivery may take 4 s. Both are shorter than a freeze: the other worker takes over.
            "LEASE_SECONDS": "2",
            # A fault is no reason to give up: what must end `success` has to be tried until then.
            "DELIVERY_ATTEMPTS": "100",
            "PUSH_ENDPOINT": f"http://127.0.0.1:{self.proxy_port}",
        }

    def launch(self, name: str) -> "subprocess.Popen[bytes]":
        service = name.removesuffix("-2")
        faulty = name in WORKERS + APIS
        module = ("tests.chaos.service", service) if faulty else (MODULES[name],)
        environment = dict(self.environment)
        if name == SECOND_WORKER:
            environment["WORKER_PORT"] = str(self.port_of(name))
        if name == SECOND_API:
            environment["API_PORT"] = str(self.port_of(name))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.unprivileged", *self.starter(), *module],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        # Lines go through a pipe, as under any supervisor: a full disk must not end the log.
        threading.Thread(target=self._keep, args=(name, process), daemon=True).start()
        return process

    def port_of(self, name: str) -> int | None:
        return self._second_ports.get(name) or super().port_of(name)

    @property
    def api_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{self.port_of(name)}" for name in APIS]

    def _keep(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with process.stdout, self.log_file(name).open("ab") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()


@dataclass
class Outcome:
    """What an experiment did and found. Every list is empty if all promises held."""

    seconds: float
    rate: float  # uploads per second that got a response during the faults
    accepted: int
    jobs: int
    deleted: int
    replayed: Counter[str]
    injected: Counter[str]
    answers: Counter[int]
    longest_seconds: float
    lost: list[str]
    duplicates: list[str]
    changed: list[str]
    stuck: list[str]
    wrong: list[str]

    @property
    def held(self) -> bool:
        return not (self.lost or self.duplicates or self.changed or self.stuck or self.wrong)


@contextmanager
def prepared(
    backend: str, folder: Path, bundle: Path, seed: int
) -> Iterator[tuple[ChaosStack, ChaosEmulators | None, float]]:
    """A stack on `backend`, its emulators, if any, and its uploads per second."""
    if backend == "embedded":
        yield ChaosStack(folder / "stack", bundle, seed), None, 20.0
        return
    namespace = own_namespace(free_addresses())
    with running_behind_lines(folder / "emulators", namespace) as emulators:
        # The emulators are much slower than the embedded backend.
        yield ChaosStack(folder / "stack", bundle, seed, **namespace), emulators, 6.0


class Experiment:
    """Let clients upload for `seconds` while faults follow each other, then check everything.

    Calls `progress` with the phase and the share of it that is complete.
    """

    def __init__(
        self,
        stack: ChaosStack,
        seconds: float,
        seed: int,
        progress: Callable[[str, float], None],
        emulators: ChaosEmulators | None,
        uploads_a_second: float,
    ) -> None:
        self._stack = stack
        self._seconds = seconds
        self._draw = random.Random(seed)
        self._progress = progress
        self._emulators = emulators
        self._rate = uploads_a_second
        self._seed = seed
        self._rest: list[Fault] = []
        self.ledger = Ledger()
        self.jobs = JobLedger()
        self.deletions = DeletionLedger()
        self.replays = ReplayLedger()

    def run(self) -> Outcome:
        stack = self._stack
        workers = [f"http://127.0.0.1:{stack.port_of(name)}" for name in WORKERS]
        with PushProxy(stack.proxy_port, workers, PUSH_FAULTS, self._seed) as proxy, stack:
            injected = self._storm(proxy)
            answers = Counter(self.ledger.answers)
            rate = sum(answers.values()) / (time.monotonic() - self._began)
            self._wait_until_all_ended()
            stuck = self._stuck()
            self._look_again()
            wrong = self.ledger.wrong + proxy.wrong + self._service_errors()
            wrong += self.jobs.check(stack.api)
            wrong += self.deletions.check(stack.api) + self.replays.wrong
            injected += proxy.injected
        return Outcome(
            seconds=self._seconds,
            rate=rate,
            accepted=len(self.ledger.accepted),
            jobs=len(self.jobs.cancelled),
            injected=injected,
            answers=answers,
            longest_seconds=self.ledger.longest,
            lost=self._lost(),
            duplicates=[
                h
                for h, count in self._stored().items()
                # An image that was deleted and uploaded again has a second result.
                if count > 1 and h not in self.deletions.expected
            ],
            deleted=self.deletions.deleted,
            replayed=self.replays.outcomes,
            changed=self.ledger.changed,
            stuck=stuck,
            wrong=wrong,
        )

    # --- The faults -------------------------------------------------------------------------------

    def _storm(self, proxy: PushProxy) -> Counter[str]:
        over = threading.Event()
        urls = self._stack.api_urls
        clients: list[threading.Thread] = [
            Watcher(urls[0], self.ledger, over),
            Batcher(urls, self.jobs, self._rate / 20, self._seed, over),
            Replayer(urls, self.replays, over),
        ]
        for n in range(CLIENTS):
            url = urls[n % len(urls)]
            clients.append(Client(url, self.ledger, n, self._rate / CLIENTS, over))
        for n in range(DELETERS):
            rate = self._rate / 4 / DELETERS
            clients.append(Deleter(urls, self.deletions, n, rate, over))
        self._began = time.monotonic()
        for client in clients:
            client.start()
        injected: Counter[str] = Counter()
        try:
            ends = self._began + self._seconds
            kinds = faults(
                self._stack, self._stack.clock, self._draw, self._emulators, self._messages_lost
            )
            while (left := ends - time.monotonic()) > 0 or self._too_calm(injected, -left):
                # Each kind once, in random order, before a kind repeats.
                self._rest = self._rest or self._draw.sample(kinds, len(kinds))
                fault = self._rest.pop()
                self._progress(fault.name, min(1.0, 1 - left / self._seconds))
                fault.inflict()
                injected[fault.name] += 1
                time.sleep(self._draw.uniform(0, LONGEST_LULL))
        finally:
            over.set()
            for client in clients:
                client.join(90)
        proxy.calm()
        set_offset(self._stack.clock, 0.0)
        self._stack.environment["CHAOS_RATE"] = "0"
        for name in (*APIS, *WORKERS):
            self._stack.stop(name)
            self._stack.start(name, timeout=120)
        return injected

    def _messages_lost(self) -> None:
        with self.replays.lock:
            self.jobs.unrepaired |= self.replays.jobs

    def _too_calm(self, injected: Counter[str], overtime: float) -> bool:
        """Whether the time is over but too few faults had an effect."""
        little = injected.total() < LEAST_FAULTS or len(self.ledger.accepted) < LEAST_ACCEPTED
        return little and overtime < LONGEST_OVERTIME

    # --- What must hold ---------------------------------------------------------------------------

    def _wait_until_all_ended(self) -> None:
        ends = time.monotonic() + CALM_SECONDS
        most = max(len(self.ledger.unfinished), 1)
        while (left := self.ledger.unfinished) and time.monotonic() < ends:
            self._progress("waiting for what was accepted", 1 - len(left) / most)
            for image_hash in left:
                self._ask(image_hash)
            time.sleep(0.2)
        with httpx.Client(timeout=60, verify=NO_TLS) as http:
            while replay_all(http, self._stack.api_urls[0], self.replays):
                self._progress("replaying dead letters", 0.5)
                assert time.monotonic() < ends, "dead letters of jobs cannot be replayed"
                time.sleep(0.2)
        while (open_jobs := self.jobs.unfinished()) and time.monotonic() < ends:
            self._progress("waiting for jobs", 0.5)
            for job_id in open_jobs:
                answer = self._stack.api.get(f"/api/v1/jobs/{job_id}")
                if answer.status_code == 200:
                    self.jobs.note(answer.json())
            time.sleep(0.2)

    def _look_again(self) -> None:
        """Read every result again: a terminal state never changes."""
        for image_hash in list(self.ledger.results):
            self._ask(image_hash)

    def _ask(self, image_hash: str) -> None:
        asked = time.monotonic()
        try:
            answer = self._stack.api.get(f"/what/status/{image_hash}")
            self.ledger.note(answer, image_hash, asked)
        except httpx.TransportError as error:
            self.ledger.wrong.append(f"the API did not answer after the faults: {error}")

    def _lost(self) -> list[str]:
        """The accepted images that did not end with a result."""
        results = self.ledger.results
        return [
            f"{h}: {results[h]['status'] if h in results else 'never ended'}"
            for h in self.ledger.accepted
            if h not in results or results[h]["status"] != "success"
        ]

    def _stuck(self) -> list[str]:
        """The records that are not final. A refused upload may have created some of them.

        Does not count records of a job whose creation was interrupted: a request with the same
        Idempotency-Key may continue it for an hour.
        """
        settings = self._stack.settings

        async def unfinished() -> list[Record]:
            async with open_backend(settings) as backend:
                records = await backend.records.stale(utc_now() + timedelta(days=1), 1000)
                keys = {JobKey(each.key.tenant, each.job) for each in records if each.job}
                jobs = await backend.jobs.get_many(list(keys)) if keys else {}
            unpromised = {(key.tenant, key.id) for key, job in jobs.items() if not job.sealed}
            return [each for each in records if (each.key.tenant, each.job) not in unpromised]

        ends = time.monotonic() + CALM_SECONDS
        while (left := asyncio.run(unfinished())) and time.monotonic() < ends:
            self._progress("waiting for records without a response", 0.5)
            time.sleep(0.5)
        return [f"{record.key.image_hash}: {record.status}" for record in left]

    def _stored(self) -> Counter[str]:
        """The number of results that the workers stored for each image, from their logs."""
        return Counter(
            line["image_hash"]
            for name in WORKERS
            for line in self._lines(name)
            if line["message"] == "classified"
        )

    def _service_errors(self) -> list[str]:
        """Responses of 5xx other than 503 in the logs of the services."""
        return [
            f"{name}: {line['status']} to {line['path']}"
            for name in (*APIS, *WORKERS)
            for line in self._lines(name)
            if line["message"] == "request" and line["status"] >= 500 and line["status"] != 503
        ]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        lines = self._stack.log_lines(name)
        assert lines, f"{name} logged nothing: nothing could be told from it"
        return lines
