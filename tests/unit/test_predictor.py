"""A bundle in Python: what its predictor may return, and what becomes of everything else."""

import json
from pathlib import Path

import pytest

from core.bundles.prediction import Prediction
from core.bundles.python_bundle import (
    PythonBundle,
    read_any_bundle,
    read_python_bundle,
    write_python_sums,
)
from core.domain.records import Annotation
from core.errors import BundleError, InvalidImage
from tests.support.bundles import write_colour_bundle
from tests.support.pictures import picture
from tests.support.predictors import BRIGHTNESS, predicting, write_python_bundle
from worker.errors import PredictionFailed
from worker.inference.predictor import PythonClassifier

WHITE = picture(colour=(255, 255, 255), size=(40, 20))


def classifier(folder: Path, expression: str = "", **manifest: object) -> PythonClassifier:
    code = predicting(expression) if expression else BRIGHTNESS
    bundle = read_any_bundle(write_python_bundle(folder, code, **manifest))
    assert isinstance(bundle, PythonBundle)
    return PythonClassifier(bundle, max_pixels=10**6)


def test_labels_and_output_are_returned(tmp_path: Path) -> None:
    found = classifier(tmp_path).classify(WHITE)
    assert [each.label for each in found.annotations] == ["bright", "dark"]
    assert found.annotations[0].confidence == pytest.approx(1, abs=0.02)
    assert json.loads(found.output) == {"size": [40, 20]}
    assert found.confident is None


@pytest.mark.parametrize(
    ("expression", "labels", "output"),
    [
        ("[{'labels': {'a': 0.25, 'b': 1}}]", [("b", 1.0), ("a", 0.25)], ""),
        ("[{'output': {'text': 'ä', 'n': [1, None, True]}}]", [], '{"text":"ä","n":[1,null,true]}'),
        ("({'labels': {}, 'output': 0},)", [], "0"),
        ("[{'labels': None, 'output': 'x' * 65534}]", [], '"' + "x" * 65534 + '"'),
        (
            "[{'labels': {str(n): n / 100 for n in range(100)}}]",
            [(str(n), n / 100) for n in range(99, 79, -1)],
            "",
        ),
        ("[__import__('numpy') and {'labels': {'a': __import__('numpy').float32(0.5)}}]",
         [("a", 0.5)], ""),
    ],
)  # fmt: skip
def test_valid_prediction(
    tmp_path: Path, expression: str, labels: list[tuple[str, float]], output: str
) -> None:
    found = classifier(tmp_path, expression).classify(WHITE)
    assert found.annotations == tuple(
        Annotation(index, *each) for index, each in enumerate(labels, start=1)
    )
    assert found.output == output


def test_prediction_may_be_an_object(tmp_path: Path) -> None:
    made = "__import__('core.bundles.prediction').bundles.prediction.Prediction"
    found = classifier(tmp_path, f"[{made}({{'a': 0.5}}, [1])]").classify(WHITE)
    assert (found.best, found.output) == ("a", "[1]")
    assert Prediction({"a": 0.5}, [1]).output == [1]


