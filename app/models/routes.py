"""`/api/v1/models`: the models that the service classifies by."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.openapi import refusals
from app.models.catalogue import ModelRef
from app.services import services_of
from core import errors
from core.domain.principals import Principal, Scope

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
    threshold: float | None = Field(
        description="The confidence from which the best label counts as confident"
    )
    input: InputSize | None = Field(
        description="Null for a model in Python, which gets images of any size"
    )


class Model(ModelSummary):
    """A model with its labels."""

    labels: list[str]
    categories: dict[str, list[str]] = Field(description="The broader labels of each label")
    card: str | None = Field(
        description="The model card in Markdown: origin, licence, measurements, limits"
    )


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
    """A model with its labels, its categories and its card."""
    models = services_of(request).models
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
    }


def _summary(model: ModelRef, default: ModelRef) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.name,
        "default": model.id == default.id,
        "label_count": len(model.labels),
        "threshold": model.threshold,
        "input": model.width and {"width": model.width, "height": model.height},
    }
