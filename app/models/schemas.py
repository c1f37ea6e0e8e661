"""The schemas of trained models in OpenAPI, and the bodies of their routes."""

from typing import Annotated

from pydantic import BaseModel, Field

from app.http.json_body import JsonBody
from app.http.parameters import Sha256
from app.http.timestamps import Timestamp
from app.models.labels import MAX_LABEL
from core.domain.records import MODEL


class LabelFigures(BaseModel):
    """How well a version recognises one label."""

    label: str
    support: int = Field(description="Images with this label")
    precision: float
    recall: float
    f1: float
    threshold: float = Field(description="The confidence from which an answer is confident")


class Mistake(BaseModel):
    """An image that was recognised as another label."""

    image_hash: str
    label: str = Field(description="The label that it was trained with")
    predicted: str
    confidence: float


class ModelVersion(BaseModel):
    """One training of a model. All figures are of images that its fit had left out."""

    id: str = Field(examples=["birds@3cde192ffdf4"])
    active: bool = Field(description="Whether requests by the model's name use it")
    base: str
    job_id: str
    created_at: Timestamp
    images: int = Field(description="Images that it was trained on")
    folds: int
    accuracy: float
    accuracy_interval: list[float] = Field(description="The 95 % interval: low and high")
    macro_f1: float = Field(description="The mean of the labels' F1")
    calibration_error: float = Field(
        description="The mean distance between confidence and accuracy"
    )
    labels: list[LabelFigures]
    confusion: list[list[int]] = Field(
        description="A row for each true label and a column for each answer, ordered as `labels`"
    )
    mistakes: list[Mistake] = Field(description="The twenty most confident ones")
    advice: list[str]


class Activation(JsonBody):
    """The version that requests by the model's name use."""

    version: Annotated[str, Field(pattern=f"^{MODEL.pattern}$")]


MAX_CORRECTIONS = 1000


class Correction(BaseModel):
    """The right label of an image."""

    image_hash: Sha256
    label: Annotated[str, Field(min_length=1, max_length=MAX_LABEL)]


class Corrections(JsonBody):
    """Right labels of images that the model got wrong."""

    corrections: Annotated[list[Correction], Field(min_length=1, max_length=MAX_CORRECTIONS)]


class CorrectionCount(BaseModel):
    """How many corrections the next training uses."""

    corrections: int
