"""The commands of `glimpse`."""

import contextlib
import sys
import webbrowser
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import click

from glimpse_client.cli import doctor as doctor_module
from glimpse_client.cli import label as label_module
from glimpse_client.cli import profiles
from glimpse_client.cli.context import Context, pass_context
from glimpse_client.cli.exit_codes import INTERRUPTED, SOME_FAILED, USAGE, exit_code
from glimpse_client.cli.label import COLUMNS, Choice, run_label
from glimpse_client.cli.output import (
    Format,
    Writer,
    open_output,
    printable,
    progress_bar,
    show_json,
    show_table,
)
from glimpse_client.client import VERSION, Glimpse
from glimpse_client.errors import ApiError, ConnectionFailed, GlimpseError, NotFound
from glimpse_client.images import DEFAULT_WAIT
from glimpse_client.types import Job

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Formats:
    """The options `--json`, `--ndjson`, `--csv` and `-q`, of which at most one is given."""

    def __init__(self, *extra: str) -> None:
        self._extra = extra

    def __call__(self, command: Any) -> Any:
        for name in reversed(("json", "ndjson", "csv", *self._extra)):
            words = ("-q", "--quiet") if name == "quiet" else (f"--{name}",)
            text = {
                "json": "Print one JSON document.",
                "ndjson": "Print one JSON document a line.",
                "csv": "Print CSV.",
                "quiet": "Print nothing; the exit code has the outcome.",
            }[name]
            command = click.option(
                *words, "format_", flag_value=name, default=None, help=text, type=str
            )(command)
        return command


model_option = click.option("--model", help="The model, by name or id.")


def view_options(command: Any) -> Any:
    """The options `--labels` and `--min-confidence`."""
    least = click.option(
        "--min-confidence",
        type=click.FloatRange(0, 1),
        help="Leave out labels below this confidence.",
    )
    return click.option("--labels", type=click.IntRange(1, 20), help="Labels for each image.")(
        least(command)
    )


@click.group(context_settings=SETTINGS)
@click.version_option(VERSION, prog_name="glimpse")
@click.option("--url", help="The service's address, instead of the profile's.")
@click.option("--api-key", help="The API key. GLIMPSE_API_KEY keeps it out of the process list.")
@click.option("--profile", default=profiles.DEFAULT, show_default=True, help="A stored profile.")
@click.pass_context
def cli(click_context: click.Context, url: str | None, api_key: str | None, profile: str) -> None:
    """Labels for your photos, from Glimpse."""
    ctx = Context(profile, url, api_key)
    click_context.obj = ctx
    click_context.call_on_close(ctx.close)


@cli.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Search folders inside folders.")
@model_option
@view_options
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="Of jobs.")
@click.option("--name", help="A name for jobs.")
@click.option("--wait", type=click.FloatRange(min=1), default=DEFAULT_WAIT, show_default=True,
              help="Seconds to wait for a single image.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file.")
@click.option("--dry-run", is_flag=True, help="Count the images and send nothing.")
@Formats("quiet")
@pass_context
def label(
    ctx: Context,
    paths: tuple[str, ...],
    recursive: bool,
    model: str | None,
    labels: int | None,
    min_confidence: float | None,
    priority: str | None,
    name: str | None,
    wait: float,
    output: str | None,
    dry_run: bool,
    format_: str | None,
) -> None:
    """Label photos: files, folders, URLs, or - for standard input.

    The service fetches URLs, from public addresses only. Photos that the service knows are not
    uploaded. A few photos are labelled one by one, more as jobs, which go on if you press Ctrl-C.
    """
    choice = Choice(model, labels, min_confidence, priority, wait, name)
    chosen = Format(format_ or _format_of(output))
    sys.exit(run_label(ctx, paths, recursive, choice, chosen, output, dry_run))


def _format_of(output: str | None) -> str:
    """The format that a file's name asks for."""
    suffix = Path(output or "").suffix.lower()
    return {".csv": "csv", ".json": "json", ".ndjson": "ndjson", ".jsonl": "ndjson"}.get(
        suffix, "table"
    )


@cli.group()
def jobs() -> None:
    """Jobs of many images."""


