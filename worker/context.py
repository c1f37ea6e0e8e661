"""What all requests to one worker process share."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cachetools import LRUCache
from starlette.requests import Request

from core.backends import Backend
from core.clock import Clock, utc_now
from core.domain.jobs import JobKey
from core.domain.policy import JobPolicy
from core.domain.records import RecordKey
from core.ports import UsageStore
from core.settings import Settings
from worker.claims import Claims
from worker.inference.model_registry import ModelRegistry
from worker.inference.trained_models import TrainedModels
from worker.metrics import WorkerMetrics
from worker.notifications.notifier import Notifier
from worker.priority_semaphore import PrioritySemaphore
from worker.training.client import Fit, fit_in_process

MAX_LOSSES = 10_000  # images


def lost_classifiers() -> LRUCache[RecordKey, int]:
    """No losses yet. Later, the most recent ones of at most `MAX_LOSSES` images."""
    return LRUCache(MAX_LOSSES)


@dataclass(frozen=True)
class WorkerContext:
    """Created once for each process, inside its event loop.

    `authenticate` raises for a request whose sender may not push. `slots` limits
    how many images are in progress, because Pub/Sub pushes the messages of every priority at the
    same time. `losses` counts the classifier processes lost while they classified an image. `usage`
    holds the request counts of API keys; the worker only purges old ones. `fit` fits the head of a
    trained model, and `fits` has the jobs whose models are being fitted.
    """

    settings: Settings
    authenticate: Callable[[Request], Awaitable[None]]
    backend: Backend
    usage: UsageStore
    models: ModelRegistry
    notifier: Notifier
    slots: PrioritySemaphore
    metrics: WorkerMetrics
    trained: TrainedModels
    fit: Fit = fit_in_process
    clock: Clock = utc_now
    claims: Claims = field(default_factory=Claims)
    losses: LRUCache[RecordKey, int] = field(default_factory=lost_classifiers)
    fits: dict[JobKey, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def job_policy(self) -> JobPolicy:
        return self.settings.jobs


def context_of(request: Request) -> WorkerContext:
    """The context of the application that serves this request."""
    context: WorkerContext = request.app.state.context
    return context
