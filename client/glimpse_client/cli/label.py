"""`glimpse label`: labels of photos, folders, URLs and standard input."""

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.progress import TaskID

from glimpse_client.cli.context import Context
from glimpse_client.cli.exit_codes import SOME_FAILED
from glimpse_client.cli.output import Format, Writer, open_output, printable, progress_bar
from glimpse_client.errors import ApiError, GlimpseError, Invalid, TooLarge, Unsupported
from glimpse_client.images import DEFAULT_WAIT
from glimpse_client.jobs import Batch, Options
from glimpse_client.sources import HEIC_SUFFIXES, Found, Source, find_images, is_url
from glimpse_client.types import Annotation, Image, JobResult

COLUMNS = ("file", "label", "confidence", "categories", "status", "error")
WINDOW = 1000  # files in memory at a time, and images of one job
SINGLE = 8  # up to so many images are uploaded one by one: each is labelled before all batches
AT_ONCE = 4
SHOWN_FAILED = 5  # images that the last message names
LONGEST_NAME = 200  # longer URLs are cut in the output: a `data:` URL contains the image


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to label: its name in the output, and its source or URL, or why it has none."""

    name: str
    source: Source | None = None
    url: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image of the output."""

    name: str
    status: str
    hash: str | None = None
    annotations: Sequence[Annotation] = ()
    categories: Sequence[Annotation] = ()
    confident: bool | None = None
    output: Any = None
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.status == "success"

    def row(self) -> Mapping[str, object]:
        """The values by column."""
        best = self.annotations[0] if self.annotations else None
        label = None if best is None else best.label
        if label is not None and self.confident is False:
            label = f"not sure ({label}?)"
        return {
            "file": self.name,
            "label": label,
            "confidence": None if best is None else best.confidence,
            "categories": ", ".join(each.label for each in self.categories[:3]),
            "status": self.status,
            "error": self.error,
        }

    def document(self) -> Mapping[str, Any]:
        """The JSON document."""
        return {
            "file": self.name,
            "image_hash": self.hash,
            "status": self.status,
            "annotations": [
                {"index": each.index, "label": each.label, "confidence": each.confidence}
                for each in self.annotations
            ],
            "categories": [
                {"index": each.index, "label": each.label, "confidence": each.confidence}
                for each in self.categories
            ],
            "confident": self.confident,
            "output": self.output,
            "error": self.error,
        }


@dataclass(slots=True)
class Choice:
    """The options of `glimpse label`."""

    model: str | None = None
    labels: int | None = None
    min_confidence: float | None = None
    priority: str | None = None
    wait: float = DEFAULT_WAIT
    name: str | None = None


@dataclass(slots=True)
class Skipped:
    """What was not sent, by reason."""

    heic: list[str] = field(default_factory=list)


def heic_decoder() -> Callable[[Path], bytes] | None:
    """A function that turns a HEIC file into a JPEG, if a decoder for Pillow is installed."""
    for module in ("pillow_heif", "pi_heif"):
        try:
            decoder = __import__(module)
            from PIL import Image as pillow  # noqa: N813
        except ImportError:
            continue
        decoder.register_heif_opener()

        def convert(path: Path) -> bytes:
            file = io.BytesIO()
            with pillow.open(path) as image:
                image.convert("RGB").save(file, "JPEG", quality=92)
            return file.getvalue()

        return convert
    return None


def wanted_images(paths: Sequence[str], recursive: bool, skipped: Skipped) -> Iterator[Wanted]:
    """The images of the arguments. Raises click.UsageError for a path that does not exist."""
    decoder = heic_decoder()
    for each in paths:
        if each == "-":
            yield Wanted("-", Source("-", data=sys.stdin.buffer.read()))
        elif is_url(each):
            yield Wanted(each if len(each) <= LONGEST_NAME else f"{each[:LONGEST_NAME]}…", url=each)
        else:
            try:
                found_files = find_images([each], recursive=recursive, also=HEIC_SUFFIXES)
                for found in found_files:
                    wanted = _wanted_file(found, decoder, skipped)
                    if wanted is not None:
                        yield wanted
            except FileNotFoundError as error:
                raise click.UsageError(str(error)) from None


