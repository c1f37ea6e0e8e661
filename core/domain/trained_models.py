"""A tenant's trained models: their versions, and the transitions of a model.

A version is immutable. Its identity is `name@` and the first 12 hex digits of its head's SHA-256.
Its head and its report are blobs. The model has a short entry for each version, the pointer to the
active one, and the corrections for the next training. Times are timezone-aware UTC.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from core.domain.records import MODEL, TENANT
from core.domain.transitions import transition

MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
MAX_VERSIONS = 20
MAX_CORRECTIONS = 1000


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Identifies a trained model. Raises ValueError if a part is malformed."""

    tenant: str
    name: str

    def __post_init__(self) -> None:
        if not TENANT.fullmatch(self.tenant):
            raise ValueError("tenant is malformed")
        if not MODEL_NAME.fullmatch(self.name):
            raise ValueError("name is malformed")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """`id` is the identity, `job` the id of the job that trained it.

    `base` is the identity of the bundle whose embeddings it classifies, `images` the number that it
    was trained on. `accuracy` is measured on images that the fit did not see, as is its interval of
    95 %. A version that is being deleted has `deleting` set, and no request may use it.
    """

    id: str
    job: str
    base: str
    created_at: datetime
    images: int
    labels: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """`versions` are ordered by age, the oldest first. `active` is the id of one, or empty.

    `corrections` has the right label of each image that the model got wrong, by image hash.
    """

    key: ModelKey
    created_at: datetime
    updated_at: datetime
    versions: tuple[ModelVersion, ...] = ()
    active: str = ""
    corrections: Mapping[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> tuple[ModelVersion, ...]:
        """The versions that requests may use. A model without any is not shown to clients."""
        return tuple(each for each in self.versions if not each.deleting)

    @property
    def full(self) -> bool:
        """Whether a training has to be refused."""
        return len(self.versions) >= MAX_VERSIONS

    def version(self, id_: str) -> ModelVersion | None:
        """The version with this id, also if it is being deleted."""
        return next((each for each in self.versions if each.id == id_), None)

    def resolve(self, name_or_id: str) -> ModelVersion | None:
        """The version that a request means: the active one by the name, or one by its id."""
        wanted = self.active if name_or_id == self.key.name else name_or_id
        return next((each for each in self.usable if each.id == wanted), None)


def new_model(key: ModelKey, now: datetime) -> TrainedModel:
    return TrainedModel(key, created_at=now, updated_at=now)


def name_of(identity: str) -> str:
    """The name of the model that a version's identity belongs to. Raises ValueError."""
    if not MODEL.fullmatch(identity):
        raise ValueError("model is malformed")
    return identity.partition("@")[0]


# --- Transitions. ---------------------------------------------------------------------------------


@transition(durable=True)
def add_version(
    model: TrainedModel, now: datetime, version: ModelVersion, *, activate: bool
) -> TrainedModel | None:
    """Add a version, and activate it if `activate` is set or no other version is active.

    The corrections that were made before the training stay: a later training needs them too.
    Refused if the version exists. `MAX_VERSIONS` is not checked: a training that has decided on its
    version must be able to add it (`TrainedModel.full`).
    """
    if model.version(version.id) is not None:
        return None
    active = version.id if activate or not model.active else model.active
    return replace(model, versions=(*model.versions, version), active=active, updated_at=now)


@transition(durable=True)
def activate(model: TrainedModel, now: datetime, id_: str) -> TrainedModel | None:
    """Let requests by the model's name use this version. Refused if there is no such version."""
    if all(each.id != id_ for each in model.usable):
        return None
    return replace(model, active=id_, updated_at=now)


@transition(durable=True)
def correct(
    model: TrainedModel, now: datetime, corrections: Mapping[str, str]
) -> TrainedModel | None:
    """Add corrections; a later one for the same image replaces the earlier one.

    Refused if the model has no version, or would have more than `MAX_CORRECTIONS`.
    """
    merged = {**model.corrections, **corrections}
    if not model.usable or len(merged) > MAX_CORRECTIONS:
        return None
    return replace(model, corrections=merged, updated_at=now)


@transition(durable=True)
def begin_deletion(model: TrainedModel, now: datetime, id_: str = "") -> TrainedModel | None:
    """Mark a version, or all of them, so that no request uses it any more.

    If it was active, the newest remaining version becomes active. Refused if there is no such
    version. Repeating it changes nothing.
    """
    if id_ and model.version(id_) is None:
        return None
    versions = tuple(
        replace(each, deleting=True) if id_ in ("", each.id) else each for each in model.versions
    )
    left = [each.id for each in versions if not each.deleting]
    active = model.active if model.active in left else (left[-1] if left else "")
    corrections = model.corrections if left else {}
    return replace(model, versions=versions, active=active, corrections=corrections, updated_at=now)


@transition(durable=True)
def end_deletion(model: TrainedModel, now: datetime, id_: str) -> TrainedModel | None:
    """Remove a version that is marked, after its blobs and results are deleted."""
    found = model.version(id_)
    if found is None or not found.deleting:
        return None
    versions = tuple(each for each in model.versions if each.id != id_)
    return replace(model, versions=versions, updated_at=now)