@jobs.command("list")
@click.option("--status", help="Only jobs with this status.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@Formats()
@pass_context
def list_jobs(ctx: Context, status: str | None, limit: int, format_: str | None) -> None:
    """List jobs, newest first."""
    found = list(islice(ctx.client.jobs.list(status=status), limit))
    if format_:
        columns = ["job_id", "name", "status", "total", "failed"]
        _documents(format_, [job.raw for job in found], columns)
        return
    rows = [
        [job.id, job.name or "", job.status, f"{job.progress} %", job.total, job.failed,
         job.created_at or ""]
        for job in found
    ]  # fmt: skip
    show_table(["job", "name", "status", "progress", "images", "failed", "created"], rows)


@jobs.command()
@click.argument("job_id")
@json_option
@pass_context
def show(ctx: Context, job_id: str, as_json: bool) -> None:
    """Show a job."""
    _show_job(ctx.client.jobs.get(job_id), as_json)


@jobs.command()
@click.argument("job_id")
@json_option
@pass_context
def watch(ctx: Context, job_id: str, as_json: bool) -> None:
    """Follow a job until it ends."""
    job = _watched(ctx, job_id)
    _show_job(job, as_json)
    if job.failed or job.status != "completed":
        sys.exit(SOME_FAILED)


def _watched(ctx: Context, job_id: str) -> Job:
    """Follow a job with a progress bar until it ends."""
    ctx.jobs_created(job_id)
    job = ctx.client.jobs.get(job_id)
    with progress_bar(ctx.console) as bar:
        task = bar.add_task(job_id, total=job.total or None, note="")
        for job in ctx.client.jobs.watch(job_id):
            note = f"{job.failed} failed" if job.failed else ""
            bar.update(task, completed=job.succeeded + job.failed, note=note)
    return ctx.client.jobs.get(job_id)


@jobs.command()
@click.argument("job_id")
@view_options
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file.")
@Formats()
@pass_context
def results(
    ctx: Context,
    job_id: str,
    labels: int | None,
    min_confidence: float | None,
    output: str | None,
    format_: str | None,
) -> None:
    """Print a job's results."""
    with open_output(output) as out:
        writer = Writer(Format(format_ or _format_of(output)), COLUMNS, out)
        found = ctx.client.jobs.results(job_id, labels=labels, min_confidence=min_confidence)
        for each in found:
            name = each.name or each.hash or ""
            labelled = label_module.from_result(name, each)
            writer.write(labelled.row(), labelled.document())
        writer.close()


@jobs.command()
@click.argument("job_id")
@pass_context
def cancel(ctx: Context, job_id: str) -> None:
    """Cancel a job. Work that has not started does not start."""
    (job,) = ctx.client.jobs.cancel(job_id)
    ctx.say(f"Job {job.id} is {job.status}.")


@jobs.command()
@click.argument("job_id")
@pass_context
def retry(ctx: Context, job_id: str) -> None:
    """Make a new job of a job's failed images, and print its id."""
    click.echo(ctx.client.jobs.retry(job_id).id)


def _show_job(job: Job, as_json: bool) -> None:
    if as_json:
        show_json(dict(job.raw))
        return
    rows: list[tuple[str, object]] = [
        ("job", job.id),
        ("name", job.name or ""),
        ("retry of", job.retry_of or ""),
        ("type", job.type),
        ("status", job.status),
        ("progress", f"{job.progress} %"),
        ("images", f"{job.total}: {job.succeeded} succeeded, {job.failed} failed, "
                   f"{job.cancelled} cancelled"),
        ("model", job.model),
        ("error", job.error.detail if job.error else ""),
    ]  # fmt: skip
    show_table(["", ""], [row for row in rows if row[1] != ""])


@cli.group()
def models() -> None:
    """Models that you can use."""


@models.command("list")
@json_option
@pass_context
def list_models(ctx: Context, as_json: bool) -> None:
    """List the models that you can use."""
    _show_list(
        as_json, ctx.client.models.list(), ["model", "name", "kind", "default"],
        lambda each: [each.id, each.name, "your own" if each.trained else "of the service",
                      "yes" if each.default else ""],
    )  # fmt: skip


@models.command("show")
@click.argument("name")
@pass_context
def show_model(ctx: Context, name: str) -> None:
    """Show a model as JSON, with its labels, and the figures of a trained one."""
    show_json(dict(ctx.client.models.get(name).raw))


@models.command("train")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="The model's name. An existing one gets a version.")
@click.option("--base", help="The base model; by default the default model.")
@click.option("--activate/--no-activate", default=True, help="Use the new version; default.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the end.")
@pass_context
def train_model(
    ctx: Context, folder: Path, name: str, base: str | None, activate: bool, no_wait: bool
) -> None:
    """Train a model on FOLDER, which has a folder with images for each label.

    Prints the identity of the new version, or with --no-wait the id of the job.
    """
    job = ctx.client.models.train(folder, name, base=base, activate=activate)
    if no_wait:
        click.echo(job.id)
        return
    ctx.say(f"Job {job.id} trains the model.")
    job = _watched(ctx, job.id)
    trained = job.raw.get("trained_model")
    if not trained:
        ctx.say(job.error.detail if job.error else f"The job is {job.status}.")
        raise SystemExit(SOME_FAILED)
    ctx.say(str(job.raw.get("result")))
    for advice in _advice(ctx, name, str(trained)):
        ctx.say(advice)
    click.echo(trained)


