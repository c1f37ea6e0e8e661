"""The schemas of images in OpenAPI. `app.images.representation` encodes records accordingly."""

from typing import Any

from pydantic import BaseModel, Field

from app.http.timestamps import Timestamp
from core.domain.records import IMAGE_HASH, Status


class Annotation(BaseModel):
    """One label."""

    index: int = Field(ge=1, description="The rank; 1 is the most likely label", examples=[1])
    label: str = Field(examples=["Egyptian cat"])
    confidence: float = Field(ge=0, le=1, description="A probability", examples=[0.8731])


class ImageError(BaseModel):
    """Why an image could not be classified."""

    code: str = Field(examples=["undecodable_image"])
    detail: str = Field(examples=["The image is damaged or incomplete."])
    retryable: bool = Field(description="Whether another upload starts a new attempt")


class Image(BaseModel):
    """An image and its result."""

    image_hash: str = Field(
        pattern=f"^{IMAGE_HASH.pattern}$", description="The SHA-256 of the image's bytes"
    )
    status: Status = Field(
        description="`pending` → `queued` → `running` → `success` or `error`. It never goes back, "
        "except that an upload after a retryable error starts a new attempt."
    )
    model: str = Field(description="The identity of the model: name@digest")
    annotations: list[Annotation] = Field(description="Most likely first; empty before success")
    categories: list[Annotation] = Field(
        description="Broader labels, each with the sum of its labels' probabilities. Ordered by "
        "confidence in whole percent, then the narrower first; empty if the model has none"
    )
    confident: bool | None = Field(
        description="Whether the best label reaches the model's threshold, or its narrowest "
        "category reaches the model's threshold for categories. If not, show the result as not "
        "sure. Null before success, and if the model has no threshold"
    )
    output: Any = Field(
        description="What the predictor of a bundle in Python returned beside labels, else null"
    )
    image_url: str = Field(description="Redirects to the image's bytes")
    error: ImageError | None
    attempts: int = Field(ge=0, description="How often a worker has started to classify it")
    created_at: Timestamp
    updated_at: Timestamp
