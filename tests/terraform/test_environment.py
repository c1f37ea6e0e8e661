"""What Terraform sets, `core/settings.py` reads and accepts."""

import re
from pathlib import Path

import pytest

from core.domain.channels import ALL_CHANNELS
from core.settings import Settings
from terraform.tools.tree import Module, code
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
  public_url  = "{public_url}"
  worker_cpus = 2
  api_streams = 160
  {more}
  queue = {{
    topic_prefix  = module.names.prefix
    push_audience = module.names.push_audience
    push_account  = "${{module.names.push}}@example-project.iam.gserviceaccount.com"
  }}
}}
output "api" {{ value = module.settings.api }}
output "worker" {{ value = module.settings.worker }}
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
        *(code(example.of("module")[service].body["secrets"]) for service in ("api", "worker")),
        code(example.locals["mail_server"]),
    ]
    secret = set(re.findall(r"\b([A-Z][A-Z_]+) = ", " ".join(expressions)))
    assert len(set_) > 15
    assert secret == {"KEY_SECRET", "SMTP_URL"}
    assert (set_ | secret) - KNOWN == set()


@pytest.mark.parametrize("public_url", ["", "https://labels.example.com"])
def test_the_services_accept_their_environment(
    modules: dict[str, Module], tmp_path: Path, public_url: str
) -> None:
    folder = modules["settings"].folder.parent
    given = outputs(tmp_path, ROOT_MODULE.format(modules=folder, public_url=public_url, more=""))
    for service in ("api", "worker"):
        environment = {name.lower(): value for name, value in given[service].items()}
        settings = Settings(_env_file=None, **environment)
        assert settings.backend == "gcp"
        assert settings.verifies_pushes
        assert settings.log_format == "json"
        for channel in ALL_CHANNELS:
            ours = Settings(_env_file=None).channel_delivery(channel)
            assert settings.channel_delivery(channel) == ours
        assert settings.topic_prefix == "glimpse"
        assert settings.google_cloud_project == "example-project"
        # Every value arrives as it was given, whatever its type here.
        for name, value in environment.items():
            if name in Settings.model_fields:
                assert str(getattr(settings, name)).removesuffix(".0").lower() == value.lower()
    assert given["api"]["PUBLIC_URL"] == public_url
    assert int(given["worker"]["WORKER_CONCURRENCY"]) == 2


def test_the_services_accept_a_model_from_a_bucket(
    modules: dict[str, Module], tmp_path: Path
) -> None:
    more = """
  model_uri        = "gs://example-models/2026/vit"
  extra_model_uris = ["gs://other-models/a", "models/default"]
"""
    folder = modules["settings"].folder.parent
    given = outputs(tmp_path, ROOT_MODULE.format(modules=folder, public_url="", more=more))
    for service, extra in (("api", ()), ("worker", ("gs://other-models/a", "models/default"))):
        environment = {name.lower(): value for name, value in given[service].items()}
        settings = Settings(_env_file=None, **environment)
        assert settings.model_uris == ("gs://example-models/2026/vit", *extra)
        assert not settings.emulated_buckets
