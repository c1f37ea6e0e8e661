"""What the runner tells a peer's processes, as environment variables; the standard library only."""

import os
from pathlib import Path

REDIS = "BENCHMARK_REDIS"
TASK = "BENCHMARK_TASK"
VARIANT = "BENCHMARK_VARIANT"
IMAGES = "BENCHMARK_IMAGES"
BUNDLE = "BENCHMARK_BUNDLE"
READY = "BENCHMARK_READY"

NO_OP, CLASSIFY = "noop", "classify"


def redis_url() -> str:
    return os.environ[REDIS]


def task() -> str:
    """NO_OP or CLASSIFY."""
    return os.environ[TASK]


def variant() -> str:
    """Which of a framework's configurations is measured."""
    return os.environ[VARIANT]


def images() -> Path:
    """The folder of the images, each named by its SHA-256."""
    return Path(os.environ[IMAGES])


def bundle() -> Path:
    return Path(os.environ[BUNDLE])


def ready() -> Path:
    """The folder in which each worker process leaves a file once it could take a task."""
    return Path(os.environ[READY])