def _advice(ctx: Context, name: str, version: str) -> list[str]:
    versions = ctx.client.models.get(name).raw.get("versions") or []
    return [text for each in versions if each["id"] == version for text in each["advice"]]


@models.command("activate")
@click.argument("version")
@pass_context
def activate_model(ctx: Context, version: str) -> None:
    """Let the name of a trained model mean VERSION, an id such as birds@3cde192ffdf4."""
    ctx.client.models.activate(version)
    ctx.say(f"{version} is active.")


@models.command("delete")
@click.argument("name")
@pass_context
def delete_model(ctx: Context, name: str) -> None:
    """Delete a trained model, or a version by its id, with its results."""
    ctx.client.models.delete(name)
    ctx.say(f"{name} is deleted.")


@cli.group()
def images() -> None:
    """Images that the service has."""


@images.command("list")
@click.option("--label", "label_", help="Only images with this label.")
@click.option("--category", help="Only images with this category.")
@click.option("--min-confidence", type=click.FloatRange(0, 1), help="Of the label or category.")
@click.option("--status", type=click.Choice(["pending", "queued", "running", "success", "error"]))
@model_option
@click.option("--after", help="Only images created at this time or later (RFC 3339).")
@click.option("--before", help="Only images created before this time (RFC 3339).")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@Formats()
@pass_context
def list_images(
    ctx: Context,
    label_: str | None,
    category: str | None,
    min_confidence: float | None,
    status: str | None,
    model: str | None,
    after: str | None,
    before: str | None,
    limit: int,
    format_: str | None,
) -> None:
    """List images, newest first."""
    found = ctx.client.images.list(
        label=label_,
        category=category,
        min_confidence=min_confidence,
        status=status,
        model=model,
        after=after,
        before=before,
    )
    shown = list(islice(found, limit))
    if format_:
        _documents(format_, [each.raw for each in shown], ["image_hash", "status", "model"])
        return
    rows = [
        [each.hash, each.status, each.label or "",
         "" if each.confidence is None else f"{100 * each.confidence:.0f} %",
         each.created_at or ""]
        for each in shown
    ]  # fmt: skip
    show_table(["image", "status", "label", "confidence", "created"], rows)


@images.command("get")
@click.argument("image_hash")
@model_option
@view_options
@pass_context
def get_image(
    ctx: Context,
    image_hash: str,
    model: str | None,
    labels: int | None,
    min_confidence: float | None,
) -> None:
    """Show an image as JSON."""
    image = ctx.client.images.get(
        image_hash, model=model, labels=labels, min_confidence=min_confidence
    )
    show_json(dict(image.raw))