def _wanted_file(
    found: Found, decoder: Callable[[Path], bytes] | None, skipped: Skipped
) -> Wanted | None:
    if found.path.suffix.lower() not in HEIC_SUFFIXES:
        return Wanted(found.name, Source(found.path.name, path=found.path))
    if decoder is None:
        skipped.heic.append(found.name)
        return None
    try:
        return Wanted(found.name, Source(f"{found.path.stem}.jpg", data=decoder(found.path)))
    except Exception as error:  # noqa: BLE001 -- whatever the decoder raises concerns this file
        return Wanted(found.name, refused=f"cannot be decoded: {error}")


def count_images(paths: Sequence[str], recursive: bool) -> int:
    """The number of images of the arguments, without opening a file. Blocks."""
    decodable = HEIC_SUFFIXES if heic_decoder() is not None else frozenset()
    total = 0
    for each in paths:
        if each == "-" or is_url(each) or not Path(each).is_dir():
            total += 1
        else:
            total += sum(1 for _ in find_images([each], recursive=recursive, also=decodable))
    return total


def windows(images: Iterable[Wanted], size: int) -> Iterator[list[Wanted]]:
    """`images` in lists of at most `size`."""
    source = iter(images)
    while window := list(islice(source, size)):
        yield window


def label_images(
    ctx: Context,
    images: Iterator[Wanted],
    choice: Choice,
    advance: Callable[[int, str], None],
) -> Iterator[Labelled]:
    """Label all images, in their order. A few are uploaded one by one, more as jobs.

    While the service labels one job, the next window of files is hashed and uploaded.
    """
    first = list(islice(images, SINGLE + 1))
    if len(first) <= SINGLE:
        yield from _one_by_one(ctx, first, choice, advance)
        return

    def rest() -> Iterator[Wanted]:
        yield from first
        yield from images

    before: tuple[list[Wanted], Running] | None = None
    for window in windows(rest(), WINDOW):
        running = Running(ctx, window, choice)
        if before is not None:
            yield from before[1].finish(advance)
        before = (window, running)
    if before is not None:
        yield from before[1].finish(advance)


class Running:
    """A window of images whose jobs the service has accepted."""

    def __init__(self, ctx: Context, window: list[Wanted], choice: Choice) -> None:
        self._ctx = ctx
        self._window = window
        self._choice = choice
        self._refused: dict[str, str] = {}
        # A job has no URLs: the service fetches each of them for a request of its own.
        urls = [wanted for wanted in window if wanted.url is not None]
        self._fetched = {each.name: each for each in _one_by_one(ctx, urls, choice, _no_bar)}
        sources = []
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            for wanted, outcome in zip(window, pool.map(_readable, window), strict=True):
                if wanted.source is None or outcome is not None:
                    self._refused[wanted.name] = wanted.refused or outcome or "cannot be in a job"
                else:
                    sources.append((wanted.source, wanted.name))
        options = Options(model=choice.model, priority=choice.priority, name=choice.name)
        self._batch: Batch | None = None
        if sources:
            ctx.creating_jobs()
            self._batch = ctx.client.jobs.create_from(
                sources, options=options, created=lambda job: ctx.jobs_created(job.id)
            )

    def finish(self, advance: Callable[[int, str], None]) -> Iterator[Labelled]:
        """Wait for the jobs and give the results in the order of the window."""
        by_name: dict[str, JobResult] = {}
        if self._batch is not None:
            done = 0
            for job_id in self._batch.ids:
                settled = 0
                for state in self._ctx.client.jobs.watch(job_id):
                    now = state.succeeded + state.failed
                    advance(now - settled, f"{state.failed} failed" if state.failed else "")
                    settled = now
                done += settled
            results = self._ctx.client.jobs.results(
                self._batch,
                labels=self._choice.labels,
                min_confidence=self._choice.min_confidence,
            )
            for result in results:
                for name in result.names:
                    by_name[name] = result
        for wanted in self._window:
            found = by_name.get(wanted.name)
            if wanted.url is not None:
                advance(1, "")
                yield self._fetched[wanted.name]
            elif found is not None:
                yield from_result(wanted.name, found)
            else:
                reason = self._refused.get(wanted.name, "the service has no result")
                advance(wanted.name in self._refused, "")
                yield Labelled(wanted.name, "error", error=reason)


def _no_bar(count: int, note: str) -> None:
    return None


