"""Training over HTTP: what is refused, and the way from folders to a served model."""

import io
import json
import zipfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.models.schemas import MAX_CORRECTIONS
from core.domain.jobs import JobKey
from core.domain.messages import ClassifyImage, EmbedImage, FitModel, RunJob
from core.domain.principals import Scope
from core.domain.records import blob_name, embedding_name
from core.settings import Settings
from tests.support.api import Api, api_settings, bearer, open_api
from tests.support.pictures import picture, sha256
from tests.support.training import GREEN, RED, pictures
from tests.support.worker import RunningWorker, running_worker

JOBS, MODELS, IMAGES = "/api/v1/jobs", "/api/v1/models", "/api/v1/images"
TRAIN = f"{JOBS}/train-model"
ZIP = {"Content-Type": "application/zip"}


@dataclass
class Service:
    """An API and a worker on one data folder, without a queue: `work` delivers the messages."""

    api: Api
    worker: RunningWorker
    delivered: int = 0

    async def work(self) -> None:
        """Deliver what is published until nothing new is."""
        while new := self.worker.published()[self.delivered :]:
            self.delivered += len(new)
            for message in new:
                if isinstance(message, ClassifyImage | EmbedImage | FitModel | RunJob):
                    answer = await self.worker.send(message)
                    assert answer.status_code in (204, 503), answer.text

    async def store(self, examples: Mapping[bytes, str], tenant: str = "public") -> list[Any]:
        """Store the images; examples with their hashes."""
        for data in examples:
            await self.api.services.backend.blobs.put(
                blob_name(tenant, sha256(data)), data, "image/jpeg"
            )
        return [{"image_hash": sha256(data), "label": label} for data, label in examples.items()]

    async def train(self, each: int = 6, name: str = "moods", **document: object) -> str:
        examples = await self.store(pictures(each))
        body = {"name": name, "examples": examples, **document}
        answer = await self.api.client.post(TRAIN, json=body)
        assert answer.status_code == 202, answer.text
        await self.work()
        job_id: str = answer.json()["job_id"]
        return job_id

    async def upload(self, data: bytes, model: str = "moods") -> httpx.Response:
        headers = {"Content-Type": "image/jpeg"}
        path = f"{IMAGES}?model={model}"
        return await self.api.client.post(path, content=data, headers=headers)

    async def get(self, path: str) -> Any:
        answer = await self.api.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def settings(tmp_path: Path, colour_bundle: Path) -> Settings:
    return api_settings(tmp_path, colour_bundle)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with open_api(settings) as api, running_worker(settings) as worker:
        yield Service(api, worker)


