"""The environment variables of a peer's processes. Uses only the standard library."""

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
    """The configuration of the framework that is measured."""
    return os.environ[VARIANT]


def images() -> Path:
    """The folder of the images, each named by its SHA-256."""
    return Path(os.environ[IMAGES])


def bundle() -> Path:
    return Path(os.environ[BUNDLE])


def ready() -> Path:
    """The folder in which each worker process writes a file when it can take a task."""
    return Path(os.environ[READY])