@images.command("delete")
@click.argument("image_hashes", nargs=-1, required=True)
@click.confirmation_option("-y", "--yes", prompt="Delete the images and their results?")
@pass_context
def delete_images(ctx: Context, image_hashes: tuple[str, ...]) -> None:
    """Delete images and their results."""
    for each in image_hashes:
        ctx.client.images.delete(each)


@images.command("open")
@click.argument("image_hash")
@pass_context
def open_image(ctx: Context, image_hash: str) -> None:
    """Open the image's page in a browser."""
    address = f"{ctx.client.url}/#/images/{image_hash}"
    click.echo(address)
    webbrowser.open(address)


@cli.group()
def keys() -> None:
    """API keys of your tenant (scope admin)."""


@keys.command("list")
@json_option
@pass_context
def list_keys(ctx: Context, as_json: bool) -> None:
    """List keys."""
    _show_list(
        as_json, ctx.client.keys.list(), ["key", "name", "scopes", "active", "expires"],
        lambda k: [k.id, k.name, " ".join(k.scopes), "yes" if k.active else "no",
                   k.expires_at or ""],
    )  # fmt: skip


@keys.command("create")
@click.argument("name")
@click.option("--scopes", help="Comma-separated, for example classify,read,jobs.")
@click.option("--expires", help="A time, or a duration such as 90d.")
@pass_context
def create_key(ctx: Context, name: str, scopes: str | None, expires: str | None) -> None:
    """Create a key. Its text is printed once, alone on standard output."""
    words = None if scopes is None else [each.strip() for each in scopes.split(",")]
    key = ctx.client.keys.create(name, scopes=words, expires=expires)
    click.echo(key.text)
    ctx.say(f"Key {key.id} of tenant {key.tenant}. The text above is not shown again.")


@keys.command("rotate")
@click.argument("key_id")
@click.option("--overlap-seconds", type=click.IntRange(0))
@pass_context
def rotate_key(ctx: Context, key_id: str, overlap_seconds: int | None) -> None:
    """Give a key a new text. It is printed once, alone on standard output."""
    click.echo(ctx.client.keys.rotate(key_id, overlap_seconds=overlap_seconds).text)


@keys.command("revoke")
@click.argument("key_id")
@pass_context
def revoke_key(ctx: Context, key_id: str) -> None:
    """Revoke a key."""
    ctx.client.keys.revoke(key_id)


@cli.group()
def webhooks() -> None:
    """Webhooks of your tenant (scope admin)."""


@webhooks.command("list")
@json_option
@pass_context
def list_webhooks(ctx: Context, as_json: bool) -> None:
    """List webhooks."""
    _show_list(
        as_json, ctx.client.webhooks.list(), ["webhook", "url", "events", "enabled", "last status"],
        lambda w: [w.id, w.url, " ".join(w.events), "yes" if w.enabled else "no",
                   (w.last_delivery or {}).get("status") or ""],
    )  # fmt: skip


@webhooks.command("create")
@click.argument("url")
@click.option("--events", help="Comma-separated, for example job.completed,job.failed.")
@pass_context
def create_webhook(ctx: Context, url: str, events: str | None) -> None:
    """Create a webhook. Its secret is printed once, alone on standard output."""
    words = None if events is None else [each.strip() for each in events.split(",")]
    webhook = ctx.client.webhooks.create(url, events=words)
    click.echo(webhook.secret)
    ctx.say(f"Webhook {webhook.id}. The secret above is not shown again.")


@webhooks.command("test")
@click.argument("webhook_id")
@pass_context
def test_webhook(ctx: Context, webhook_id: str) -> None:
    """Send a test delivery."""
    ctx.say(f"Message {ctx.client.webhooks.test(webhook_id)} is queued.")


@webhooks.command("delete")
@click.argument("webhook_id")
@pass_context
def delete_webhook(ctx: Context, webhook_id: str) -> None:
    """Delete a webhook."""
    ctx.client.webhooks.delete(webhook_id)


@cli.group("dead-letters")
def dead_letters() -> None:
    """Messages that used all of their delivery attempts (scope admin)."""


