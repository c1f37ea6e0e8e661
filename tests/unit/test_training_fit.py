"""Folds, calibration, metrics and the head that a fit results in."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from core.domain.training_report import bytes_of_report, report_of_bytes
from core.errors import BundleError
from worker.inference.head import Head, bytes_of_head, head_of_bytes
from worker.inference.head_file import identity_of_head
from worker.training.calibration import (
    CERTAIN,
    calibration_error,
    fit_temperature,
    fit_thresholds,
    softmax,
)
from worker.training.fit import TrainingSet, fit_head
from worker.training.folds import assign_folds, count_folds
from worker.training.metrics import measure, wilson_interval

BASE = "colours@0123456789ab"


def _examples(each: int, labels: int = 3, noise: float = 0.3, seed: int = 0) -> TrainingSet:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(labels, 24)).astype(np.float32)
    classes = np.repeat(np.arange(labels), each)
    embeddings = centres[classes] + noise * generator.normal(size=(len(classes), 24))
    return TrainingSet(
        BASE,
        tuple(f"label {number}" for number in range(labels)),
        [hashlib.sha256(f"{seed} {row}".encode()).hexdigest() for row in range(len(classes))],
        classes,
        (7 * embeddings).astype(np.float32),
    )


def _shuffled(examples: TrainingSet) -> TrainingSet:
    order = np.random.default_rng(9).permutation(len(examples.classes))
    return replace(
        examples,
        hashes=[examples.hashes[row] for row in order],
        classes=examples.classes[order],
        embeddings=examples.embeddings[order],
    )


def test_folds_have_the_same_share_of_each_label() -> None:
    classes = np.repeat(np.arange(3), [51, 21, 6])
    folds = assign_folds(classes, 5)
    for label, support in enumerate((51, 21, 6)):
        counts = np.bincount(folds[classes == label], minlength=5)
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == support
    totals = np.bincount(folds)
    assert totals.max() - totals.min() <= 1


@pytest.mark.parametrize(
    ("supports", "folds"), [((5, 30), 5), ((4, 30), 4), ((2, 30), 2), ((1000, 1000), 3)]
)
def test_number_of_folds(supports: tuple[int, int], folds: int) -> None:
    assert count_folds(np.repeat(np.arange(2), supports)) == folds


def test_folds_need_two_examples_of_each_label() -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        count_folds(np.repeat(np.arange(2), (1, 30)))


def test_temperature_undoes_a_scale_of_the_logits() -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(4000, 3)).astype(np.float32)
    chances = softmax(logits, 1.0)
    classes = np.array([generator.choice(3, p=row) for row in chances])
    assert fit_temperature(logits, classes) == pytest.approx(1.0, rel=0.1)
    assert fit_temperature(5 * logits, classes) == pytest.approx(5.0, rel=0.1)


def test_temperature_has_bounds() -> None:
    """Perfectly separated examples would have the temperature 0."""
    logits = np.array([[9.0, -9.0], [-9.0, 9.0]], np.float32)
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.05, rel=1e-3)


def test_threshold_is_the_lowest_with_enough_precision() -> None:
    confidence = np.linspace(0.99, 0.6, 40)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    classes = (np.arange(40) >= 27).astype(int)  # 27 right answers, then 13 wrong ones
    threshold, shared = fit_thresholds(probabilities, classes)
    passing = confidence >= threshold
    assert passing.sum() == 30  # 27 of 30 is 90 %
    assert shared == threshold  # no image is answered with the second label


def test_threshold_without_precise_answers_is_nearly_one() -> None:
    probabilities = np.tile([0.9, 0.1], (30, 1))
    assert fit_thresholds(probabilities, np.ones(30, int))[0] == CERTAIN


def test_equal_confidences_pass_a_threshold_together() -> None:
    probabilities = np.tile([0.9, 0.1], (30, 1))
    classes = np.repeat([0, 1], [20, 10])  # the first 20 would be precise
    assert fit_thresholds(probabilities, classes)[0] == CERTAIN


def test_calibration_error() -> None:
    probabilities = np.tile([0.75, 0.25], (100, 1))
    classes = np.repeat([0, 1], [75, 25])
    assert calibration_error(probabilities, classes) == pytest.approx(0, abs=1e-12)
    assert calibration_error(probabilities, 1 - classes) == pytest.approx(0.5)


def test_interval_of_known_shares() -> None:
    """Values of statsmodels' `proportion_confint(method="wilson")`."""
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)


