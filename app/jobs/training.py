"""Creates training jobs: reads labelled images, checks them, and adds the model's corrections."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from app.batches.item import BatchItem
from app.batches.manifest import BatchManifest
from app.batches.reader import BatchKind, BatchReader
from app.http.json_body import JsonBody, parse_json
from app.http.parameters import Sha256
from app.jobs.creation import Created, JobCreator, JobOrder
from app.jobs.options import options_of, with_manifest
from app.models.catalogue import ModelCatalogue
from app.models.labels import check_label
from app.uploads.limiter import UploadSlot
from core.backends import Backend
from core.clock import Clock
from core.domain.jobs import Training
from core.domain.policy import MAX_EXAMPLES
from core.domain.principals import Principal
from core.domain.priority import Priority
from core.domain.trained_models import MAX_VERSIONS, MODEL_NAME, ModelKey
from core.errors import BatchTooLarge, Conflict, InvalidRequest
from core.outbound.mail_address import check_address
from core.settings import Settings

MIN_LABELS, MAX_LABELS = 2, 100
MIN_IMAGES = 5  # for each label
_SHOWN = 5  # hashes or labels that a refusal names


class Example(BaseModel):
    """An image that the service has, and its label."""

    model_config = ConfigDict(extra="forbid")

    image_hash: Sha256
    label: str


class TrainingRequest(JsonBody):
    """Labelled images and the options of a training. Query parameters may set the options."""

    name: Annotated[
        str | None,
        Field(
            pattern=f"^{MODEL_NAME.pattern}$",
            description="The model's name. If the model exists, the training adds a version.",
        ),
    ] = None
    base: Annotated[
        str | None,
        Field(description="The id or name of the base model; by default the default model"),
    ] = None
    activate: Annotated[
        bool | None, Field(description="Whether the new version becomes the active one; default")
    ] = None
    examples: list[Example] = Field(
        default_factory=list, description="At most 10,000; at least 5 of each label"
    )
    priority: Priority | None = None
    not_before: Annotated[str | None, Field(description="The earliest start (RFC 3339)")] = None
    notify_email: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingOrder(JobOrder):
    """The training that a client requests: `items` are what it sent.

    `examples` are the items to train on, with corrections.
    """

    examples: Sequence[BatchItem] = ()
    wanted: Training = field(kw_only=True)

    def __post_init__(self) -> None:
        """`check_examples` has checked the items."""

    @property
    def all_items(self) -> Sequence[BatchItem]:
        return self.examples

    @property
    def total(self) -> int:
        return len(self.examples) + 1

    @property
    def training(self) -> Training | None:
        return self.wanted

    @property
    def request_fingerprint(self) -> str:
        # Not the base's method by `super`: a dataclass with slots is another class.
        sent = JobOrder.request_fingerprint.fget(self)  # type: ignore[attr-defined]
        return f"{sent}-{self.wanted.name}-{self.wanted.activate}"

    @property
    def fingerprint(self) -> str:
        return self.request_fingerprint


@dataclass(frozen=True, slots=True)
class TrainingService:
    """The training jobs of one process."""

    settings: Settings
    backend: Backend
    models: ModelCatalogue
    batches: BatchReader
    creator: JobCreator
    clock: Clock

    async def create(
        self,
        request: Request,
        principal: Principal,
        slot: UploadSlot,
        kind: BatchKind | None = None,
    ) -> Created:
        """The job that the request asks for. `kind` is the only kind of body that it may have.

        Raises InvalidRequest, UnknownModel, Conflict, and the errors of `JobService.create`.
        """
        now, tenant = self.clock(), principal.tenant
        options = options_of(request, now)
        if options.model:
            raise _invalid("model", "is not an option of a training: its base model is `base`")
        base, activate = _base_and_activate(request)
        # As far as it is known before images are stored.
        if options.name:
            await self._check_name(tenant, options.name)
        await self._base(tenant, base)
        try:
            images, body = await self.batches.read_examples(request, tenant, slot, kind)
        except BatchTooLarge as error:
            if "max_items" not in error.extra:
                raise
            raise _invalid("examples", f"are more than {MAX_EXAMPLES}") from None
        document = parse_json(body, TrainingRequest)
        options = with_manifest(options, _manifest(document), now)
        if options.notify_email:
            check_address(options.notify_email, self.settings.email_domains)
        await self._check_name(tenant, options.name)
        base = base or document.base or ""
        base_id = await self._base(tenant, base)
        sent = [*labelled(images), *(_item(each) for each in document.examples)]
        model = await self.backend.models.get(ModelKey(tenant, options.name))
        if model is not None and model.full:
            raise Conflict(f"The model has {MAX_VERSIONS} versions. Delete one of them.")
        corrections = {} if model is None else model.corrections
        examples = check_examples(with_corrections(merged(sent), corrections), corrections)
        wanted = Training(options.name, _first(activate, document.activate))
        order = TrainingOrder(
            principal, base_id, sent, replace(options, model=base), examples=examples, wanted=wanted
        )
        slot.close()
        # Before any embedding exists: the deletion of an image looks for embeddings by base.
        await self.backend.models.add_base(tenant, base_id)
        return await self.creator.create(order)

    async def _base(self, tenant: str, base: str) -> str:
        """The identity of the base model. Raises UnknownModel, InvalidRequest."""
        found = await self.models.resolve(tenant, base)
        if not found.embeds:
            raise _invalid("base", f"has no embedding to train on: {found.id}")
        return found.id

    async def _check_name(self, tenant: str, name: str) -> None:
        if not MODEL_NAME.fullmatch(name):
            raise _invalid("name", "must have 1 to 63 lower-case letters, digits and inner dashes")
        taken = await self.models.find(tenant, name)
        if taken is not None and not taken.trained:
            raise _invalid("name", "is that of a model of the service")


def labelled(images: Sequence[BatchItem]) -> list[BatchItem]:
    """The images of an archive, each with the name of its folder as its label.

    One folder that contains all others does not count. Raises InvalidRequest for an image outside
    of any folder.
    """
    paths = [tuple(part for part in each.path.split("/") if part != ".") for each in images]
    outer = {path[0] for path in paths}
    skip = 1 if len(outer) == 1 and all(len(path) > 2 for path in paths) else 0
    for path in paths:
        if len(path) < 2 + skip:
            raise _invalid("examples", f"need a folder for each label: {'/'.join(path)} has none")
    return [_with_label(image, path[skip]) for image, path in zip(images, paths, strict=True)]


def merged(items: Sequence[BatchItem]) -> list[BatchItem]:
    """The items, each image once. Raises InvalidRequest for an image under two labels."""
    by_hash: dict[str, BatchItem] = {}
    found: list[BatchItem] = []
    twice: dict[str, str] = {}
    for item in items:
        known = by_hash.get(item.image_hash) if item.image_hash else None
        if known is None:
            by_hash[item.image_hash] = item
            found.append(item)
        elif known.metadata != item.metadata:
            twice[item.image_hash] = f"{known.metadata['label']!r} and {item.metadata['label']!r}"
    if twice:
        shown = ", ".join(f"{each} ({labels})" for each, labels in _few(twice))
        raise _invalid("examples", f"have {len(twice)} images under two labels: {shown}")
    return found


def with_corrections(items: Sequence[BatchItem], corrections: Mapping[str, str]) -> list[BatchItem]:
    """The items with the corrected labels, by image hash. Images that are missing are added."""
    corrected = [
        _with_label(item, corrections[item.image_hash]) if item.image_hash in corrections else item
        for item in items
    ]
    known = {item.image_hash for item in items}
    more = [
        _with_label(BatchItem(image_hash=image_hash), label)
        for image_hash, label in corrections.items()
        if image_hash not in known
    ]
    return [*corrected, *more]


def check_examples(items: list[BatchItem], corrections: Mapping[str, str]) -> list[BatchItem]:
    """The items, to which the `corrections` have been applied.

    Raises InvalidRequest, which names the labels that are wrong and the counts.
    """
    if len(items) > MAX_EXAMPLES:
        raise _invalid("examples", f"are {len(items)}; at most {MAX_EXAMPLES} are allowed")
    counts = Counter(str(item.metadata["label"]) for item in items)
    for label in counts:
        check_label(label)
    if not MIN_LABELS <= len(counts) <= MAX_LABELS:
        raise _invalid(
            "examples",
            f"have {len(counts)} labels; {MIN_LABELS} to {MAX_LABELS} are needed",
            labels=len(counts),
        )
    good = Counter(str(item.metadata["label"]) for item in items if item.error is None)
    few = {label: good[label] for label in sorted(counts) if good[label] < MIN_IMAGES}
    if few:
        shown = ", ".join(f"{label!r} has {count}" for label, count in _few(few))
        rule = f"need {MIN_IMAGES} images of each label: {shown}"
        if corrected := sorted(few.keys() & set(corrections.values())):
            named = ", ".join(repr(label) for label in corrected[:_SHOWN])
            rule += f" (corrections of the model use {named})"
        raise _invalid("examples", rule, too_few=few)
    return items


def _item(example: Example) -> BatchItem:
    return _with_label(BatchItem(image_hash=example.image_hash), example.label)


def _with_label(item: BatchItem, label: str) -> BatchItem:
    return replace(item, metadata={"label": label})


def _manifest(document: TrainingRequest) -> BatchManifest:
    """The options that a training shares with a batch."""
    return BatchManifest(
        name=document.name,
        priority=document.priority,
        not_before=document.not_before,
        notify_email=document.notify_email,
    )


def _base_and_activate(request: Request) -> tuple[str, bool | None]:
    query = request.query_params
    bases, activations = query.getlist("base"), query.getlist("activate")
    if len(bases) > 1 or len(activations) > 1:
        raise _invalid("base" if len(bases) > 1 else "activate", "is given twice")
    if activations and activations[0] not in ("true", "false"):
        raise _invalid("activate", "must be true or false")
    return "".join(bases), activations[0] == "true" if activations else None


def _first(*choices: bool | None) -> bool:
    return next((each for each in choices if each is not None), True)


def _few(found: Mapping[str, object]) -> list[tuple[str, object]]:
    return list(found.items())[:_SHOWN]


def _invalid(name: str, rule: str, **extra: object) -> InvalidRequest:
    return InvalidRequest(f"{name} {rule}.", extra={"field": name, **extra})
