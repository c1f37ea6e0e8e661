"""The trained models of a tenant: found by requests, shown, activated, corrected and deleted."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import structlog
from cachetools import LRUCache

from app.models.catalogue import ModelRef
from core.backends import Backend
from core.clock import rfc3339
from core.concurrency import for_each
from core.domain import trained_models
from core.domain.records import head_name, report_name
from core.domain.trained_models import (
    MAX_CORRECTIONS,
    MODEL_NAME,
    ModelKey,
    ModelVersion,
    TrainedModel,
)
from core.domain.training_report import TrainingReport, report_of_bytes
from core.errors import Conflict, NotFound

log = structlog.get_logger(__name__)

CACHED_REPORTS = 256
AT_ONCE = 8  # reports that are read concurrently
RESULTS_AT_ONCE = 500  # results deleted in one step
NO_SUCH_MODEL = "There is no such trained model."


class TrainedModels:
    """The trained models of all tenants, as a `ModelSource` and for their routes."""

    def __init__(
        self, backend: Backend, find_base: Callable[[str], Awaitable[ModelRef | None]]
    ) -> None:
        """`find_base` finds a model of the service by its id."""
        self._backend = backend
        self._find_base = find_base
        self._reports: LRUCache[tuple[str, str], TrainingReport] = LRUCache(CACHED_REPORTS)

    async def find(self, tenant: str, name_or_id: str) -> ModelRef | None:
        name = name_or_id.partition("@")[0]
        if not MODEL_NAME.fullmatch(name):
            return None
        model = await self._backend.models.get(ModelKey(tenant, name))
        version = None if model is None else model.resolve(name_or_id)
        return None if version is None else await self._ref(tenant, version)

    async def list(self, tenant: str) -> Sequence[ModelRef]:
        """The active version of each model."""
        models = await self._backend.models.list(tenant)
        active = [each.resolve(each.key.name) for each in models]
        return await for_each(
            [each for each in active if each is not None],
            lambda version: self._ref(tenant, version),
            AT_ONCE,
        )

    async def document(self, tenant: str, name: str) -> dict[str, Any]:
        """The versions with their reports, the newest first. Raises NotFound."""
        model = await self._model(tenant, name)
        versions = list(reversed(model.usable))
        reports = await for_each(versions, lambda each: self._report(tenant, each.id), AT_ONCE)
        return {
            "active_version": model.active,
            "corrections": len(model.corrections),
            "versions": [
                _version_document(model, version, report)
                for version, report in zip(versions, reports, strict=True)
            ],
        }

    async def activate(self, tenant: str, name: str, id_: str) -> None:
        """Let requests by the name use the version `id_`. Raises NotFound."""
        model = await self._model(tenant, name)
        after = await self._backend.models.change(model.key, trained_models.activate(id_))
        if after is None:
            known = [each.id for each in model.usable]
            raise NotFound("The model has no such version.", extra={"known": known})
        log.info("version activated", model=id_, tenant=tenant)

    async def correct(self, tenant: str, name: str, corrections: Mapping[str, str]) -> int:
        """Add corrections for the next training; their number. Raises NotFound, Conflict."""
        model = await self._model(tenant, name)
        change = trained_models.correct(corrections)
        after = await self._backend.models.change(model.key, change)
        if after is None:
            raise Conflict(f"A model has at most {MAX_CORRECTIONS} corrections.")
        return len(after.corrections)

    async def delete(self, tenant: str, name: str, id_: str = "") -> Sequence[str]:
        """Delete a version, or the model, with its results. Raises NotFound, Unavailable.

        Returns the ids of the versions.

        A version is marked first, so that no request uses it any more. If the rest fails, the same
        call continues.
        """
        if not MODEL_NAME.fullmatch(name):
            raise NotFound(NO_SUCH_MODEL)
        key, store = ModelKey(tenant, name), self._backend.models
        model = await store.change(key, trained_models.begin_deletion(id_))
        if model is None:
            raise NotFound(NO_SUCH_MODEL)
        deleted = [each.id for each in model.versions if each.deleting and id_ in ("", each.id)]
        for each in deleted:
            await self._delete_version(tenant, each)
            model = await store.change(key, trained_models.end_deletion(each)) or model
        if not model.versions:
            await store.delete(key)
        log.info("model deleted", model=id_ or name, tenant=tenant)
        return deleted

    async def _delete_version(self, tenant: str, id_: str) -> None:
        blobs, records = self._backend.blobs, self._backend.records
        await blobs.delete(head_name(tenant, id_))
        await blobs.delete(report_name(tenant, id_))
        self._reports.pop((tenant, id_), None)
        while await records.delete_model(tenant, id_, RESULTS_AT_ONCE) == RESULTS_AT_ONCE:
            pass

    async def _model(self, tenant: str, name: str) -> TrainedModel:
        """The model with a version that can be used. Raises NotFound."""
        if MODEL_NAME.fullmatch(name):
            model = await self._backend.models.get(ModelKey(tenant, name))
            if model is not None and model.usable:
                return model
        raise NotFound(NO_SUCH_MODEL)

    async def _ref(self, tenant: str, version: ModelVersion) -> ModelRef:
        report, base = await self._report(tenant, version.id), await self._find_base(version.base)
        return ModelRef(
            version.id,
            version.id.partition("@")[0],
            tuple(each.label for each in report.labels),
            {},
            None,
            None if base is None else base.width,
            None if base is None else base.height,
            trained=True,
            more={"base": version.base},
        )

    async def _report(self, tenant: str, id_: str) -> TrainingReport:
        report = self._reports.get((tenant, id_))
        if report is None:
            data = await self._backend.blobs.get(report_name(tenant, id_))
            report = self._reports[tenant, id_] = report_of_bytes(data)
        return report


def _version_document(
    model: TrainedModel, version: ModelVersion, report: TrainingReport
) -> dict[str, Any]:
    return {
        "id": version.id,
        "active": version.id == model.active,
        "base": version.base,
        "job_id": version.job,
        "created_at": rfc3339(version.created_at),
        "images": report.images,
        "folds": report.folds,
        "accuracy": report.accuracy,
        "accuracy_interval": list(report.accuracy_interval),
        "macro_f1": report.macro_f1,
        "calibration_error": report.calibration_error,
        "labels": [asdict(each) for each in report.labels],
        "confusion": [list(row) for row in report.confusion],
        "mistakes": [asdict(each) for each in report.mistakes],
        "advice": list(report.advice),
    }
