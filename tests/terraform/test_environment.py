"""What Terraform sets, `core/settings.py` reads and accepts."""

import re
from pathlib import Path

import pytest

from core.domain.channels import ALL_CHANNELS
from core.settings import Settings
from terraform.tools.tree import Module, code
from tests.support.settings import isolated_settings
from tests.support.terraform import outputs

KNOWN = {name.upper() for name in Settings.model_fields}

ROOT_MODULE = """
module "names" {{
  source     = "{modules}/names"
  project_id = "example-project"
  name       = "glimpse"
}}
module "policy" {{ source = "{modules}/policy" }}
module "settings" {{
  source      = "{modules}/settings"
  project_id  = "example-project"
  policy      = module.policy
  bucket      = module.names.bucket
  database    = module.names.database
  keys_database = module.names.keys_database
  public_url  = "{public_url}"
  worker_cpus = {{ interactive = 2, batch = 4, notify = 1 }}
  api_streams = 160
  {more}
  queue = {{
    topic_prefix  = module.names.prefix
    push_audience = module.names.push_audience
    push_account  = "${{module.names.push}}@example-project.iam.gserviceaccount.com"
  }}
}}
output "api" {{ value = module.settings.api }}
output "workers" {{ value = module.settings.workers }}
"""


def test_every_name_is_a_setting(modules: dict[str, Module]) -> None:
    """Read as text, so that it holds where Terraform is not installed."""
    set_ = {
        name
        for part in ("common", "email", "imports", "model", "models", "api", "worker")
        for name in modules["settings"].locals[part]
        if not name.startswith("__")
    }
    example = modules["example"]
    expressions = [
        *example.of("module")["api"].body["secrets"],
        code(example.locals["mail_server"]),
    ]
    secret = set(re.findall(r"\b([A-Z]+_[A-Z_]+)\b", " ".join(expressions)))
    assert len(set_) > 15
    assert secret == {"KEY_SECRET", "SMTP_URL"}
    assert (set_ | secret) - KNOWN == set()


@pytest.mark.parametrize("public_url", ["", "https://labels.example.com"])
def test_the_services_accept_their_environment(
    modules: dict[str, Module], tmp_path: Path, public_url: str
) -> None:
    folder = modules["settings"].folder.parent
    given = outputs(tmp_path, ROOT_MODULE.format(modules=folder, public_url=public_url, more=""))
    assert set(given["workers"]) == {"interactive", "batch", "notify"}
    for each in (given["api"], *given["workers"].values()):
        environment = {name.lower(): value for name, value in each.items()}
        settings = isolated_settings(**environment)
        assert settings.backend == "gcp"
        assert settings.push_authentication == "iam"
        assert settings.log_format == "json"
        for channel in ALL_CHANNELS:
            ours = isolated_settings().channel_delivery(channel)
            assert settings.channel_delivery(channel) == ours
        assert settings.topic_prefix == "glimpse"
        assert settings.google_cloud_project == "example-project"
        # Every value arrives as it was given, whatever its type here.
        for name, value in environment.items():
            if name in Settings.model_fields:
                assert str(getattr(settings, name)).removesuffix(".0").lower() == value.lower()
    assert given["api"]["PUBLIC_URL"] == public_url
    assert given["api"]["DATASTORE_DATABASE"] == "glimpse"
    assert given["api"]["DATASTORE_KEYS_DATABASE"] == "glimpse-keys"
    assert not [each for each in given["workers"].values() if "DATASTORE_KEYS_DATABASE" in each]
    concurrency = {name: each["WORKER_CONCURRENCY"] for name, each in given["workers"].items()}
    assert concurrency == {"interactive": "2", "batch": "4", "notify": "1"}


@pytest.mark.parametrize("thumbnails", [False, True])
def test_thumbnails_are_a_choice(
    modules: dict[str, Module], tmp_path: Path, thumbnails: bool
) -> None:
    more = f"thumbnails = {str(thumbnails).lower()}"
    folder = modules["settings"].folder.parent
    given = outputs(tmp_path, ROOT_MODULE.format(modules=folder, public_url="", more=more))
    for each in (given["api"], *given["workers"].values()):
        environment = {name.lower(): value for name, value in each.items()}
        assert Settings(_env_file=None, **environment).makes_thumbnails is thumbnails


def test_the_services_accept_a_model_from_a_bucket(
    modules: dict[str, Module], tmp_path: Path
) -> None:
    more = """
  model_uri        = "gs://example-models/2026/vit"
  extra_model_uris = ["gs://other-models/a", "models/default"]
"""
    folder = modules["settings"].folder.parent
    given = outputs(tmp_path, ROOT_MODULE.format(modules=folder, public_url="", more=more))
    for each in (given["api"], *given["workers"].values()):
        environment = {name.lower(): value for name, value in each.items()}
        settings = isolated_settings(**environment)
        assert settings.model_uris == (
            "gs://example-models/2026/vit",
            "gs://other-models/a",
            "models/default",
        )
        assert not settings.emulated_buckets
