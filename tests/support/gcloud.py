"""The commands of `gcloud run` that a release uses, for tests where the real gcloud would be slow.

It does what the real one does to a service, through the same API: read it, change it, send it back
with its version, wait for the operation, and end with 1 if the service is not ready. The same
scenarios run with the real gcloud by `make releases`.
"""

# A release calls it about seventy times. These imports take 8 ms of CPU time; `http.client`,
# `pathlib` and `typing` would take 30 ms more.
import _socket
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


def install(folder: "Path") -> None:
    """A command `gcloud` in `folder`."""
    import py_compile

    folder.mkdir(parents=True, exist_ok=True)
    program, command = folder / "gcloud.pyc", folder / "gcloud"
    py_compile.compile(__file__, str(program), doraise=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{program}" "$@"\n')
    command.chmod(0o755)


def call(method: str, path: str, body: "Any" = None) -> "Any":
    with open(os.environ["CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"]) as file:  # noqa: PTH123 - see above
        token = file.read()
    sent = json.dumps(body) if body is not None else ""
    line = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    line.connect(("127.0.0.1", int(os.environ["CLOUDSDK_PROXY_PORT"])))
    request = f"{method} {path} HTTP/1.0\r\nauthorization: Bearer {token}\r\n"
    line.sendall(f"{request}content-length: {len(sent)}\r\n\r\n{sent}".encode("ascii"))
    answer = b""
    while part := line.recv(65_536):
        answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    status, document = int(head.split()[1]), json.loads(content)
    if status != 200:
        error = document["error"]
        sys.exit(f"ERROR: (gcloud.run) {error['status']}: {error['message']} ({status})")
    return document


def retarget(traffic: "list[dict[str, Any]]", options: dict[str, str]) -> "list[dict[str, Any]]":
    """The traffic with the changes that the options describe."""
    if split := options.get("to-revisions"):
        tagged = [{k: v for k, v in t.items() if k != "percent"} for t in traffic if t.get("tag")]
        shares = (share.partition("=") for share in split.split(","))
        traffic = [{"revisionName": name, "percent": int(part)} for name, _, part in shares]
        traffic += tagged
    gone = [tag for tag in options.get("remove-tags", "").split(",") if tag]
    gone += [tag.partition("=")[0] for tag in options.get("update-tags", "").split(",") if tag]
    for target in traffic:
        if target.get("tag") in gone:
            del target["tag"]
    traffic = [target for target in traffic if target.get("percent") or target.get("tag")]
    for tag in (each for each in options.get("update-tags", "").split(",") if each):
        name, _, revision = tag.partition("=")
        traffic.append({"revisionName": revision, "tag": name})
    return traffic


def main() -> None:
    options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
    _, group, verb, name = [word for word in sys.argv[1:] if not word.startswith("--")]
    base = f"/apis/serving.knative.dev/v1/namespaces/{options['project']}"
    if group == "revisions":
        print(json.dumps(call("GET", f"{base}/revisions/{name}")))
        return
    service = call("GET", f"{base}/services/{name}")
    if verb != "describe":
        spec, status = service["spec"], service["status"]
        if "no-traffic" in options:
            for target in spec["traffic"]:
                if target.pop("latestRevision", False):
                    target["revisionName"] = status["latestReadyRevisionName"]
        if image := options.get("image"):
            metadata = spec["template"].setdefault("metadata", {})
            metadata.pop("name", None)
            # So that each update makes a revision.
            metadata["labels"] = {"client.knative.dev/nonce": os.urandom(5).hex()}
            spec["template"]["spec"]["containers"][0]["image"] = image
        spec["traffic"] = retarget(spec["traffic"], options)
        sent = call("PUT", f"{base}/services/{name}", service)
        operation = sent["metadata"]["annotations"]["run.googleapis.com/operation-id"]
        done = call("POST", f"/v1/projects/p/locations/l/operations/{operation}:wait", {})
        if "error" in done:
            sys.exit(f"ERROR: (gcloud.run.services.{verb}) {done['error']['message']}")
        service = call("GET", f"{base}/services/{name}")
    # update-traffic shows the targets, in a form of its own, and not the service.
    print(json.dumps([{"key": name}] if verb == "update-traffic" else service))


if __name__ == "__main__":
    main()
