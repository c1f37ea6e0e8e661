"""compose/Dockerfile and .dockerignore agree with the repository. A lint cannot see this."""

import re
import tomllib

import pytest

from core.bundles.bundle import LABELS_FILE, MANIFEST_FILE, MODEL_FILE, SUMS_FILE
from core.settings import Settings
from tests.support.images import DOCKERFILE, Stage, admitted, exec_form, stages
from tests.support.settings import isolated_settings
from tests.support.stack import ROOT

STAGES = stages()
FINAL = ("api", "worker", "development")
SERVICES = {"api": "app", "worker": "worker"}
DEFAULTS = isolated_settings()


@pytest.fixture(params=FINAL)
def final(request: pytest.FixtureRequest) -> Stage:
    return STAGES[request.param]


def requirements_of(stage: Stage) -> str:
    """The `poetry export` for the packages of the stage."""
    (packages,) = {c.from_stage for c in stage.copies if c.from_stage}
    (requirements,) = [s for c in STAGES[packages].copies for s in c.sources]
    exports = " && ".join(STAGES["lock"].all("RUN")).split(" && ")
    (export,) = [e for e in exports if f"--output {requirements.rpartition('/')[2]}" in e]
    return export


def test_every_documented_target_exists() -> None:
    assert set(FINAL) <= STAGES.keys()


def test_final_images_run_as_a_user_other_than_root(final: Stage) -> None:
    user = final.last("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert f"--uid {user.partition(':')[0]} " in " ".join(STAGES["runtime"].all("RUN"))
    # No file is added after this, so a container cannot change its own code.
    words = [word for word, _ in final.instructions]
    assert not {"RUN", "COPY", "ADD"} & set(words[words.index("USER") :])


def test_commands_are_in_the_exec_form(final: Stage) -> None:
    assert final.command[:2] == ["python", "-m"]
    assert not final.all("ENTRYPOINT")
    for text in final.all("HEALTHCHECK"):
        assert exec_form(text.partition("CMD ")[2])[0] == "python"


def test_only_locked_packages_are_downloaded() -> None:
    assert "ADD" not in {word for stage in STAGES.values() for word, _ in stage.instructions}
    runs = [run for stage in STAGES.values() for run in stage.all("RUN")]
    assert not any(tool in run for run in runs for tool in ("curl", "wget", "apt-get", "git "))
    for stage in STAGES.values():
        for run in stage.all("RUN"):
            if " install " in run and "install --directory" not in run:
                assert "--require-hashes" in run, run


def test_final_images_have_no_build_tools(final: Stage) -> None:
    assert final.parent == "runtime"
    assert "pip uninstall --yes pip" in " ".join(final.all("RUN"))
    assert "poetry" not in " ".join(text for _, text in final.instructions)
    assert {c.from_stage for c in final.copies} == {None, f"{final.name}-packages"}
    installing = " ".join(STAGES[f"{final.name}-packages"].all("RUN"))
    assert "venv --without-pip /venv" in installing


def test_poetry_and_its_dependencies_are_installed_by_hash() -> None:
    pins = "compose/requirements-poetry.txt"
    assert f"POETRY_PINS := {pins}\n" in (ROOT / "Makefile").read_text()
    assert {c.sources for c in STAGES["lock"].copies} >= {(pins,)}
    text = (ROOT / pins).read_text().replace("\\\n", "")
    for line in text.splitlines():
        assert re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line
    for line in (ROOT / pins).with_suffix(".in").read_text().splitlines():
        assert line.startswith("#") or f"\n{line} " in f"\n{text}", line


def test_all_stages_build_on_one_base_image() -> None:
    """It is a build argument: a build can take it from another registry, and pin its digest."""
    text = DOCKERFILE.read_text()
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", image)
    foreign = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - set(STAGES)
    assert foreign == {"${PYTHON_IMAGE}"}


def test_python_version_is_tested_by_ci() -> None:
    (version,) = re.findall(r"^ARG PYTHON_IMAGE=python:3\.(\d+)-slim", DOCKERFILE.read_text(), re.M)
    tested = re.findall(r'"3\.(\d+)"', (ROOT / ".github/workflows/ci.yml").read_text())
    assert version in tested


def test_only_the_worker_has_onnx_runtime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(p.startswith("onnxruntime") for p in project["optional-dependencies"]["worker"])
    assert not any(p.startswith(("onnxruntime", "numpy")) for p in project["dependencies"])
    assert "--extras worker" in requirements_of(STAGES["worker"])
    assert "worker" not in requirements_of(STAGES["api"])
    for name in SERVICES:
        for extra in ("google", "traces"):
            assert f"--extras {extra}" in requirements_of(STAGES[name])
        assert not re.search(r"--with|--all-extras", requirements_of(STAGES[name]))
    assert "--all-extras --with dev" in requirements_of(STAGES["development"])


def test_services_have_only_their_own_code() -> None:
    taken = {
        name: {s for c in STAGES[name].copies if not c.from_stage for s in c.sources}
        for name in SERVICES
    }
    bundle = {f"models/default/{name}" for name in (MANIFEST_FILE, LABELS_FILE, SUMS_FILE)}
    assert taken["api"] == {"LICENSE", "NOTICE", "core", "app", *bundle}
    assert taken["worker"] == {"LICENSE", "NOTICE", "core", "worker", "models/default"}
    assert f"models/default/{MODEL_FILE}" not in taken["api"]


@pytest.mark.parametrize("name", [n for n, s in STAGES.items() if s.copies])
def test_every_source_exists_and_is_admitted(name: str) -> None:
    for copy in STAGES[name].copies:
        if copy.from_stage:
            assert copy.from_stage in STAGES
            continue
        for source in copy.sources:
            origin = ROOT / source
            assert origin.exists(), f"COPY {source}"
            files = [origin] if origin.is_file() else [f for f in origin.rglob("*") if f.is_file()]
            assert any(admitted(str(file.relative_to(ROOT))) for file in files), f"COPY {source}"


def test_environment_names_settings_and_ports_agree() -> None:
    runtime = STAGES["runtime"].environment
    for name in runtime.keys() - {"PATH"}:
        if not name.startswith(("PYTHON", "PIP_")):
            assert name.lower() in Settings.model_fields, name
    values = {k.lower(): v for k, v in runtime.items() if k.lower() in Settings.model_fields}
    settings = isolated_settings(**values)  # text, as in a process
    assert settings.host == "0.0.0.0"
    assert (settings.api_port, settings.worker_port) == (DEFAULTS.api_port, DEFAULTS.worker_port)
    for name, port in (("api", settings.api_port), ("worker", settings.worker_port)):
        stage = STAGES[name]
        assert stage.command == ["python", "-m", SERVICES[name]]
        assert stage.last("EXPOSE") == str(port)
        (health,) = stage.all("HEALTHCHECK")
        assert f"os.environ['{name.upper()}_PORT']" in health
        assert "'PORT'" in health
        assert "/health" in health
