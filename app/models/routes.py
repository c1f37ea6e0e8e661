"""`/api/v1/models`: the models that the service classifies by."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.openapi import refusals
from app.services import services_of
from core import errors
from core.bundles.bundle import Bundle
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
    input: InputSize


class Model(ModelSummary):
    """A model with its labels."""

    labels: list[str]
    categories: dict[str, list[str]] = Field(description="The broader labels of each label")


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
    return {"models": [_summary(services_of(request).bundle)]}


@router.get(
    "/{model_id}",
    summary="Read a model",
    response_model=Model,
    responses=refusals(errors.NotFound, errors.InvalidRequest),
)
@requires(Scope.READ)
async def get_model(
    request: Request,
    principal: Principal,
    model_id: Annotated[str, Path(description="The model's id or name")],
) -> dict[str, Any]:
    """A model with its labels and categories."""
    bundle = services_of(request).bundle
    if model_id not in (bundle.identity, bundle.manifest.name):
        raise errors.NotFound(
            f"There is no model {model_id!r}.", extra={"known": [bundle.identity]}
        )
    return {
        **_summary(bundle),
        "labels": list(bundle.labels),
        "categories": {label: list(names) for label, names in bundle.categories.items()},
    }


def _summary(bundle: Bundle) -> Mapping[str, Any]:
    manifest = bundle.manifest
    return {
        "id": bundle.identity,
        "name": manifest.name,
        "default": True,
        "label_count": len(bundle.labels),
        "threshold": manifest.threshold,
        "input": {"width": manifest.input.width, "height": manifest.input.height},
    }
