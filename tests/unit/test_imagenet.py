"""The default model's labels and categories, and the rules that derive the categories."""

import json
from collections import Counter
from pathlib import Path

import pytest

from models.imagenet import (
    Label,
    Rule,
    ancestors,
    categorized,
    read_hypernyms,
    read_labels,
    read_rules,
    write_labels,
)
from tests.support.stack import ROOT

BUNDLE = ROOT / "models/default"
# Lines of data.noun as wndb(5WN) describes them: offset, file, type, words, pointers, gloss.
NOUNS = """\
  1 This software and database is being provided to you, the LICENSEE, by
00000001 03 n 01 animal 0 000 | a living thing
00000002 05 n 02 dog 0 domestic_dog 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | man's best friend
00000003 05 n 01 pug 0 002 @ 00000002 n 0000 + 00000009 a 0101 | a small dog
00000004 05 n 01 Lassie 0 001 @i 00000002 n 0000 | a famous one
00000005 06 n 01 chair 0 000 | to sit on
"""
HYPERNYMS = {
    "n00000001": (),
    "n00000002": ("n00000001",),
    "n00000003": ("n00000002",),
    "n00000004": ("n00000002",),
    "n00000005": (),
}


def rule(below: str, plus: tuple[str, ...] = (), minus: tuple[str, ...] = ()) -> Rule:
    return Rule(frozenset({below}), frozenset(plus), frozenset(minus))


LABELS = [Label("n00000003", "pug"), Label("n00000004", "Lassie"), Label("n00000005", "chair")]


def test_hypernyms_are_read_from_wordnets_file(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS, encoding="latin-1")
    assert read_hypernyms(tmp_path) == HYPERNYMS


def test_ancestors_include_the_synset_itself() -> None:
    assert ancestors("n00000003", HYPERNYMS) == {"n00000003", "n00000002", "n00000001"}


def test_categories_are_the_synsets_ancestors_narrowest_first() -> None:
    rules = {"animal": rule("n00000001", minus=("Lassie",)), "dog": rule("n00000002")}
    rules["dog"] = rule("n00000002")
    found = categorized(LABELS, rules, HYPERNYMS)
    assert [each.categories for each in found] == [("animal", "dog"), ("dog",), ()]


def test_labels_can_be_added_to_a_category() -> None:
    found = categorized(LABELS, {"toy": rule("n00000002", plus=("chair",))}, HYPERNYMS)
    assert [each.categories for each in found] == [("toy",)] * 3


@pytest.mark.parametrize(
    "mistaken",
    [
        rule("n00000002", plus=("table",)),
        rule("n00000002", plus=("pug",)),
        rule("n00000002", minus=("chair",)),
        rule("n00000009"),
    ],
    ids=["unknown label", "needless plus", "needless minus", "empty"],
)
def test_mistaken_rule_is_refused(mistaken: Rule) -> None:
    with pytest.raises(ValueError, match="toy"):
        categorized(LABELS, {"toy": mistaken}, HYPERNYMS)


def test_labels_survive_the_file(tmp_path: Path) -> None:
    labels = [Label("n00000003", "pug", ("dog", "animal")), Label("n00000005", "chair")]
    write_labels(labels, tmp_path / "labels.tsv")
    assert read_labels(tmp_path / "labels.tsv") == labels


def test_there_is_one_plain_name_for_each_class() -> None:
    labels = read_labels()
    assert len(labels) == 1000
    assert [each.wordnet_id for each in labels] == sorted({each.wordnet_id for each in labels})
    names = Counter(each.name.lower() for each in labels)
    assert names.most_common(1)[0][1] == 1
    assert not [each.name for each in labels if "," in each.name or "_" in each.name]
    by_id = {each.wordnet_id: each.name for each in labels}
    assert (by_id["n02123045"], by_id["n04285008"]) == ("tabby cat", "sports car")


def test_there_are_60_to_120_categories_and_every_rule_has_one() -> None:
    categories = {category for each in read_labels() for category in each.categories}
    assert 60 <= len(categories) <= 120
    assert categories == set(read_rules())
    assert categories >= {
        *("cat", "dog", "bird", "car", "food", "furniture", "clothing"),
        *("musical instrument", "building", "plant"),
    }


def test_categories_of_known_labels() -> None:
    by_name = {each.name: each.categories for each in read_labels()}
    assert by_name["tabby cat"] == ("cat", "mammal", "animal")
    assert by_name["sports car"] == ("car", "vehicle")
    assert by_name["acoustic guitar"] == ("guitar", "string instrument", "musical instrument")
    assert by_name["umbrella"] == ()


def test_default_bundle_has_these_labels_and_categories() -> None:
    labels = read_labels()
    assert (BUNDLE / "labels.txt").read_text().splitlines() == [each.name for each in labels]
    assert (BUNDLE / "wordnet_ids.txt").read_text().splitlines() == [
        each.wordnet_id for each in labels
    ]
    assert json.loads((BUNDLE / "categories.json").read_text()) == {
        each.name: list(each.categories) for each in labels if each.categories
    }
