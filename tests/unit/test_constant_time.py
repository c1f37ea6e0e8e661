"""Secrets are compared in constant time: these tests search the source for other comparisons."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECRET = ("digest", "signature", "secret", "token", "mac", "tag", "password")
# Plain comparisons of values that are not secret, and why.
HARMLESS = {
    ("core/domain/records.py", "record.token == claim.token"),  # a fencing token is a number
    # Tokens of deletions are numbers as well.
    ("core/domain/deletions.py", "before.token != ended.token"),
    ("app/images/submission.py", "token == (0 if deletion is None else deletion.token)"),
    # A constant of Google's.
    ("worker/push/token.py", "signature == REMOVED_SIGNATURE"),
}


def plain_comparisons(source: str) -> Iterator[str]:
    """Yield comparisons for equality or membership whose operand has the name of a secret."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(
            isinstance(operator, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for operator in node.ops
        ):
            operands = [node.left, *node.comparators]
            if any(_named_like_a_secret(operand) for operand in operands):
                yield ast.unparse(node)


def _named_like_a_secret(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return any(part in SECRET for part in name.lower().strip("_").split("_"))
        case ast.Call(func=function):
            return _named_like_a_secret(function)
        case ast.Subscript(value=value):
            return _named_like_a_secret(value)
        case _:
            return False


@pytest.mark.parametrize(
    "line",
    [
        "self.signature == given",
        "digest(text) != key.digest",
        "headers['x'] == link_signature",
        "text[-8:] == self._tag(stem)",
        "token in known",
    ],
)
def test_search_finds_comparisons_of_secrets(line: str) -> None:
    assert list(plain_comparisons(line))


def test_no_secret_is_compared_by_an_operator() -> None:
    found = set()
    for folder in ("app", "core", "worker"):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if name.startswith("core/imaging/"):  # the tags and signatures of image files
                continue
            found |= {(name, text) for text in plain_comparisons(path.read_text())}
    assert found <= HARMLESS, "use hmac.compare_digest"
    assert found == HARMLESS, "take out what is no longer there"


def test_modules_that_check_secrets_use_compare_digest() -> None:
    for name in ("core/domain/api_keys.py", "core/domain/key_tokens.py", "core/backends/links.py"):
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse((ROOT / name).read_text()))
            if isinstance(node, ast.Call)
        }
        assert "hmac.compare_digest" in calls, name
