"""Bundles in Python for tests."""

import json
from pathlib import Path
from typing import Any

# Says how bright and how large an image is.
BRIGHTNESS = """
class Predictor:
    def load(self, folder):
        self.words = (folder / "words.json").read_text()

    def predict(self, images):
        return [self.describe(image) for image in images]

    def describe(self, image):
        light = sum(image.resize((1, 1)).getpixel((0, 0))) / 765
        return {"labels": {"bright": light, "dark": 1 - light}, "output": {"size": image.size}}
"""


def write_python_bundle(folder: Path, code: str = BRIGHTNESS, **manifest: Any) -> Path:
    """Write a bundle in Python to `folder`, without sums, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictor.py").write_text(code, encoding="utf-8")
    (folder / "words.json").write_text("[]")
    document = {"name": "brightness", **manifest}
    (folder / "model.json").write_text(json.dumps(document))
    return folder


def predicting(expression: str) -> str:
    """The code of a predictor whose `predict(images)` returns the value of `expression`."""
    return f"""
import os
class Predictor:
    def load(self, folder):
        pass
    def predict(self, images):
        return {expression}
"""