def _readable(wanted: Wanted) -> str | None:
    """Why the source cannot be read, else None."""
    if wanted.source is None:
        return None
    try:
        with wanted.source.open() as file:
            return None if file.read(1) else "is empty"
    except OSError as error:
        return error.strerror or str(error)


def from_result(name: str, result: JobResult) -> Labelled:
    status = "success" if result.status == "succeeded" else result.status
    if result.status == "failed":
        status = "error"
    return Labelled(
        name,
        status,
        result.hash,
        result.annotations,
        result.categories,
        result.confident,
        result.output,
        None if result.error is None else result.error.detail,
    )


def _one_by_one(
    ctx: Context, images: Sequence[Wanted], choice: Choice, advance: Callable[[int, str], None]
) -> Iterator[Labelled]:
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        for labelled in pool.map(lambda wanted: _single(ctx, wanted, choice), images):
            advance(1, "")
            yield labelled


def _single(ctx: Context, wanted: Wanted, choice: Choice) -> Labelled:
    if wanted.refused is not None:
        return Labelled(wanted.name, "error", error=wanted.refused)
    try:
        image: Image = ctx.client.images.classify(
            wanted.url or _content(wanted.source),
            model=choice.model,
            labels=choice.labels,
            min_confidence=choice.min_confidence,
            wait=choice.wait,
        )
    except (Invalid, Unsupported, TooLarge) as error:
        if _concerns_request(error):
            raise
        return Labelled(wanted.name, "error", error=error.detail)
    except OSError as error:
        return Labelled(wanted.name, "error", error=error.strerror or str(error))
    return Labelled(
        wanted.name,
        image.status,
        image.hash,
        image.annotations,
        image.categories,
        image.confident,
        image.output,
        None if image.error is None else image.error.detail,
    )


def _content(source: Source | None) -> Path | bytes:
    assert source is not None
    return source.path if source.path is not None else source.data or b""


def _concerns_request(error: ApiError) -> bool:
    """Whether an option is wrong rather than the image."""
    about_image = error.problem.get("field") == "url"
    return error.code in ("invalid_request", "unknown_model") and not about_image


def run_label(
    ctx: Context,
    paths: Sequence[str],
    recursive: bool,
    choice: Choice,
    format_: Format,
    output: str | None,
    dry_run: bool,
) -> int:
    """Run the command. Returns its exit code."""
    skipped = Skipped()
    images = wanted_images(paths, recursive, skipped)
    if dry_run:
        count = sum(1 for _ in images)
        ctx.say(f"{count} {'image' if count == 1 else 'images'} would be labelled.")
        _say_skipped(ctx, skipped)
        return 0
    failed = total = 0
    named: list[Labelled] = []
    bar = progress_bar(ctx.console)
    try:
        with open_output(output) as out, bar:
            task: TaskID = bar.add_task("labelling", total=None, note="")

            def advance(count: int, note: str) -> None:
                bar.update(task, advance=count, note=note)

            def show_total() -> None:
                with contextlib.suppress(OSError):  # labelling the file reports it
                    bar.update(task, total=count_images(paths, recursive))

            # Folders may be on a slow disk, so the first images do not wait for the count.
            threading.Thread(target=show_total, daemon=True).start()
            writer = Writer(format_, COLUMNS, out)
            for each in label_images(ctx, images, choice, advance):
                total += 1
                failed += not each.good
                if not each.good and len(named) < SHOWN_FAILED:
                    named.append(each)
                writer.write(each.row(), each.document())
            bar.stop()
            writer.close()
    except GlimpseError:
        ctx.say_running()
        raise
    _say_skipped(ctx, skipped)
    if total == 0:
        raise click.UsageError("No images found. Use -r to search folders inside folders.")
    if failed:
        ctx.say(f"{failed} of {total} images failed.")
        for each in named:
            ctx.say(f"  {printable(each.name)}: {printable(each.error or each.status)}")
        if failed > len(named):
            ctx.say(f"  and {failed - len(named)} more")
        return SOME_FAILED
    return 0


def _say_skipped(ctx: Context, skipped: Skipped) -> None:
    if skipped.heic:
        shown = ", ".join(skipped.heic[:5]) + (" …" if len(skipped.heic) > 5 else "")
        ctx.say(
            f"Skipped {len(skipped.heic)} HEIC files ({shown}): "
            "install a decoder for Pillow, such as pillow-heif, to convert them."
        )
