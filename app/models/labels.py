"""The labels that a tenant gives to images for training."""

from core.errors import InvalidRequest

MAX_LABEL = 100  # characters


def check_label(label: str) -> None:
    """Raise InvalidRequest unless the text can be a label."""
    if not label.strip():
        rule = "is empty"
    elif len(label) > MAX_LABEL:
        rule = f"has {len(label)} characters; at most {MAX_LABEL} are allowed"
    elif not label.isprintable():
        rule = f"has characters that cannot be printed: {label!r}"
    else:
        return
    raise InvalidRequest(f"label {rule}.", extra={"field": "label"})
