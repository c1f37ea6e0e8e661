"""`/api/v1/models`: the models that the service classifies by."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.openapi import refusals
from app.models import schemas
from app.models.catalogue import ModelRef
from app.models.labels import check_label
from app.services import services_of
from core import errors
from core.domain.principals import Principal, Scope

TrainedName = Annotated[str, Path(description="The name of a trained model")]

router = APIRouter(prefix="/api/v1/models", tags=["models"], route_class=AuthenticatedRoute)


class InputSize(BaseModel):
    """The size in pixels that an image is scaled to."""

    width: int
    height: int


class ModelSummary(BaseModel):
    """A model without its labels."""

    id: str = Field(
        description="The identity, which results name", examples=["colours@3cde192ffdf4"]
    )
    name: str
    default: bool = Field(description="Whether requests without `model` use it")
    label_count: int
    trained: bool = Field(description="Whether it is trained on labels of the tenant")
    threshold: float | None = Field(
        description="The confidence from which the best label counts as confident. Null if the "
        "model has none, or one for each label"
    )
    category_threshold: float | None = Field(
        description="The best label also counts as confident if its narrowest category has at "
        "least this confidence. Null if only the label decides"
    )
    input: InputSize | None = Field(
        description="Null for a model in Python, which gets images of any size"
    )


class Model(ModelSummary):
    """A model with its labels. Only trained models have versions."""

    labels: list[str]
    categories: dict[str, list[str]] = Field(description="The broader labels of each label")
    card: str | None = Field(
        description="The model card in Markdown: origin, licence, measurements, limits"
    )
    base: str | None = Field(None, description="The base model of a trained model")
    active_version: str | None = Field(None, description="The version that the name means")
    corrections: int | None = Field(None, description="Corrections that the next training uses")
    versions: list[schemas.ModelVersion] | None = Field(None, description="The newest first")


class ModelList(BaseModel):
    models: list[ModelSummary]


@router.get(
    "",
    summary="List the models",
    response_model=ModelList,
    responses=refusals(errors.Unavailable),
)
@requires(Scope.READ)
async def list_models(request: Request, principal: Principal) -> dict[str, Any]:
    """The models that you can use, the default first."""
    models = services_of(request).models
    default = models.default
    return {"models": [_summary(each, default) for each in await models.list(principal.tenant)]}


@router.get(
    "/{model_id}",
    summary="Read a model",
    response_model=Model,
    responses=refusals(errors.NotFound, errors.InvalidRequest, errors.Unavailable),
)
@requires(Scope.READ)
async def get_model(
    request: Request,
    principal: Principal,
    model_id: Annotated[str, Path(description="The model's id or name")],
) -> dict[str, Any]:
    """A model with its labels, its categories and its card, or the versions of a trained model."""
    models, trained = services_of(request).models, services_of(request).trained_models
    model = await models.find(principal.tenant, model_id)
    if model is None:
        known = [each.id for each in await models.list(principal.tenant)]
        raise errors.NotFound("There is no such model.", extra={"known": known})
    return {
        **_summary(model, models.default),
        "labels": list(model.labels),
        "categories": {label: list(names) for label, names in model.categories.items()},
        "card": model.card or None,
        **model.more,
        **(await trained.document(principal.tenant, model.name) if model.trained else {}),
    }


@router.post(
    "/{model_id}/activate",
    status_code=204,
    summary="Activate a version of a trained model",
    responses=refusals(errors.NotFound, errors.InvalidRequest, errors.Unavailable),
)
@requires(Scope.JOBS)
async def activate_model(
    request: Request,
    principal: Principal,
    model_id: TrainedName,
    body: schemas.Activation,
) -> Response:
    """Requests by the model's name use the version from now on. Results of others stay."""
    models = services_of(request).trained_models
    await models.activate(principal.tenant, model_id, body.version)
    return Response(status_code=204)


@router.post(
    "/{model_id}/corrections",
    summary="Correct labels of a trained model",
    response_model=schemas.CorrectionCount,
    responses=refusals(errors.NotFound, errors.InvalidRequest, errors.Conflict, errors.Unavailable),
    # Fits MAX_CORRECTIONS with the longest labels, where each character is two JSON escapes.
    max_body_size=2 << 20,
)
@requires(Scope.JOBS)
async def correct_model(
    request: Request,
    principal: Principal,
    model_id: TrainedName,
    body: schemas.Corrections,
) -> dict[str, int]:
    """The next training of the model uses these labels, whatever labels it is given.

    A label that the model does not have yet needs five images in that training.
    """
    for each in body.corrections:
        check_label(each.label)
    corrections = {each.image_hash: each.label for each in body.corrections}
    models = services_of(request).trained_models
    return {"corrections": await models.correct(principal.tenant, model_id, corrections)}


@router.delete(
    "/{model_id}",
    status_code=204,
    summary="Delete a trained model or a version",
    responses=refusals(errors.NotFound, errors.InvalidRequest, errors.Unavailable),
)
@requires(Scope.ADMIN)
async def delete_model(
    request: Request,
    principal: Principal,
    model_id: Annotated[
        str, Path(description="The name of a trained model, or the id of a version of it")
    ],
) -> Response:
    """Deletes it and the results that it gave. The images stay."""
    name, at, _ = model_id.partition("@")
    services, tenant = services_of(request), principal.tenant
    for deleted in await services.trained_models.delete(tenant, name, model_id if at else ""):
        services.images.forget_model(tenant, deleted)
    return Response(status_code=204)


def _summary(model: ModelRef, default: ModelRef) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.name,
        "default": model.id == default.id,
        "label_count": len(model.labels),
        "trained": model.trained,
        "threshold": model.threshold,
        "category_threshold": model.category_threshold,
        "input": model.width and {"width": model.width, "height": model.height},
    }
