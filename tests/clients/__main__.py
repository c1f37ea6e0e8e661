"""`make clients`: generates clients from the OpenAPI document, compiles them, and runs some.

    python -m tests.clients [--only TEXT] [--url URL]

Clients in Go, Java, TypeScript and Python upload an image, get it, run a job of three, list and
cancel jobs, and read the refusals 415, 413 and 404. They run against an embedded Glimpse, or the
one at `--url`. Spectral and Redocly check the document. What cannot be installed is skipped and
named. This is not a part of `make test`: it downloads hundreds of megabytes.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.main import create_app
from tests.clients.tools import Failed, Missing, Tools, run
from tests.support.pictures import picture
from tests.support.settings import isolated_settings

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "clients" / "programs"
CACHE = ROOT / ".clients"
TSC = (
    *("--strict", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"),
    *("--lib", "es2022,dom,dom.iterable", "--skipLibCheck"),
)


@dataclass
class Bench:
    """The document, the tools, the folder of the clients, and the running service."""

    tools: Tools
    document: Path
    folder: Path
    files: Path
    url: str

    def generated(self, generator: str, name: str, *options: str) -> Path:
        """The folder with a client that openapi-generator makes."""
        out = self.fresh(name)
        command: list[str | Path] = ["java", "-jar", self.tools.generator, "generate"]
        run(*command, "-i", self.document, "-g", generator, "-o", out, *options)
        return out

    def fresh(self, name: str) -> Path:
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        return out

    def program(self, *command: str | Path, folder: Path | None = None, **more: str) -> str:
        """Run a round trip, and return how many checks it made."""
        output = run(*command, folder=folder, FILES=str(self.files), GLIMPSE_URL=self.url, **more)
        return f"{output.count('ok ')} checks"


# --- Linters --------------------------------------------------------------------------------------


def spectral(bench: Bench) -> str:
    rules = bench.folder / "spectral.yaml"
    rules.write_text("extends: ['spectral:oas']\n")
    run(bench.tools.npm / "spectral", "lint", "--ruleset", rules, bench.document)
    return "no errors"


def redocly(bench: Bench) -> str:
    run(bench.tools.npm / "redocly", "lint", bench.document)
    return "no errors"


# --- openapi-generator ----------------------------------------------------------------------------


def go(bench: Bench) -> str:
    out = bench.generated(
        "go", "go", "--git-host=example.org", "--git-user-id=x", "--git-repo-id=glimpse",
        "--additional-properties=packageName=glimpse,withGoMod=false",
    )  # fmt: skip
    shutil.rmtree(out / "test", ignore_errors=True)  # of the generator, with its own imports
    (out / "go.mod").write_text("module example.org/glimpse\n\ngo 1.23\n")
    program = out / "roundtrip"
    program.mkdir()
    shutil.copy(PROGRAMS / "go" / "main.go", program)
    run("go", "mod", "tidy", folder=out)
    run("go", "vet", "./...", folder=out)
    return bench.program("go", "run", "./roundtrip", folder=out)


def java_native(bench: Bench) -> str:
    out = bench.generated(
        "java", "java-native", "--library=native",
        "--additional-properties=useSingleRequestParameter=true,hideGenerationTimestamp=true",
    )  # fmt: skip
    shutil.copy(PROGRAMS / "java" / "RoundTrip.java", out / "src" / "main" / "java")
    run("mvn", "-q", "-B", "-DskipTests", "compile", folder=out)
    classpath = out / "classpath.txt"
    run(
        "mvn",
        "-q",
        "-B",
        "dependency:build-classpath",
        f"-Dmdep.outputFile={classpath}",
        folder=out,
    )
    path = f"{out / 'target' / 'classes'}:{classpath.read_text().strip()}"
    return bench.program("java", "-cp", path, "RoundTrip")


def java_okhttp(bench: Bench) -> str:
    out = bench.generated("java", "java-okhttp", "--library=okhttp-gson")
    run("mvn", "-q", "-B", "-DskipTests", "compile", folder=out)
    return "compiles"


def kotlin(bench: Bench) -> str:
    out = bench.generated("kotlin", "kotlin")
    # The generated build needs Gradle, whose plugins are not on Maven Central. Maven compiles the
    # same sources with the same dependencies.
    gradle = (out / "build.gradle").read_text()
    version = re.findall(r"kotlin_version = '(.+)'", gradle)[0]
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{release}</version></dependency>"
        for group, artifact, release in re.findall(r'\bimplementation "(.+):(.+):(.+)"', gradle)
    )
    # Gradle finds the part for the JVM by itself.
    dependencies = dependencies.replace(">okhttp<", ">okhttp-jvm<")
    pom = (PROGRAMS / "kotlin" / "pom.xml").read_text()
    pom = pom.replace("<dependencies/>", f"<dependencies>{dependencies}</dependencies>")
    (out / "pom.xml").write_text(pom.replace("$kotlin_version", version))
    # The compiler would leave a daemon behind.
    run("mvn", "-q", "-B", "-Dkotlin.compiler.daemon=false", "compile", folder=out)
    if not any((out / "target" / "classes").rglob("ImagesApi.class")):
        raise Failed("Maven compiled no client.")
    return "compiles"


def rust(bench: Bench) -> str:
    out = bench.generated("rust", "rust", "--additional-properties=packageName=glimpse_client")
    run("cargo", "check", "--quiet", folder=out, CARGO_TARGET_DIR=str(bench.folder / "target"))
    return "compiles"


def python(bench: Bench) -> str:
    out = bench.generated(
        "python", "python", "--additional-properties=packageName=glimpse_generated"
    )
    run(sys.executable, "-m", "venv", out / "venv")
    run(out / "venv" / "bin" / "pip", "install", "--quiet", out)
    modules = ["glimpse_generated", "glimpse_generated.api", "glimpse_generated.models"]
    run(out / "venv" / "bin" / "python", "-c", f"import {', '.join(modules)}")
    return "is imported"


def typescript_fetch(bench: Bench) -> str:
    out = bench.generated("typescript-fetch", "typescript-fetch")
    run(bench.tools.npm / "tsc", *TSC, "--noEmit", out / "index.ts")
    return "compiles"


# --- Others ---------------------------------------------------------------------------------------


def oapi_codegen(bench: Bench) -> str:
    out = bench.fresh("oapi-codegen")
    code = run(
        *(bench.tools.oapi_codegen, "-generate", "types,client", "-package", "glimpse"),
        bench.document,
    )
    (out / "glimpse.go").write_text(code[code.index("// Package") :])
    (out / "go.mod").write_text("module example.org/glimpse\n\ngo 1.23\n")
    run("go", "mod", "tidy", folder=out)
    run("go", "vet", "./...", folder=out)
    return "compiles"


def openapi_python_client(bench: Bench) -> str:
    out = bench.fresh("openapi-python-client")
    said = run(
        *(bench.tools.python_client, "generate", "--overwrite", "--path", bench.document),
        *("--output-path", out),
    )
    if "will not be generated" in said:
        raise Failed(said)
    client = next(out.glob("*_client")).parent
    interpreter = bench.tools.python_client.with_name("python")
    program = PROGRAMS / "python" / "round_trip.py"
    return bench.program(interpreter, program, PYTHONPATH=str(client))


def openapi_typescript(bench: Bench) -> str:
    out = _typescript(bench, "openapi-typescript", "fetch.ts")
    run(bench.tools.npm / "openapi-typescript", bench.document, "-o", out / "schema.d.ts")
    return _run_typescript(bench, out, "fetch")


def orval(bench: Bench) -> str:
    out = _typescript(bench, "orval", "orval.ts")
    output = {"target": str(out / "glimpse.ts"), "client": "fetch", "baseUrl": bench.url}
    config = {"glimpse": {"input": str(bench.document), "output": output}}
    (out / "orval.config.cjs").write_text(f"module.exports = {json.dumps(config)};\n")
    run(bench.tools.npm / "orval", "--config", out / "orval.config.cjs", folder=out)
    return _run_typescript(bench, out, "orval")


def hey_api(bench: Bench) -> str:
    out = bench.fresh("hey-api")
    run(bench.tools.npm / "openapi-ts", "-i", bench.document, "-o", out)
    run(bench.tools.npm / "tsc", *TSC, "--noEmit", out / "index.ts")
    return "compiles"


def _typescript(bench: Bench, name: str, program: str) -> Path:
    """A folder with the program, in which TypeScript finds the packages."""
    packages = bench.tools.npm.parent
    out = bench.fresh(name)
    (out / "node_modules").symlink_to(packages)
    (out / "package.json").write_text('{"private": true, "type": "module"}')
    shutil.copy(PROGRAMS / "typescript" / program, out)
    return out


def _run_typescript(bench: Bench, out: Path, program: str) -> str:
    """Compile a program, make its imports those of Node, and run it."""
    run(bench.tools.npm / "tsc", *TSC, "--types", "node", f"{program}.ts", folder=out)
    compiled = out / f"{program}.js"
    compiled.write_text(compiled.read_text().replace('"./glimpse"', '"./glimpse.js"'))
    return bench.program("node", compiled)


CLIENTS: dict[str, Callable[[Bench], str]] = {
    "spectral": spectral,
    "redocly": redocly,
    "openapi-generator go": go,
    "openapi-generator java native": java_native,
    "openapi-generator java okhttp": java_okhttp,
    "openapi-generator kotlin": kotlin,
    "openapi-generator rust": rust,
    "openapi-generator python": python,
    "openapi-generator typescript-fetch": typescript_fetch,
    "oapi-codegen": oapi_codegen,
    "openapi-typescript": openapi_typescript,
    "orval": orval,
    "hey-api": hey_api,
    "openapi-python-client": openapi_python_client,
}


# --- The service ----------------------------------------------------------------------------------


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """An embedded Glimpse on free ports, with its data in `folder`."""
    ports = [_free_port() for _ in "ab"]
    environment = os.environ | {
        "BACKEND": "embedded",
        "DATA_DIR": str(folder / "data"),
        "API_PORT": str(ports[0]),
        "WORKER_PORT": str(ports[1]),
        "LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "compose", "run"]
    with (folder / "service.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{ports[0]}"
            _wait_for(url)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(url: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def write_files(folder: Path) -> None:
    """Write what the programs upload: three photos, a zip of them, a text, and too many bytes."""
    photos = {f"{n}.jpg": picture(time.time_ns() % 2**31 + n, size=(320, 200)) for n in (1, 2, 3)}
    for name, data in photos.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, data in photos.items():
            archive.writestr(name, data)
    (folder / "text.txt").write_text("This is not an image.")
    (folder / "large.jpg").write_bytes(photos["1.jpg"] + bytes(30_000_000))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", default="", help="run those whose name contains this text")
    parser.add_argument("--url", default="", help="use this service and do not start one")
    arguments = parser.parse_args()
    chosen = {name: client for name, client in CLIENTS.items() if arguments.only in name}
    failed, skipped = 0, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder)
        document = folder / "openapi.json"
        document.write_text(json.dumps(create_app(isolated_settings()).openapi()))
        with service(folder) if not arguments.url else _running(arguments.url) as url:
            bench = Bench(Tools(CACHE / "tools"), document, CACHE / "generated", folder, url)
            bench.folder.mkdir(parents=True, exist_ok=True)
            for name, client in chosen.items():
                began = time.monotonic()
                try:
                    outcome = client(bench)
                except Missing as missing:
                    skipped.append(name)
                    outcome = f"skipped: {missing}"
                except Failed as error:
                    failed += 1
                    outcome = f"FAILED\n{error}"
                print(f"{name:36} {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    passed = len(chosen) - failed - len(skipped)
    print(f"{passed} passed, {failed} failed, {len(skipped)} skipped")
    return 1 if failed else 0


@contextmanager
def _running(url: str) -> Iterator[str]:
    _wait_for(url)
    yield url.rstrip("/")


if __name__ == "__main__":
    sys.exit(main())
