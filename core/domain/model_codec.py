"""Trained models as JSON texts, for stores that keep them in that form."""

from pydantic import TypeAdapter

from core.domain.trained_models import TrainedModel

_MODEL = TypeAdapter(TrainedModel)


def text_of_model(model: TrainedModel) -> str:
    return _MODEL.dump_json(model).decode()


def model_of_text(text: str) -> TrainedModel:
    """The inverse of `text_of_model`."""
    return _MODEL.validate_json(text)