def test_figures_of_a_small_confusion() -> None:
    """6 apples, of which 4 are right; 4 pears, all right."""
    classes = np.repeat([0, 1], [6, 4])
    predicted = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    confidence = np.linspace(0.6, 0.9, 10)
    probabilities = np.stack([1 - confidence, confidence], axis=1)
    probabilities[predicted == 0] = probabilities[predicted == 0][:, ::-1]
    hashes = [f"{row:064x}" for row in range(10)]
    report = measure(
        ["apple", "pear"], hashes, classes, probabilities, thresholds=(0.5, 0.7), folds=4
    )
    assert report.confusion == ((4, 2), (0, 4))
    assert report.accuracy == pytest.approx(0.8)
    # As of two thirds as many images, whose answers were independent.
    assert report.accuracy_interval == pytest.approx(wilson_interval(8 / 1.5, 10 / 1.5))
    apple, pear = report.labels
    assert (apple.precision, apple.recall, apple.f1) == pytest.approx((1, 4 / 6, 0.8))
    assert (pear.precision, pear.recall, pear.f1) == pytest.approx((4 / 6, 1, 0.8))
    assert (apple.support, pear.threshold) == (6, 0.7)
    assert report.macro_f1 == pytest.approx(0.8)
    assert [mistake.image_hash for mistake in report.mistakes] == [hashes[5], hashes[4]]
    assert {mistake.predicted for mistake in report.mistakes} == {"pear"}
    assert "'apple' has 6 images" in report.advice[0]
    assert report_of_bytes(bytes_of_report(report)) == report


def test_confused_labels_are_named() -> None:
    classes = np.repeat([0, 1, 2], 40)
    probabilities = np.eye(3)[classes]
    probabilities[:9] = [0.2, 0.8, 0]  # 9 of the 80 images of the first two labels
    hashes = [f"{row:064x}" for row in range(120)]
    report = measure(["a", "b", "c"], hashes, classes, probabilities, thresholds=(0, 0, 0), folds=3)
    (advice,) = report.advice
    assert "'a' and 'b' are confused in 9 of 80 images" in advice


def test_at_most_twenty_mistakes_are_kept() -> None:
    classes = np.append(np.zeros(50, int), 1)
    probabilities = np.tile([0.1, 0.9], (51, 1))
    hashes = [f"{row:064x}" for row in range(51)]
    report = measure(["a", "b"], hashes, classes, probabilities, thresholds=(0, 0), folds=3)
    assert len(report.mistakes) == 20


def test_interval_has_the_accuracy_on_new_images_in_nine_of_ten_trainings() -> None:
    """Drawn labels that overlap, few examples, and many new images of the same kind."""
    inside = 0
    new = _overlapping(2000, seed=999)
    for seed in range(200):
        head, report = fit_head(_overlapping(6, seed))
        features = new.embeddings / np.linalg.norm(new.embeddings, axis=1, keepdims=True)
        found = (features @ head.weights + head.bias).argmax(axis=1)
        low, high = report.accuracy_interval
        inside += low <= (found == new.classes).mean() <= high
    assert inside >= 180


def _overlapping(each: int, seed: int) -> TrainingSet:
    """`each` examples of four labels, around centres that are the same for each seed."""
    centres = np.random.default_rng(0).normal(size=(4, 16))
    draw = np.random.default_rng(seed)
    classes = np.repeat(np.arange(4), each)
    embeddings = (centres[classes] + 1.6 * draw.normal(size=(len(classes), 16))).astype(np.float32)
    hashes = [f"{row:064x}" for row in range(len(classes))]
    return TrainingSet("colours@0123456789ab", tuple("abcd"), hashes, classes, embeddings)


