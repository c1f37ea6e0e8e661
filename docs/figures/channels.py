"""Single uploads beside the jobs and the slow receivers of one tenant: a simulation.

Pub/Sub pushes the messages of each channel to a Cloud Run service at its maximum of instances. The
delivery policies are those of `core`, the instances those of Terraform. Seeded: the same arguments
give the same figures.

What it assumes of Google's services:

- A push goes to the instance with the fewest requests. If all are full, Cloud Run holds it for up
  to ten seconds and then refuses it.
- The pushes in flight of a channel start at one, grow by one with each acknowledgement, and halve
  with each refusal. The queue delivers a refused message again after the backoff of its policy.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count

from core.domain.channels import IMAGES, NOTIFICATIONS, Channel
from core.domain.policy import MAX_JOB_ITEMS, NOTIFICATION_CONCURRENCY, DeliveryPolicy
from core.domain.priority import Priority
from docs.figures.queueing import exponential
from worker.notifications.receiver_limits import SLOTS_PER_RECEIVER, WAIT_SECONDS

SINGLE, LOW = IMAGES[Priority.HIGH], IMAGES[Priority.LOW]
LOW_IMAGES = 100_000
RECEIVERS = 20  # of the tenant with the jobs. Each gets a notification of each job
RECEIVER_SECONDS = 14.0  # until one of them responds
SINGLE_RATE = 5.0  # single uploads of other tenants a second
SECONDS = 180.0  # in which single uploads arrive
# https://cloud.google.com/run/docs/about-instance-autoscaling
HOLD_SECONDS = 10.0

Event = Callable[[], None]


@dataclass(frozen=True)
class CloudRun:
    """A service at its maximum of instances, and the channels whose pushes it gets."""

    channels: tuple[Channel, ...]
    instances: int
    concurrency: int  # requests in an instance
    cpus: int


# The defaults of terraform/envs/example/variables.tf.
INTERACTIVE = CloudRun((SINGLE,), instances=10, concurrency=16, cpus=2)
BATCH = CloudRun((LOW,), instances=10, concurrency=16, cpus=2)
NOTIFY = CloudRun((NOTIFICATIONS,), instances=5, concurrency=32, cpus=1)
THREE_SERVICES = (INTERACTIVE, BATCH, NOTIFY)
# For comparison: the instances of `interactive`, for all channels.
ONE_SERVICE = (replace(INTERACTIVE, channels=(SINGLE, LOW, NOTIFICATIONS)),)


@dataclass(frozen=True)
class ImageWork:
    """Seconds of an image in an instance: computation, and waits for Google's services.

    One half of the waits comes before the computation and one after it. Half of each varies.
    """

    cpu: float
    waits: float

    def wait(self, source: random.Random) -> float:
        """One of the two waits."""
        return self.waits / 4 * (1 + exponential(source))


@dataclass
class Result:
    """When each single upload was published and the seconds until its end, and totals."""

    uploads: list[tuple[float, float]] = field(default_factory=list)
    refused_uploads: int = 0  # refused pushes of single uploads
    images_done: float = 0.0  # when the last image of low priority ended
    notifications_done: float = 0.0

    def seconds(self) -> list[float]:
        return [seconds for _, seconds in self.uploads]


@dataclass(slots=True)
class _Message:
    channel: Channel
    published: float
    receiver: int = 0
    attempts: int = 0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A message that waits for an instance, or in one for a slot of its receiver."""

    message: _Message
    waits: bool = True


@dataclass(slots=True, eq=False)
class _Instance:
    service: "_Service"
    free_cpus: int
    requests: int = 0
    ready: list[tuple[int, int, Event]] = field(default_factory=list)  # a heap, by urgency
    notifying: int = 0
    to_receiver: Counter[int] = field(default_factory=Counter)
    waiting: deque[_Waiting] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _Service:
    concurrency: int
    instances: list[_Instance] = field(default_factory=list)
    held: deque[_Waiting] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _Subscription:
    policy: DeliveryPolicy
    service: _Service
    backlog: deque[_Message] = field(default_factory=deque)
    window: float = 1.0  # pushes that may be in flight
    in_flight: int = 0


