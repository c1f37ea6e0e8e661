"""What a request selects by its query: a model, and a view of the result."""

from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import QueryParams

from app.images.view import View, view_of
from app.services import services_of
from core.domain.principals import Principal
from core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Selection:
    """`model` is as the request names it, empty if it does not."""

    model: str
    view: View

    def query(self, model_id: str, default: View) -> str:
        """The query that selects the model with this id, and the view unless it is `default`."""
        parts = [f"?model={model_id}"]
        if self.view.labels != default.labels:
            parts.append(f"labels={self.view.labels}")
        if self.view.min_confidence != default.min_confidence:
            parts.append(f"min_confidence={self.view.min_confidence!r}")
        return "&".join(parts)


def selection_of(request: Request) -> Selection:
    """The selection in the query of `request`. Raises InvalidRequest."""
    default = services_of(request).images.default_selection
    if not request.scope["query_string"]:
        return default
    query = request.query_params
    return Selection(model_of(query), view_of(query, default.view))


def model_of(query: QueryParams) -> str:
    """The parameter `model`, or an empty text. Raises InvalidRequest if there are several."""
    models = query.getlist("model")
    if len(models) > 1:
        raise InvalidRequest("The parameter model is given twice.", extra={"field": "model"})
    return models[0] if models else ""


async def resolved_model(request: Request, principal: Principal, model: str) -> str:
    """The id of the model that classifies for this request. Raises UnknownModel, Unavailable."""
    models = services_of(request).models
    return (await models.resolve(principal.tenant, model)).id if model else models.default.id