@dead_letters.command("list")
@json_option
@pass_context
def list_dead_letters(ctx: Context, as_json: bool) -> None:
    """List dead letters, newest first."""
    _show_list(
        as_json, list(ctx.client.dead_letters.list()),
        ["dead letter", "image", "reason", "since", "resolved"],
        lambda d: [d.id, d.image_hash or "", d.error.code if d.error else "",
                   d.dead_lettered_at or "", d.resolved_at or ""],
    )  # fmt: skip


@dead_letters.command("replay")
@click.argument("letter_ids", nargs=-1, required=True)
@pass_context
def replay(ctx: Context, letter_ids: tuple[str, ...]) -> None:
    """Publish the messages again."""
    for each in letter_ids:
        click.echo(f"{each}\t{ctx.client.dead_letters.replay(each)}")


@cli.command()
@click.option("--days", type=click.IntRange(1, 366), help="How far back; 30 by default.")
@click.option("--all-keys", is_flag=True, help="Of every key of the tenant (scope admin).")
@json_option
@pass_context
def usage(ctx: Context, days: int | None, all_keys: bool, as_json: bool) -> None:
    """Show requests, images and bytes by day."""
    _show_list(
        as_json,
        ctx.client.usage(days=days, all_keys=all_keys),
        ["day", "key", "requests", "images", "bytes", "refused"],
        lambda u: [u.day, u.key_id, u.requests, u.images, u.bytes, u.refused],
    )


@cli.command()
@click.option("--check/--no-check", default=True, help="Try the key before it is stored.")
@pass_context
def login(ctx: Context, check: bool) -> None:
    """Store an address and a key as a profile that only you can read."""
    url = click.prompt("Address", default=ctx.chosen().url, err=True)
    key = click.prompt("API key (empty for none)", default="", hide_input=True, err=True,
                       show_default=False) or None  # fmt: skip
    if check:
        with Glimpse(url, api_key=key) as client, contextlib.suppress(NotFound):
            client.images.get("0" * 64)
    file = profiles.save(ctx.profile, profiles.Profile(url, key))
    ctx.say(f"Stored as profile {ctx.profile!r} in {file}.")


@cli.command()
@json_option
@pass_context
def doctor(ctx: Context, as_json: bool) -> None:
    """Check the address, the key, the versions and the clock, and say what is wrong."""
    findings, code = doctor_module.run_doctor(ctx)
    if as_json:
        show_json([{"check": f.name, "ok": f.good, "detail": f.text} for f in findings])
    else:
        show_table(
            ["", "check", ""], [["ok" if f.good else "!!", f.name, f.text] for f in findings]
        )
    sys.exit(code)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(glimpse completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "glimpse", "_GLIMPSE_COMPLETE").source())


def _show_list(
    as_json: bool, found: list[Any], columns: list[str], row: Callable[[Any], list[object]]
) -> None:
    """Print what was found: as JSON, or a table in which `row` makes a line of each."""
    if as_json:
        show_json([each.raw for each in found])
    else:
        show_table(columns, [row(each) for each in found])


def _documents(format_: str, documents: list[Any], columns: list[str]) -> None:
    writer = Writer(Format(format_), columns, sys.stdout)
    for each in documents:
        writer.write(each, each)
    writer.close()


def run() -> None:
    """Run the command line and exit."""
    ctx = None
    try:
        with cli.make_context("glimpse", sys.argv[1:]) as click_context:
            ctx = click_context
            cli.invoke(click_context)
        sys.exit(0)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted.", err=True)
        if ctx is not None and isinstance(ctx.obj, Context):
            ctx.obj.say_running()
        sys.exit(INTERRUPTED)
    except ApiError as error:
        click.echo(f"Error: {printable(error.detail or error)}", err=True)
        sys.exit(exit_code(error))
    except GlimpseError as error:
        click.echo(f"Error: {printable(error)}", err=True)
        if isinstance(error, ConnectionFailed) and ctx is not None:
            hint = f"Does Glimpse run at {ctx.obj.chosen().url}? glimpse doctor checks it."
            click.echo(hint, err=True)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # The reader of a pipe has gone, as in `glimpse images list | head`.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        click.echo(f"Error: {printable(error)}", err=True)
        sys.exit(SOME_FAILED)
