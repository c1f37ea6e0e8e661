"""Parses the response of `/metrics`."""

from prometheus_client.parser import text_string_to_metric_families


def series(name: str, **labels: object) -> str:
    """The key of a series in `samples`."""
    if not labels:
        return name
    pairs = ",".join(f"{label}={value}" for label, value in sorted(labels.items()))
    return f"{name}{{{pairs}}}"


def samples(text: str) -> dict[str, float]:
    """The value of each series."""
    return {
        series(sample.name, **sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def families(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """The type and labels of each metric, by the name that a query uses."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, frozenset(labels))
    return found
