"""The baselines: FastAPI and the model without Glimpse."""

import argparse
import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from multipart import MultipartParser, parse_options_header


def bare_app(answer: dict[str, Any]) -> FastAPI:
    """GET returns a plain dict. POST takes the same form and returns the hash of its only file.

    It parses the form with the parser that Glimpse uses: FastAPI's `UploadFile` needs another one,
    whose package cannot be installed beside it.
    """
    app = FastAPI()

    @app.get("/result")
    async def result() -> dict[str, Any]:
        return answer

    @app.post("/upload")
    async def upload(request: Request) -> dict[str, str]:
        _, options = parse_options_header(request.headers["content-type"])
        form = MultipartParser(io.BytesIO(await request.body()), options["boundary"])
        (image,) = form.parts()
        return {"image_hash": hashlib.sha256(image.raw).hexdigest()}

    return app


def serve(port: int, answer: dict[str, Any]) -> None:
    uvicorn.run(bare_app(answer), host="127.0.0.1", port=port, log_level="error", access_log=False)


def decode_and_infer(bundle: Path, pictures: Path) -> tuple[float, float]:
    """A plain loop over the worker's decoder and model, in one thread.

    Returns images per second, and processor milliseconds an image.
    """
    from core.bundles.bundle import read_bundle
    from core.domain.records import MAX_LABELS
    from core.settings import Settings
    from worker.inference.classifier import Classifier

    settings = Settings()
    classifier = Classifier(
        read_bundle(bundle),
        max_pixels=settings.pixel_limits,
        labels_per_image=MAX_LABELS,
    )
    data = [file.read_bytes() for file in sorted(pictures.iterdir())]
    began, processor = time.perf_counter(), time.process_time()
    for image in data:
        classifier.classify(image)
    rate = len(data) / (time.perf_counter() - began)
    return rate, 1000 * (time.process_time() - processor) / len(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    kinds = parser.add_subparsers(dest="kind", required=True)
    server = kinds.add_parser("serve")
    server.add_argument("port", type=int)
    server.add_argument("answer")
    loop = kinds.add_parser("loop")
    loop.add_argument("bundle", type=Path)
    loop.add_argument("pictures", type=Path)
    loop.add_argument("--core", type=int, help="the only one to use")
    args = parser.parse_args()
    if args.kind == "serve":
        serve(args.port, json.loads(args.answer))
    else:
        if args.core is not None:
            os.sched_setaffinity(0, {args.core})
        print(*decode_and_infer(args.bundle, args.pictures))


if __name__ == "__main__":
    main()
