"""Write docs/settings.md and .env.example: `python -m compose.settings_docs`.

Both come from `core.settings.Settings`. `tests/docs` fails while either is out of date.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from core.settings import Settings

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Group:
    """The settings of one kind of reader: those from `first` to the next group's first one."""

    title: str
    reader: str
    first: str


GROUPS = (
    Group("Where Glimpse runs", "For everyone who starts Glimpse.", "backend"),
    Group("Models", "For those who choose a model and size the worker for it.", "model_uri"),
    Group(
        "Access",
        "For those who let other people or machines use Glimpse: see [Keys](operations/keys.md).",
        "api_keys",
    ),
    Group("Limits", "For those who size the API: its memory and its clients.", "max_image_bytes"),
    Group("Retention", "For those who answer for stored data.", "retention_days"),
    Group(
        "Delivery",
        "For those who run the queue. With Pub/Sub, DELIVERY_ATTEMPTS must be from 5 to 100. On "
        "Google Cloud, Terraform sets these numbers.",
        "delivery_attempts",
    ),
    Group(
        "Notifications",
        "For those who set up webhooks and e-mail: see [Notifications](notifications.md).",
        "webhook_allow_private",
    ),
    Group(
        "Google Cloud",
        "For those who run BACKEND=gcp: see [Google Cloud](operations/google-cloud.md). Terraform "
        "sets them.",
        "google_cloud_project",
    ),
    Group(
        "Google's emulators",
        "For those who run BACKEND=emulator: see [Emulators](operations/emulators.md).",
        "datastore_emulator_host",
    ),
    Group(
        "Logs, traces, and metrics",
        "For those who watch Glimpse: see [Metrics and traces](operations/metrics-and-traces.md).",
        "log_format",
    ),
)

_INTRODUCTION = """\
# Settings

Every setting is an environment variable, or a line of a `.env` file in the folder where Glimpse
starts. `.env.example` lists all of them. An environment variable wins over a line of `.env`.
Glimpse checks every value at start and names each wrong one. A name in `.env` that is not a setting
is an error too. In the environment, Glimpse ignores names that it does not know.

This page is written by `python -m compose.settings_docs` from `core/settings.py`.
"""

_ENV_INTRODUCTION = """\
# Copy to .env and uncomment the lines that you change. Each line shows the default.
# For two settings, the default value is not the same as no line: if BACKEND is set, make run does
# not choose a backend, and if STORAGE_EMULATOR_HOST is set, `gs://` refers to the emulator.
# Environment variables of the same name win over this file.
"""


def settings_page() -> str:
    """The text of docs/settings.md."""
    parts = [_INTRODUCTION]
    for group, names in grouped():
        lines = [f"## {group.title}", "", group.reader, ""]
        lines += ["| setting | default | meaning |", "|---|---|---|"]
        for name in names:
            default = f"`{text}`" if (text := _default(name)) else "(empty)"
            lines.append(f"| `{name.upper()}` | {default} | {_description(name)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def env_example() -> str:
    """The text of .env.example: every setting with its default, commented out."""
    parts = [_ENV_INTRODUCTION]
    for group, names in grouped():
        parts.append(f"# --- {group.title} ---\n")
        parts += [f"# {_description(name)}\n# {name.upper()}={_default(name)}\n" for name in names]
    return "\n".join(parts)


def grouped() -> list[tuple[Group, list[str]]]:
    """Every setting, in the order of the class, under its group. Raises ValueError for a stray."""
    names = list(Settings.model_fields)
    starts = [names.index(group.first) for group in GROUPS]
    if starts != sorted(starts) or starts[0] != 0:
        raise ValueError("The groups must have the order of the settings, and begin with the first")
    ends = [*starts[1:], len(names)]
    return [
        (group, names[start:end]) for group, start, end in zip(GROUPS, starts, ends, strict=True)
    ]


def _description(name: str) -> str:
    description = Settings.model_fields[name].description
    assert description, f"{name} needs a description"
    return f"{description}."


def _default(name: str) -> str:
    """The default value, as a line of `.env` has it."""
    default = Settings.model_fields[name].default
    assert default is not PydanticUndefined
    match default:
        case None:
            return ""
        case bool():
            return str(default).lower()
        case float():
            return f"{default:.10g}"
        case tuple():
            return ",".join(map(str, default))
        case SecretStr():
            return default.get_secret_value()
        case _:
            return str(default).removeprefix(f"{ROOT}/")  # the default of MODEL_URI


def main() -> None:
    (ROOT / "docs/settings.md").write_text(settings_page(), encoding="utf-8")
    (ROOT / ".env.example").write_text(env_example(), encoding="utf-8")


if __name__ == "__main__":
    main()