class _Simulation:
    def __init__(self, services: Sequence[CloudRun], work: ImageWork, low: int, seed: int) -> None:
        self.result = Result()
        self._work = work
        self._low, self._completed = low, 0
        self._source = random.Random(seed)
        self._order = count()
        self._events: list[tuple[float, int, Event]] = []
        self._now = 0.0
        self._subscriptions: dict[Channel, _Subscription] = {}
        policy = DeliveryPolicy()
        for each in services:
            service = _Service(each.concurrency)
            service.instances = [_Instance(service, each.cpus) for _ in range(each.instances)]
            for channel in each.channels:
                own = policy.for_notifications() if channel is NOTIFICATIONS else policy
                self._subscriptions[channel] = _Subscription(own, service)

    def run(self, arrivals: Iterator[float]) -> Result:
        """Publishes a single upload at each of `arrivals`. Ends when all messages have ended."""

        def arrive() -> None:
            self._publish(_Message(SINGLE, self._now))
            plan_arrival()

        def plan_arrival() -> None:
            moment = next(arrivals, None)
            if moment is not None:
                self._plan(moment - self._now, arrive)

        plan_arrival()
        low = self._subscriptions[LOW]
        low.backlog.extend(_Message(LOW, 0.0) for _ in range(self._low))
        self._push(low)
        while self._events:
            self._now, _, event = heapq.heappop(self._events)
            event()
        return self.result

    def _plan(self, delay: float, event: Event) -> None:
        heapq.heappush(self._events, (self._now + delay, next(self._order), event))

    # --- Pub/Sub and Cloud Run --------------------------------------------------------------------

    def _publish(self, message: _Message) -> None:
        subscription = self._subscriptions[message.channel]
        subscription.backlog.append(message)
        self._push(subscription)

    def _push(self, subscription: _Subscription) -> None:
        while subscription.backlog and subscription.in_flight < int(subscription.window):
            message = subscription.backlog.popleft()
            message.attempts += 1
            subscription.in_flight += 1
            service = subscription.service
            instance = min(service.instances, key=lambda each: each.requests)
            if instance.requests < service.concurrency:
                self._accept(message, instance)
            else:
                self._wait(message, service.held, HOLD_SECONDS, lambda: None)

    def _wait(self, message: _Message, queue: deque[_Waiting], longest: float, end: Event) -> None:
        """Let the message wait in `queue`. After `longest` seconds, `end` it and refuse it."""
        waiting = _Waiting(message)
        queue.append(waiting)

        def expire() -> None:
            if waiting.waits:
                waiting.waits = False
                end()
                self._refuse(message)

        self._plan(longest, expire)

    def _accept(self, message: _Message, instance: _Instance) -> None:
        instance.requests += 1
        if message.channel is NOTIFICATIONS:
            self._wait(message, instance.waiting, WAIT_SECONDS, lambda: self._free(instance))
            self._notify(instance)
        else:
            self._classify(message, instance)

    def _free(self, instance: _Instance) -> None:
        """A request has ended: the instance takes one that Cloud Run holds."""
        instance.requests -= 1
        held = instance.service.held
        while held:
            waiting = held.popleft()
            if waiting.waits:
                waiting.waits = False
                self._accept(waiting.message, instance)
                return

    def _acknowledge(self, message: _Message, instance: _Instance) -> None:
        self._free(instance)
        subscription = self._subscriptions[message.channel]
        subscription.in_flight -= 1
        subscription.window += 1
        if message.channel is SINGLE:
            self.result.uploads.append((message.published, self._now - message.published))
        elif message.channel is NOTIFICATIONS:
            self.result.notifications_done = self._now
        else:
            self._complete_low()
        self._push(subscription)

    def _refuse(self, message: _Message) -> None:
        subscription = self._subscriptions[message.channel]
        subscription.in_flight -= 1
        subscription.window = max(1.0, subscription.window / 2)
        self.result.refused_uploads += message.channel is SINGLE
        delay = subscription.policy.backoff(message.attempts)
        self._plan(delay, lambda: self._publish(message))
        self._push(subscription)

    def _complete_low(self) -> None:
        self._completed += 1
        self.result.images_done = self._now
        if self._completed % MAX_JOB_ITEMS == 0:
            for receiver in range(RECEIVERS):
                self._publish(_Message(NOTIFICATIONS, self._now, receiver))

    # --- In an instance ---------------------------------------------------------------------------

    def _classify(self, message: _Message, instance: _Instance) -> None:
        urgency = 0 if message.channel is SINGLE else 1

        def ready() -> None:
            heapq.heappush(instance.ready, (urgency, next(self._order), compute))
            self._compute(instance)

        def compute() -> None:
            self._plan(self._work.cpu, computed)

        def computed() -> None:
            instance.free_cpus += 1
            self._compute(instance)
            wait = self._work.wait(self._source)
            self._plan(wait, lambda: self._acknowledge(message, instance))

        self._plan(self._work.wait(self._source), ready)

    def _compute(self, instance: _Instance) -> None:
        while instance.free_cpus and instance.ready:
            instance.free_cpus -= 1
            heapq.heappop(instance.ready)[2]()

    def _notify(self, instance: _Instance) -> None:
        """Begin the deliveries for which there are slots, the oldest first."""
        still: deque[_Waiting] = deque()
        for waiting in instance.waiting:
            receiver = waiting.message.receiver
            if not waiting.waits:
                continue
            if (
                instance.notifying < NOTIFICATION_CONCURRENCY
                and instance.to_receiver[receiver] < SLOTS_PER_RECEIVER
            ):
                waiting.waits = False
                self._deliver(waiting.message, instance)
            else:
                still.append(waiting)
        instance.waiting = still

    def _deliver(self, message: _Message, instance: _Instance) -> None:
        instance.notifying += 1
        instance.to_receiver[message.receiver] += 1

        def delivered() -> None:
            instance.notifying -= 1
            instance.to_receiver[message.receiver] -= 1
            self._notify(instance)
            self._acknowledge(message, instance)

        self._plan(RECEIVER_SECONDS, delivered)


def single_uploads(source: random.Random) -> Iterator[float]:
    """The moments of random uploads, at `SINGLE_RATE` for `SECONDS`."""
    now = 0.0
    while (now := now + exponential(source) / SINGLE_RATE) < SECONDS:
        yield now


@cache
def simulate(
    services: tuple[CloudRun, ...], work: ImageWork, low: int = LOW_IMAGES, seed: int = 1
) -> Result:
    """`low` images of low priority wait at the start, and single uploads come for a while."""
    arrivals = single_uploads(random.Random(seed + 1))
    return _Simulation(services, work, low, seed).run(arrivals)