@pytest.mark.parametrize(
    ("expression", "detail"),
    [
        ("1 / 0", "raised ZeroDivisionError."),
        ("exit(3)", "raised SystemExit."),
        # The base class of a panic in Rust, which is no Exception either.
        ("(_ for _ in ()).throw(BaseException)", "raised BaseException."),
        ("[b'secret'][images]", "raised TypeError."),
        ("None", "returned a value of the type NoneType, not a list of predictions."),
        ("'ab'", "returned a value of the type str, not a list of predictions."),
        ("[]", "returned 0 predictions for 1 images."),
        ("[{'labels': {'a': 1}}] * 2", "returned 2 predictions for 1 images."),
        ("['cat']", "returned a value of the type str, not a prediction."),
        (
            "[type('Lazy', (), {'labels': property(lambda self: 1 / 0), 'output': None})()]",
            "a prediction that raised ZeroDivisionError.",
        ),
        ("[{'label': 'cat'}]", "members other than labels and output."),
        ("[{}]", "without labels and without output."),
        ("[{'labels': ['cat']}]", "the type list as labels, not a dictionary."),
        ("[{'labels': {'a': float('nan')}}]", "a confidence that is not a number from 0 to 1."),
        ("[{'labels': {'a': float('inf')}}]", "a confidence that is not a number from 0 to 1."),
        ("[{'labels': {'a': 1.5}}]", "a confidence that is not a number from 0 to 1."),
        ("[{'labels': {'a': -0.1}}]", "a confidence that is not a number from 0 to 1."),
        ("[{'labels': {'a': '0.5'}}]", "a value of the type str as a confidence."),
        ("[{'labels': {'a': True}}]", "a value of the type bool as a confidence."),
        ("[{'labels': {'a': __import__('numpy').complex64(0.5)}}]", "complex64 as a confidence."),
        ("[{'labels': {'\\ud800': 0.5}}]", "a label that is not a text of 1 to 200 characters."),
        ("[{'labels': {1: 0.5}}]", "a label that is not a text of 1 to 200 characters."),
        ("[{'labels': {' ': 0.5}}]", "a label that is not a text of 1 to 200 characters."),
        ("[{'labels': {'a' * 201: 0.5}}]", "a label that is not a text of 1 to 200 characters."),
        ("[{'output': float('nan')}]", "an output that JSON cannot express."),
        ("[{'output': {1, 2}}]", "an output that JSON cannot express."),
        ("[{'output': '\\ud800'}]", "an output that JSON cannot express."),
        ("[{'output': (lambda x: x.append(x) or x)([])}]", "an output that JSON cannot express."),
        ("[{'output': 'x' * 65535}]", "an output of 65537 bytes, and 65536 are allowed."),
        ("[{'output': 'ä' * 32768}]", "an output of 65538 bytes, and 65536 are allowed."),
    ],
)
def test_invalid_prediction_fails_the_image(tmp_path: Path, expression: str, detail: str) -> None:
    loaded = classifier(tmp_path, expression)
    with pytest.raises(PredictionFailed) as raised:
        loaded.classify(WHITE)
    assert raised.value.detail.endswith(detail)
    assert "secret" not in raised.value.detail


def test_labels_are_those_of_the_bundle(tmp_path: Path) -> None:
    write_python_bundle(tmp_path)
    (tmp_path / "labels.txt").write_text("bright\n")
    with pytest.raises(PredictionFailed, match=r"labels\.txt does not list"):
        classifier(tmp_path).classify(WHITE)
    (tmp_path / "labels.txt").write_text("bright\ndark\n")
    assert classifier(tmp_path).classify(WHITE).best == "bright"


@pytest.mark.parametrize(("threshold", "confident"), [(0.9, True), (1.0, False)])
def test_threshold_decides_what_is_confident(
    tmp_path: Path, threshold: float, confident: bool
) -> None:
    expression = "[{'labels': {'a': 0.95}}]"
    found = classifier(tmp_path, expression, threshold=threshold).classify(WHITE)
    assert found.confident is confident


def test_images_are_reduced_and_upright(tmp_path: Path) -> None:
    expression = "[{'output': [*each.size, each.mode]} for each in images]"
    loaded = classifier(tmp_path, expression, max_side=100)
    for size, expected in (((400, 100), [100, 25]), ((30, 60), [30, 60]), ((3000, 1), [100, 1])):
        found = loaded.classify(picture(size=size))
        assert json.loads(found.output) == [*expected, "RGB"]
    with pytest.raises(InvalidImage):
        loaded.classify(picture(size=(1001, 1000)))


# --- The folder -----------------------------------------------------------------------------------