def test_fit_separates_labels_and_reports_on_unseen_images() -> None:
    head, report = fit_head(_examples(each=30))
    assert report.accuracy > 0.95
    assert (report.images, report.folds) == (90, 5)
    test = _examples(each=30)
    found = [head.probabilities(row).argmax() for row in test.embeddings]
    assert (np.array(found) == test.classes).mean() > 0.95


def test_report_does_not_see_the_images_that_it_measures() -> None:
    """Labels without any relation to the images are guessed right by chance only."""
    examples = _examples(each=40)
    examples.classes = np.random.default_rng(5).permutation(examples.classes)
    _, report = fit_head(examples)
    assert report.accuracy < 0.5


def test_head_does_not_depend_on_the_order_of_the_examples() -> None:
    first, first_report = fit_head(_examples(each=8))
    second, second_report = fit_head(_shuffled(_examples(each=8)))
    assert bytes_of_head(first) == bytes_of_head(second)
    assert first_report == second_report


def test_head_survives_its_file() -> None:
    head, _ = fit_head(_examples(each=8))
    data = bytes_of_head(head)
    again = head_of_bytes(data)
    assert bytes_of_head(again) == data
    assert (again.labels, again.base) == (head.labels, BASE)
    embedding = _examples(each=8).embeddings[0]
    np.testing.assert_array_equal(again.probabilities(embedding), head.probabilities(embedding))


def test_identity_covers_everything_that_affects_the_result() -> None:
    head, _ = fit_head(_examples(each=8))
    variants = [
        head,
        replace(head, base="colours@ba9876543210"),
        replace(head, labels=("x", *head.labels[1:])),
        replace(head, temperature=head.temperature + 0.1),
        replace(head, thresholds=(0.123, *head.thresholds[1:])),
        replace(head, bias=head.bias + np.float32(0.5)),
    ]
    identities = {identity_of_head("fruit", bytes_of_head(each)) for each in variants}
    assert len(identities) == len(variants)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a head at all, but long enough",
        lambda data: data[:-1],
        lambda data: data + b"\0\0\0\0",
        lambda data: data.replace(b'"format":1', b'"format":2'),
        lambda data: data.replace(b'"temperature"', b'"temperatura"'),
    ],
)
def test_unreadable_head_is_refused(damage) -> None:  # type: ignore[no-untyped-def]
    head, _ = fit_head(_examples(each=8))
    with pytest.raises(BundleError):
        head_of_bytes(damage(bytes_of_head(head)))


def test_head_refuses_an_embedding_of_another_size() -> None:
    head, _ = fit_head(_examples(each=8))
    with pytest.raises(BundleError, match="24 numbers"):
        head.probabilities(np.zeros(23, np.float32))


def test_result_is_confident_from_the_threshold_of_its_label() -> None:
    weights = np.array([[1, -1], [-1, 1]], np.float32)
    head = Head(BASE, ("a", "b"), weights, np.zeros(2, np.float32), 1.0, (0.5, 0.99))
    first = head.classify(np.array([1, 0], np.float32), count=2)
    second = head.classify(np.array([0, 1], np.float32), count=1)
    assert [each.label for each in first.annotations] == ["a", "b"]
    assert sum(each.confidence for each in first.annotations) == pytest.approx(1)
    assert (first.confident, second.confident) == (True, False)
    warmer = replace(head, temperature=2.0).probabilities(np.array([1, 0], np.float32))
    assert warmer[0] / warmer[1] == pytest.approx(np.exp(2 / 2.0))
    assert len(second.annotations) == 1


def test_length_of_an_embedding_does_not_matter() -> None:
    head, _ = fit_head(_examples(each=8))
    embedding = _examples(each=8).embeddings[3]
    np.testing.assert_allclose(
        head.probabilities(embedding), head.probabilities(0.01 * embedding), rtol=1e-4
    )
