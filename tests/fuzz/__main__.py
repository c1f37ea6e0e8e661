"""Coverage-guided fuzzing of the parsers of untrusted bytes: `make fuzz`.

    make fuzz FUZZ_SECONDS=600                  # of each target
    .fuzz-venv/bin/python -m tests.fuzz header --seconds 60

Each target runs in its own process, because libFuzzer ends the process that it runs in. Its corpus
is in `.fuzz/<target>`, and the next run continues with it. An input that causes a failure is
written to `.fuzz` as `crash-…`. Uses Atheris: https://github.com/google/atheris
"""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

TARGETS = ("envelope", "multipart", "header", "preparation", "archive", "manifest")
ROOT = Path(__file__).resolve().parents[2]
LONGEST_INPUT = 16_384  # bytes
LONGEST_RUN = 30  # seconds for one input, after which it counts as a hang


def fuzz(target: str, seconds: int, folder: Path) -> None:
    """Fuzz one target in this process. Does not return."""
    import atheris

    with atheris.instrument_imports(
        include=["app", "worker", "core", "PIL", "multipart", "starlette.requests"]
    ):
        from tests.fuzz.seeds import seeds
        from tests.fuzz.targets import TARGETS as FUNCTIONS

    corpus = folder / target
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds(target):
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    arguments = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT}",
        f"-timeout={LONGEST_RUN}",
        f"-artifact_prefix={folder}/",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(arguments, FUNCTIONS[target])
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS, nargs="?", help="one only, in this process")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--folder", type=Path, default=ROOT / ".fuzz")
    args = parser.parse_args()
    if args.target:
        fuzz(args.target, args.seconds, args.folder)
        return
    failed = []
    for target in TARGETS:
        print(f"--- {target}: {args.seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", str(args.seconds)]
        done = subprocess.run([*command, "--folder", str(args.folder)], cwd=ROOT, check=False)
        if done.returncode:
            failed.append(target)
    sys.exit(f"broken: {', '.join(failed)}; see {args.folder}" if failed else 0)


if __name__ == "__main__":
    main()