def archive(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for name, data in files.items():
            target.writestr(name, data)
    return packed.getvalue()


def folders(each: int = 5, prefix: str = "") -> dict[str, bytes]:
    """Files in a folder for each label."""
    return {
        f"{prefix}{label}/{number}.jpg": data
        for number, (data, label) in enumerate(pictures(each).items())
    }


async def test_hashes_become_a_served_model(service: Service) -> None:
    job_id = await service.train()
    job = await service.get(f"{JOBS}/{job_id}")
    assert (job["type"], job["status"], job["progress"]) == ("train-model", "completed", 100)
    assert (job["total"], job["succeeded"]) == (13, 13)
    model = job["trained_model"]
    assert model.startswith("moods@")
    assert job["result"] == f"Trained {model} on 12 images. Accuracy: 100.0 %."

    shown = await service.get(f"{MODELS}/moods")
    assert (shown["id"], shown["active_version"], shown["name"]) == (model, model, "moods")
    assert shown["labels"] == ["cool", "warm"]
    (version,) = shown["versions"]
    assert (version["images"], version["accuracy"], version["active"]) == (12, 1.0, True)
    assert version["confusion"] == [[6, 0], [0, 6]]
    assert [each["support"] for each in version["labels"]] == [6, 6]
    assert 0 < version["accuracy_interval"][0] < 1
    assert "rough below 20" in version["advice"][0]
    listed = await service.get(MODELS)
    assert model in [each["id"] for each in listed["models"]]

    upload = await service.api.client.post(
        f"{IMAGES}?model=moods", content=picture(99, RED), headers={"Content-Type": "image/jpeg"}
    )
    assert upload.status_code == 202, upload.text
    await service.work()
    result = await service.get(upload.headers["location"])
    assert result["model"] == model
    assert result["annotations"][0]["label"] == "warm"
    assert result["confident"] is True


async def test_folders_of_a_zip_are_the_labels(service: Service) -> None:
    files = {**folders(prefix="photos/"), "photos/warm/.DS_Store": b"x"}
    answer = await service.api.client.post(
        f"{TRAIN}/zip?name=moods", content=archive(files), headers=ZIP
    )
    assert answer.status_code == 202, answer.text
    await service.work()
    model = await service.get(f"{MODELS}/moods")
    assert model["labels"] == ["cool", "warm"]
    assert model["versions"][0]["images"] == 10


async def test_zip_can_add_images_by_hash(service: Service) -> None:
    examples = await service.store(pictures(5, {"fresh": GREEN}))
    files = {**folders(), "examples.json": json.dumps({"name": "moods", "examples": examples})}
    answer = await service.api.client.post(TRAIN, content=archive(files), headers=ZIP)  # type: ignore[arg-type]
    assert answer.status_code == 202, answer.text
    await service.work()
    model = await service.get(f"{MODELS}/moods")
    assert model["labels"] == ["cool", "fresh", "warm"]
    assert model["versions"][0]["images"] == 15


async def test_results_of_a_training_name_its_images(service: Service) -> None:
    job_id = await service.train(5)
    results = (await service.get(f"{JOBS}/{job_id}/results"))["results"]
    assert [each["status"] for each in results] == ["succeeded"] * 11
    assert results[0]["metadata"] == {"label": "warm"}
    assert (results[-1]["name"], results[-1]["image_hash"]) == ("fit", None)


def labelled(count: int, label: str, start: int = 0) -> list[dict[str, str]]:
    return [{"image_hash": f"{start + n:064x}", "label": label} for n in range(count)]


@pytest.mark.parametrize(
    ("document", "field", "said"),
    [
        ({"name": "x", "examples": []}, "examples", "have 0 labels; 2 to 100 are needed"),
        ({"name": "x", "examples": labelled(9, "a")}, "examples", "have 1 labels"),
        (
            {"name": "x", "examples": labelled(5, "a") + labelled(4, "b", 100)},
            "examples",
            "need 5 images of each label: 'b' has 4",
        ),
        (
            {"name": "x", "examples": labelled(5, "a") + labelled(5, "b", 4)},
            "examples",
            f"have 1 images under two labels: {4:064x} ('a' and 'b')",
        ),
        ({"name": "x", "examples": labelled(5, "a") + labelled(5, " ", 9)}, "label", "is empty"),
        (
            {"name": "x", "examples": labelled(5, "a") + labelled(5, "b" * 101, 9)},
            "label",
            "has 101 characters",
        ),
        (
            {
                "name": "x",
                "examples": [each for n in range(101) for each in labelled(5, f"{n}", 5 * n)],
            },
            "examples",
            "have 101 labels",
        ),
        (
            {"name": "x", "examples": labelled(10_001, "a")},
            "examples",
            "are 10001; at most 10000",
        ),
        ({"examples": labelled(5, "a") + labelled(5, "b", 9)}, "name", "must have 1 to 63"),
        ({"name": "Birds!", "examples": []}, "name", ""),
        (
            {"name": "colours", "examples": labelled(5, "a") + labelled(5, "b", 9)},
            "name",
            "is that of a model of the service",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_refused_training_changes_nothing(
    service: Service, document: dict[str, Any], field: str, said: str
) -> None:
    answer = await service.api.client.post(TRAIN, json=document)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    fields = [problem.get("field")] + [each.get("field") for each in problem.get("errors", [])]
    assert field in fields
    assert said in problem["detail"]
    assert service.api.rows("jobs") == 0
    assert await service.api.services.backend.models.bases("public") == []


async def test_base_without_embedding_is_refused(service: Service) -> None:
    await service.train()
    examples = labelled(5, "a") + labelled(5, "b", 9)
    body = {"name": "again", "base": "moods", "examples": examples}
    answer = await service.api.client.post(TRAIN, json=body)
    assert answer.status_code == 422
    assert answer.json()["field"] == "base"
    body["base"] = "unknown"
    answer = await service.api.client.post(TRAIN, json=body)
    assert answer.json()["code"] == "unknown_model"


async def test_image_outside_of_any_folder_is_refused(service: Service) -> None:
    files = {**folders(), "stray.jpg": picture(5)}
    answer = await service.api.client.post(
        f"{TRAIN}?name=moods", content=archive(files), headers=ZIP
    )
    assert answer.status_code == 422
    assert "stray.jpg has none" in answer.json()["detail"]


async def test_broken_files_do_not_count_as_images(service: Service) -> None:
    files = {**folders(), "warm/0.jpg": b"no image"}
    answer = await service.api.client.post(
        f"{TRAIN}?name=moods", content=archive(files), headers=ZIP
    )
    assert answer.status_code == 422
    assert "'warm' has 4" in answer.json()["detail"]


async def test_same_idempotency_key_creates_one_job(service: Service) -> None:
    examples = await service.store(pictures(5))
    body = {"name": "moods", "examples": examples}
    key = {"Idempotency-Key": "one"}
    answers = [await service.api.client.post(TRAIN, json=body, headers=key) for _ in range(2)]
    assert answers[0].json()["job_id"] == answers[1].json()["job_id"]
    for change in (
        {"name": "other"},
        {"activate": False},
        {"examples": examples[:-1] + labelled(1, "cool")},
    ):
        again = await service.api.client.post(TRAIN, json={**body, **change}, headers=key)
        assert again.status_code == 422, (change, again.text)
        assert again.json()["code"] == "idempotency_key_reused"


async def test_version_is_activated_on_request(service: Service) -> None:
    await service.train(5)
    await service.train(7, activate=False)
    model = await service.get(f"{MODELS}/moods")
    newest, oldest = model["versions"]
    assert (newest["active"], oldest["active"]) == (False, True)
    path = f"{MODELS}/moods/activate"
    assert (await service.api.client.post(path, json={"version": newest["id"]})).status_code == 204
    assert (await service.get(f"{MODELS}/moods"))["active_version"] == newest["id"]
    unknown = await service.api.client.post(path, json={"version": "moods@0123456789ab"})
    assert unknown.status_code == 404
    assert newest["id"] in unknown.json()["known"]


async def test_corrections_change_the_next_training(service: Service) -> None:
    await service.train(6)
    wrong = next(iter(pictures(6)))  # warm
    extra = (await service.store({picture(500, GREEN): "warm"}))[0]
    corrections = [{"image_hash": sha256(wrong), "label": "cool"}, extra]
    path = f"{MODELS}/moods/corrections"
    answer = await service.api.client.post(path, json={"corrections": corrections})
    assert answer.json() == {"corrections": 2}
    await service.train(6)
    model = await service.get(f"{MODELS}/moods")
    supports = {each["label"]: each["support"] for each in model["versions"][0]["labels"]}
    assert supports == {"cool": 7, "warm": 6}
    assert model["corrections"] == 2


async def test_correction_can_name_a_new_label(service: Service) -> None:
    """The training says where a label with too few images comes from, and later ones have five."""
    await service.train(6)
    images = await service.store({picture(500 + n, GREEN): "fresh" for n in range(5)})
    path = f"{MODELS}/moods/corrections"
    one = {"corrections": [{**images[0], "image_hash": images[0]["image_hash"].upper()}]}
    assert (await service.api.client.post(path, json=one)).json() == {"corrections": 1}
    body = {"name": "moods", "examples": await service.store(pictures(6))}
    refused = await service.api.client.post(TRAIN, json=body)
    assert refused.status_code == 422
    assert "'fresh' has 1 (corrections of the model use 'fresh')" in refused.json()["detail"]
    answer = await service.api.client.post(path, json={"corrections": images})
    assert answer.json() == {"corrections": 5}
    await service.train(6)
    assert (await service.get(f"{MODELS}/moods"))["labels"] == ["cool", "fresh", "warm"]


async def test_correction_of_an_image_that_is_not_stored_fails_its_item(service: Service) -> None:
    await service.train(6)
    path = f"{MODELS}/moods/corrections"
    corrections = labelled(2, "warm", 7)
    assert (
        await service.api.client.post(path, json={"corrections": corrections})
    ).status_code == 200
    job = await service.get(f"{JOBS}/{await service.train(6)}")
    assert (job["status"], job["failed"], job["succeeded"]) == ("completed", 2, 13)
    assert (await service.get(f"{MODELS}/moods"))["versions"][0]["images"] == 12


@pytest.mark.parametrize("label", ["", "  ", "a" * 101, "tab\tulator"])
async def test_correction_to_what_cannot_be_a_label_is_refused(
    service: Service, label: str
) -> None:
    """Such a correction would refuse every training from then on."""
    await service.train(5)
    corrections = [*labelled(1, "warm", 7), *labelled(1, label, 8)]
    path = f"{MODELS}/moods/corrections"
    answer = await service.api.client.post(path, json={"corrections": corrections})
    assert answer.status_code == 422, answer.text
    assert "label" in json.dumps(answer.json())
    assert (await service.get(f"{MODELS}/moods"))["corrections"] == 0


async def test_body_with_the_most_and_longest_corrections_fits(service: Service) -> None:
    await service.train(5)
    label = "\N{OWL}" * 100
    corrections = [
        {"image_hash": f"{number:064x}", "label": label} for number in range(MAX_CORRECTIONS)
    ]
    answer = await service.api.client.post(
        f"{MODELS}/moods/corrections",
        content=json.dumps({"corrections": corrections}),  # escapes what is not ASCII
        headers={"Content-Type": "application/json"},
    )
    assert (answer.status_code, answer.json()) == (200, {"corrections": MAX_CORRECTIONS})


async def test_deletion_of_a_version_deletes_its_results(service: Service) -> None:
    await service.train(5)
    first = (await service.get(f"{MODELS}/moods"))["active_version"]
    upload = await service.api.client.post(
        f"{IMAGES}?model=moods", content=picture(99, RED), headers={"Content-Type": "image/jpeg"}
    )
    await service.work()
    location = upload.headers["location"]
    assert (await service.get(location))["model"] == first
    await service.train(7)
    assert (await service.api.client.delete(f"{MODELS}/{first}")).status_code == 204
    assert (await service.api.client.get(location)).status_code == 404
    versions = (await service.get(f"{MODELS}/moods"))["versions"]
    assert [each["images"] for each in versions] == [14]
    assert not [p for p in _blobs(service) if first in p]
    assert (await service.api.client.delete(f"{MODELS}/{first}")).status_code == 404


async def test_deletion_of_a_model_deletes_all_of_it(service: Service) -> None:
    await service.train(5)
    await service.train(7)
    assert (await service.api.client.delete(f"{MODELS}/moods")).status_code == 204
    assert (await service.api.client.get(f"{MODELS}/moods")).status_code == 404
    assert (await service.api.client.delete(f"{MODELS}/moods")).status_code == 404
    assert not [p for p in _blobs(service) if "heads" in p or "reports" in p]
    upload = await service.api.client.post(
        f"{IMAGES}?model=moods", content=picture(99, RED), headers={"Content-Type": "image/jpeg"}
    )
    assert upload.json()["code"] == "unknown_model"


def _blobs(service: Service) -> list[str]:
    root = service.api.settings.data_dir / "blobs"
    return [str(each) for each in root.rglob("*") if each.is_file()]


async def test_deletion_of_an_image_deletes_its_embedding_and_keeps_the_model(
    service: Service,
) -> None:
    await service.train(5)
    image_hash = sha256(next(iter(pictures(5))))
    name = embedding_name("public", service.worker.model, image_hash)
    blobs = service.api.services.backend.blobs
    assert await blobs.exists(name)
    assert (await service.api.client.delete(f"{IMAGES}/{image_hash}")).status_code == 204
    assert not await blobs.exists(name)
    assert len((await service.get(f"{MODELS}/moods"))["versions"]) == 1


async def test_training_cannot_be_retried(service: Service) -> None:
    job_id = await service.train(5)
    answer = await service.api.client.post(f"{JOBS}/{job_id}/retry")
    assert answer.status_code == 409
    assert "Train again" in answer.json()["detail"]


async def test_cancelled_training_has_no_model(service: Service) -> None:
    examples = await service.store(pictures(5))
    answer = await service.api.client.post(TRAIN, json={"name": "moods", "examples": examples})
    job_id = answer.json()["job_id"]
    assert (await service.api.client.delete(f"{JOBS}/{job_id}")).status_code == 200
    await service.work()
    job = await service.get(f"{JOBS}/{job_id}")
    assert (job["status"], job["trained_model"]) == ("cancelled", None)
    assert (await service.api.client.get(f"{MODELS}/moods")).status_code == 404
    assert JobKey("public", job_id)


async def test_models_are_private_to_their_tenant(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with open_api(settings) as api, running_worker(settings) as worker:
        service = Service(api, worker)
        ada, bob = [await api.issue(tenant, *Scope) for tenant in ("ada", "bob")]
        examples = await service.store(pictures(5), "ada")

        async def ask(who: Any, method: str, path: str, **options: Any) -> httpx.Response:
            return await api.client.request(method, path, headers=bearer(who), **options)

        body = {"name": "moods", "examples": examples}
        assert (await ask(ada, "POST", TRAIN, json=body)).status_code == 202
        await service.work()
        model = (await ask(ada, "GET", f"{MODELS}/moods")).json()["id"]
        for known in ("moods", model):
            unknown = known.replace("moods", "other")
            for method, path, options in (
                ("GET", "{}", {}),
                ("DELETE", "{}", {}),
                ("POST", "{}/activate", {"json": {"version": model}}),
                ("POST", "{}/corrections", {"json": {"corrections": labelled(1, "a")}}),
            ):
                theirs = await ask(bob, method, f"{MODELS}/{path.format(known)}", **options)
                nothing = await ask(bob, method, f"{MODELS}/{path.format(unknown)}", **options)
                assert theirs.status_code == nothing.status_code == 404
                assert theirs.content == nothing.content
            upload = await ask(bob, "POST", f"{IMAGES}?model={known}", files={"img": picture(5)})
            assert upload.json()["code"] == "unknown_model"
        assert [each["id"] for each in (await ask(bob, "GET", MODELS)).json()["models"]] == [
            api.services.model
        ]
        assert (await ask(ada, "GET", f"{MODELS}/moods")).status_code == 200