def test_identity_depends_on_every_file_except_the_card(tmp_path: Path) -> None:
    folder = write_python_bundle(tmp_path / "bundle")

    def identity() -> str:
        return read_python_bundle(folder).identity

    seen = {identity()}
    for name in ("predictor.py", "words.json", "weights/a.bin", "requirements.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("a") as file:
            file.write("# more\n")
        assert identity() not in seen
        seen.add(identity())
    last = identity()
    for name in ("MODEL_CARD.md", "__pycache__/predictor.pyc", ".git/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        assert identity() == last
    write_python_sums(folder)
    assert identity() == last


def test_changed_file_is_refused(tmp_path: Path) -> None:
    folder = write_python_bundle(tmp_path)
    write_python_sums(folder)
    assert classifier_of(folder).classify(WHITE).best == "bright"
    (folder / "more.txt").write_text("x")
    with pytest.raises(BundleError, match=r"more\.txt differ from SHA256SUMS"):
        classifier_of(folder)


def classifier_of(folder: Path) -> PythonClassifier:
    return PythonClassifier(read_python_bundle(folder), max_pixels=10**6)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def x(:", "raised SyntaxError: "),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(1)", "raised SystemExit: 1 when"),
        ("raise BaseException('panic')", "raised BaseException: panic when"),
        (
            "class Predictor:\n    def load(self, folder): raise BaseException('panic')\n"
            "    def predict(self, i): pass",
            "Predictor.load raised BaseException: panic",
        ),
        ("x = 1", "has no class Predictor"),
        ("Predictor = 1", "has no class Predictor"),
        ("class Predictor:\n    def load(self, folder): pass", "has no method predict"),
        (
            "class Predictor:\n    def load(self, folder): 1 / 0\n    def predict(self, i): pass",
            "Predictor.load raised ZeroDivisionError: division by zero",
        ),
        (
            "class Predictor:\n    def __init__(self, x): pass\n"
            "    def load(self, folder): pass\n    def predict(self, i): pass",
            "Predictor.load raised TypeError: ",
        ),
    ],
)
def test_predictor_that_cannot_be_loaded_is_refused(tmp_path: Path, code: str, reason: str) -> None:
    bundle = read_python_bundle(write_python_bundle(tmp_path, code))
    with pytest.raises(BundleError) as raised:
        PythonClassifier(bundle, max_pixels=10**6)
    assert reason in raised.value.detail
    assert "\n" not in raised.value.detail
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("pillow>=13\n# a comment\n\npydantic  # why\n", ""),
        ("no-such-package-of-anyone", "no-such-package-of-anyone is not installed."),
        ("pillow>=999", "pillow>=999 is required, and "),
        ("no-such-package; python_version < '3'", ""),
        ("-r other.txt", "'-r other.txt' is not a requirement."),
    ],
)
def test_requirements_are_checked(tmp_path: Path, lines: str, reason: str) -> None:
    folder = write_python_bundle(tmp_path)
    (folder / "requirements.txt").write_text(lines)
    if not reason:
        assert classifier_of(folder)
        return
    with pytest.raises(BundleError) as raised:
        classifier_of(folder)
    assert reason in raised.value.detail


def test_installed_prerelease_meets_a_requirement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.inference.predictor.version", lambda name: "2.0rc1")
    folder = write_python_bundle(tmp_path)
    (folder / "requirements.txt").write_text("pillow>=1.5")
    assert classifier_of(folder)


def test_folder_with_too_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_python_bundle(tmp_path)
    monkeypatch.setattr("core.bundles.python_bundle.MAX_FILES", 3)
    assert read_python_bundle(folder)
    (folder / "one-more.txt").touch()
    with pytest.raises(BundleError, match="has more than 3 files"):
        read_python_bundle(folder)


def test_file_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    """A line of SHA256SUMS cannot contain it."""
    folder = write_python_bundle(tmp_path)
    (folder / "a\nb.txt").touch()
    with pytest.raises(BundleError, match="a file whose name has a line break"):
        read_python_bundle(folder)


def test_modules_beside_the_predictor_belong_to_their_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    code = "import helper\n" + predicting("[{'output': helper.NAME}]")
    found = []
    for name in ("one", "two"):
        folder = write_python_bundle(tmp_path / name, code)
        (folder / "helper.py").write_text(f"NAME = {name!r}\n")
        found.append(classifier_of(folder))
    assert [each.classify(WHITE).output for each in found] == ['"one"', '"two"']
    assert not list(tmp_path.rglob("__pycache__")), "the folder may be read-only"


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"name": "../x"}, "name: String should match pattern"),
        ({"max_side": 0}, "max_side: "),
        ({"threshold": 2}, "threshold: "),
        ({"mean": [0, 0, 0]}, "mean: Extra inputs are not permitted."),
    ],
)
def test_invalid_manifest_is_named_in_one_line(
    tmp_path: Path, manifest: dict[str, object], reason: str
) -> None:
    folder = write_python_bundle(tmp_path, BRIGHTNESS, **manifest)
    with pytest.raises(BundleError) as raised:
        read_any_bundle(folder)
    assert reason in raised.value.detail
    assert "\n" not in raised.value.detail


def test_folder_is_of_one_kind(tmp_path: Path, colour_bundle: Path) -> None:
    assert read_any_bundle(colour_bundle).labels
    folder = write_colour_bundle(tmp_path / "both")
    (folder / "predictor.py").write_text("")
    with pytest.raises(BundleError, match="has both"):
        read_any_bundle(folder)
