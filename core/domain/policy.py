"""How a message is delivered, as frozen data.

The embedded queue obeys it, the emulator set-up and Terraform are checked against it. All times are
in seconds. Meanings and bounds are Pub/Sub's:
https://cloud.google.com/pubsub/docs/push and https://cloud.google.com/pubsub/docs/dead-letter-topics
"""

from dataclasses import dataclass, replace

# The answers that acknowledge a push; anything else is a refusal and leads to another delivery.
ACKNOWLEDGING_STATUS = frozenset({102, 200, 201, 202, 204})

# Seconds: https://cloud.google.com/pubsub/docs/lease-management
MIN_ACK_DEADLINE = 10.0
MAX_ACK_DEADLINE = 600.0
MAX_BACKOFF = 600.0  # seconds
MIN_PUBSUB_ATTEMPTS = 5
MAX_ATTEMPTS = 100
BACKOFF_RATIO = 300  # the longest wait between deliveries, divided by the first one
# Without progress for so long, a record or a job is reconciled. An upload must take less than half.
STALE_SECONDS = 600.0
SHUTDOWN_SECONDS = 8.0  # for a stopping service to finish its work; Cloud Run kills it after 10
NOTIFICATION_CONCURRENCY = 16  # notifications that a queue or a worker delivers at once

CLASSIFY_PATH = "/generate_annotations"
DEAD_LETTER_PATH = "/generate_annotations_dlq"
JOBS_PATH = "/jobs"
NOTIFICATIONS_PATH = "/notifications"
# Called by a scheduler, not by a subscription.
RECONCILE_PATH = "/reconcile"
SCHEDULE_PATH = "/schedule"


@dataclass(frozen=True)
class DeliveryPolicy:
    """`attempts` deliveries with exponential backoff; then the message is a dead letter.

    `lease` is the duration of a claim. `retention` is how long an undelivered message is kept,
    `dead_letter_retention` how long a dead letter is. The reconciler handles records without a
    change for `stale_after`.

    The defaults keep a message for 15 hours of refusals: Pub/Sub counts every refusal, also those
    that Cloud Run answers itself when a service is at `max_instances`.
    """

    attempts: int = MAX_ATTEMPTS
    min_backoff: float = MAX_BACKOFF / BACKOFF_RATIO
    max_backoff: float = MAX_BACKOFF
    ack_deadline: float = 60.0
    lease: float = 30.0
    retention: float = 7 * 24 * 3600.0
    stale_after: float = STALE_SECONDS
    dead_letter_retention: float = 30 * 24 * 3600.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ValueError(f"attempts must be between 1 and {MAX_ATTEMPTS}")
        if not 0 <= self.min_backoff <= self.max_backoff <= MAX_BACKOFF:
            raise ValueError(f"need 0 <= min_backoff <= max_backoff <= {MAX_BACKOFF:g}")
        if not 0 < self.lease <= self.ack_deadline <= MAX_ACK_DEADLINE:
            raise ValueError("need 0 < lease <= ack_deadline <= 600")
        if self.retention <= self.attempts * self.max_backoff:
            raise ValueError("retention must outlast every attempt")
        if self.dead_letter_retention <= 0:
            raise ValueError("dead_letter_retention must be positive")

    def for_notifications(self) -> "DeliveryPolicy":
        """Four times the deliveries and five times the waits: a receiver may be down for hours."""
        return replace(
            self,
            attempts=min(MAX_ATTEMPTS, 4 * self.attempts),
            min_backoff=min(MAX_BACKOFF, 5 * self.min_backoff),
            max_backoff=min(MAX_BACKOFF, 5 * self.max_backoff),
        )

    @property
    def reconcile_interval(self) -> float:
        """Seconds between two runs of the reconciler."""
        return max(1.0, self.stale_after / 2)

    @property
    def touch_after(self) -> float:
        """Seconds after which an upload that repeats another one first touches the record.

        Well before the reconciler may fail the record as lost, and longer than any upload takes.
        """
        return self.stale_after / 2

    def backoff(self, attempt: int) -> float:
        """Seconds to wait after the `attempt`-th delivery (1 is the first) was refused."""
        # The exponent is bounded so that a huge attempt number cannot overflow a float.
        return min(self.max_backoff, self.min_backoff * 2.0 ** min(attempt - 1, 60))


@dataclass(frozen=True)
class JobPolicy:
    """The times of jobs, in seconds.

    `schedule_interval`: between two runs of the local scheduler (one minute with Cloud Scheduler).
    `refresh_interval`: between two counts of a running job's items. `retention`: how long a job and
    its items are kept after its end. `max_duration`: after this, an unfinished job fails.
    `seal_timeout`: after this, a job whose creation was interrupted is deleted. `stale_after`:
    after this time without progress, the open items are published again. `announce_after`: after
    this, the scheduler announces the end of a job if the process that ended it has not.
    """

    schedule_interval: float = 1.0
    refresh_interval: float = 0.5
    retention: float = 30 * 24 * 3600.0
    max_duration: float = 7 * 24 * 3600.0
    seal_timeout: float = 3600.0
    stale_after: float = STALE_SECONDS
    announce_after: float = 30.0


MAX_JOB_ITEMS = 1000  # images of a batch
MAX_EXAMPLES = 10_000  # images of a training
MAX_POSITION = MAX_EXAMPLES  # the last item of a training is the fit, after the examples
