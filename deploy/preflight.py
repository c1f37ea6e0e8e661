"""What a release needs, checked before any change. The result is one list of what is missing."""

import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from deploy.cloud_run import TAG, CloudRun, CommandFailed, ReleaseFailed, Service
from deploy.smoke import IMAGES, SmokeFailed, Target

ADDRESS_SECONDS = 20.0
INGRESS = "run.googleapis.com/ingress"
NO_ADDRESS = "run.googleapis.com/default-url-disabled"
PUBLIC = "run.googleapis.com/invoker-iam-disabled"
# Terraform's outputs, which .github/workflows/deploy.yml reads as variables of the repository.
VARIABLES = {
    "project": "GCP_PROJECT",
    "region": "GCP_REGION",
    "api": "API_SERVICE",
    "workers": "WORKER_SERVICES",
}


def missing_options(options: Mapping[str, str]) -> Iterator[str]:
    """Empty options: in a workflow, variables of the repository that are not set."""
    for name, variable in VARIABLES.items():
        if not options[name].strip(" ,"):
            yield (
                f"--{name} is empty: set the variable {variable} of the repository to Terraform's "
                f"output {variable}"
            )
    if shutil.which("gcloud") is None:
        yield "gcloud is not installed"


def described(cloud: CloudRun, names: Sequence[str], problems: list[str]) -> dict[str, Service]:
    """The services by name. What cannot be described becomes a problem."""
    found = {}
    for name in names:
        try:
            found[name] = cloud.describe(name)
        except CommandFailed as error:
            problems.append(f"{error} (does the service exist, and may this account read it?)")
        except ReleaseFailed as error:
            problems.append(str(error))
    return found


def service_problems(cloud: CloudRun, service: Service) -> Iterator[str]:
    """Tags of revisions that do not work: with one, Cloud Run reports every change as failed."""
    for tag, revision in service.tags.items():
        if tag == TAG:
            continue
        try:
            ready = cloud.revision(revision).ready
        except CommandFailed:
            ready = False
        if not ready:
            yield (
                f"{service.name}: the tag {tag} names {revision}, which is not ready. Remove it: "
                f"gcloud run services update-traffic {service.name} --remove-tags={tag} "
                f"--region={cloud.region}"
            )


def worker_problems(service: Service) -> Iterator[str]:
    if service.annotations.get(NO_ADDRESS) == "true":
        yield f"{service.name}: its default address is disabled, and Pub/Sub pushes to it"
    ingress = service.annotations.get(INGRESS, "all")
    if ingress not in ("all", "internal"):
        yield f"{service.name}: Pub/Sub does not pass the ingress {ingress}. Use internal"


def api_problems(service: Service, api_url: str, target: Target | None) -> Iterator[str]:
    """What the test of the API needs: an address, a key and a token."""
    ingress = service.annotations.get(INGRESS, "all")
    if not api_url:
        variable = "set --api-url (the variable API_URL: Terraform's output API_URL)"
        if service.annotations.get(NO_ADDRESS) == "true" or not service.url:
            yield f"{service.name}: its default address is disabled, so {variable}"
        elif ingress != "all":
            yield f"{service.name}: only a load balancer reaches it ({ingress}), so {variable}"
    if target is None:
        return
    needs_key = "API_KEYS=required" in service.environment
    if needs_key and not target.api_key:
        yield (
            f"{service.name} asks for a key: set GLIMPSE_API_KEY (in GitHub the secret "
            "SMOKE_API_KEY of the environment production). It needs the scopes classify, read and "
            "admin"
        )
    if service.annotations.get(PUBLIC) != "true" and not target.identity_token and _remote(target):
        yield f"{service.name} is not public: set GLIMPSE_IDENTITY_TOKEN"


def address_problems(url: str) -> Iterator[str]:
    """Name, certificate and response of the public address."""
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        yield (
            f"{host} has no address: create the A record that Terraform's output `dns` names, and "
            "wait for it"
        )
        return
    try:
        urllib.request.urlopen(url.rstrip("/") + "/health", timeout=ADDRESS_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it responds
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            yield (
                f"{host} has no valid certificate yet: Google issues it within an hour of the A "
                f"record ({reason})"
            )
        else:
            yield f"{url} does not answer: {reason}"


def key_problems(target: Target) -> Iterator[str]:
    """Whether the key may do what the smoke test does. The upload is empty, so it is refused.

    The image of this name does not exist.
    """
    unknown = f"{IMAGES}/{'0' * 64}"
    for method, path, scope in (
        ("GET", unknown, "read"),
        ("POST", IMAGES, "classify"),
        ("DELETE", unknown, "admin"),
    ):
        try:
            answer = target.request(method, path, b"" if method == "POST" else None)
        except SmokeFailed as error:
            yield str(error)
            return
        if answer.status == 401:
            yield (
                f"{target.url} does not accept the key or the identity token: "
                f"{_detail(answer.body)}"
            )
            return
        if answer.status == 403:
            yield (
                f"the key of the smoke test needs the scope {scope}: create one with "
                f"--scopes=classify,read,admin ({_detail(answer.body)})"
            )


def _remote(target: Target) -> bool:
    return target.url.startswith("https://")


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
