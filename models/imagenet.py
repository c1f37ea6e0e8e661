"""The labels of ImageNet-1k and their broader categories.

    python -m models.imagenet --wordnet /usr/share/wordnet

`imagenet_labels.tsv` has a row for each class, in the order of the network's outputs: WordNet id,
label, categories. The command derives the third column from WordNet 3.0's tree by the rules in
`imagenet_categories.toml`. The database itself (Debian's `wordnet-base`) is needed only for that.
"""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LABELS_FILE = Path(__file__).with_name("imagenet_labels.tsv")
RULES_FILE = Path(__file__).with_name("imagenet_categories.toml")
HYPERNYMS = ("@", "@i")  # hypernym of a class, and of an instance: wninput(5WN)


class Label(NamedTuple):
    """One class. `categories` has the narrowest first."""

    wordnet_id: str
    name: str
    categories: tuple[str, ...] = ()


class Rule(NamedTuple):
    """A category: the synsets whose hyponyms it has, with added and removed labels."""

    below: frozenset[str]
    plus: frozenset[str]
    minus: frozenset[str]


def read_labels(file: Path = LABELS_FILE) -> list[Label]:
    """The classes, in the order of the network's outputs."""
    rows = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())
    return [
        Label(wordnet_id, name, tuple(filter(None, rest[0].split(", "))) if rest else ())
        for wordnet_id, name, *rest in rows
    ]


def write_labels(labels: Sequence[Label], file: Path = LABELS_FILE) -> None:
    """Write what `read_labels` reads."""
    rows = ("\t".join((*label[:2], ", ".join(label.categories))) + "\n" for label in labels)
    file.write_text("".join(rows), encoding="utf-8")


def read_rules() -> dict[str, Rule]:
    """The rule of each category. In `n02084071 dog`, only the id is used."""
    document = tomllib.loads(RULES_FILE.read_text(encoding="utf-8"))
    return {
        name: Rule(
            frozenset(each.split()[0] for each in rule["below"]),
            frozenset(rule.get("plus", ())),
            frozenset(rule.get("minus", ())),
        )
        for name, rule in document.items()
    }


def read_hypernyms(wordnet: Path) -> dict[str, tuple[str, ...]]:
    """The direct hypernyms of each noun synset, by WordNet id, from `data.noun` (wndb(5WN))."""
    found = {}
    for line in (wordnet / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields = line.partition(" | ")[0].split()
        words = int(fields[3], 16)
        count, *pointers = fields[4 + 2 * words :]
        # Each pointer has a symbol, a synset, a part of speech, and source and target words.
        found[f"n{fields[0]}"] = tuple(
            f"n{pointers[at + 1]}"
            for at in range(0, 4 * int(count), 4)
            if pointers[at] in HYPERNYMS and pointers[at + 2] == "n"
        )
    return found


def categorized(
    labels: Sequence[Label], rules: Mapping[str, Rule], hypernyms: Mapping[str, tuple[str, ...]]
) -> list[Label]:
    """`labels` with categories according to the rules. Raises ValueError if a rule is wrong."""
    members: dict[str, set[str]] = {}
    names = {label.name for label in labels}
    for category, rule in rules.items():
        below = {x.name for x in labels if rule.below & ancestors(x.wordnet_id, hypernyms)}
        unknown = (rule.plus | rule.minus) - names
        needless = (rule.plus & below) | (rule.minus - below)
        if unknown or needless:
            raise ValueError(f"{category}: unknown {unknown}, without effect {needless}")
        members[category] = (below | rule.plus) - rule.minus
        if not members[category]:
            raise ValueError(f"{category} has no labels")
    narrowest = sorted(members, key=lambda category: (len(members[category]), category))
    return [
        label._replace(categories=tuple(c for c in narrowest if label.name in members[c]))
        for label in labels
    ]


def ancestors(synset: str, hypernyms: Mapping[str, tuple[str, ...]]) -> set[str]:
    """A synset and all its direct and indirect hypernyms."""
    found, waiting = set[str](), [synset]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting.extend(hypernyms.get(each, ()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="the folder of data.noun")
    wordnet = parser.parse_args().wordnet
    labels = categorized(read_labels(), read_rules(), read_hypernyms(wordnet))
    write_labels(labels)
    categories = {category for label in labels for category in label.categories}
    without = sum(not label.categories for label in labels)
    print(f"{len(categories)} categories; {without} of {len(labels)} labels have none")


if __name__ == "__main__":
    main()
