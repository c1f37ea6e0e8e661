"""Write the settings into README.md and .env.example: `python -m compose.settings_docs`.

Both come from `core.settings.Settings`, so neither can name what does not exist.
"""

import re
from pathlib import Path

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from core.settings import DEFAULT_BUNDLE, Settings

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def rows() -> list[tuple[str, str, str]]:
    """(name, default, meaning) of each setting, in the order of the class."""
    found = []
    for name, field in Settings.model_fields.items():
        assert field.default is not PydanticUndefined
        assert field.description, f"{name} needs a description"
        found.append((name.upper(), _text(field.default), field.description))
    return found


def table() -> str:
    """The Markdown table."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    lines += [f"| `{n}` | {f'`{d}`' if d else '(empty)'} | {m} |" for n, d, m in rows()]
    return "\n".join(lines)


def env_example() -> str:
    """Every setting with its default, commented out."""
    lines = [
        "# Copy to .env and uncomment what you change. Each line shows the default.",
        "# Two of them are not the same as no line: where BACKEND is set make run does not choose,",
        "# and where STORAGE_EMULATOR_HOST is set `gs://` means the emulator.",
        "# Environment variables of the same name win over this file.",
    ]
    for name, default, meaning in rows():
        lines += ["", f"# {meaning}", f"# {name}={default}"]
    return "\n".join(lines) + "\n"


def readme_with_table(readme: str) -> str:
    """`readme` with the table between its two markers."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", readme)


def _text(default: object) -> str:
    if default == str(DEFAULT_BUNDLE):
        return str(DEFAULT_BUNDLE.relative_to(ROOT))
    if default is None:
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, float):
        return str(int(default)) if default.is_integer() else f"{default:g}"
    return str(default)


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(readme_with_table(readme.read_text()))
    (ROOT / ".env.example").write_text(env_example())


if __name__ == "__main__":
    main()
