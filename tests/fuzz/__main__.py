"""Fuzz every target in turn: `python -m tests.fuzz --seconds 600 [TARGET ...]`.

Each runs in a process of its own, bounded in memory, and in time for an input. New inputs go to
build/fuzz; an input that fails is written there too, and the exit status is 1. `--keep` then adds
to the corpus what reaches something new, the smallest inputs first, until a target has 64 KiB.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.seeds import CORPUS

_WEIGHTS = {
    "records": 4,
    "explanations": 3,
    "requests": 4,
    "shapes": 1,
    "bodies": 2,
    "queries": 2,
    "changes": 2,
}
NAMES = tuple(_WEIGHTS)
_LARGEST_INPUT = 4096
_LARGEST_CORPUS = 64 * 1024
"""Of a target, in bytes: the repository keeps it."""
_MEMORY_MIB = 1024
_SECONDS_AN_INPUT = 10
# For its start, for the corpus, and for an input that hangs at the end.
_SECONDS_BESIDE = 60
_HUNG = 124


def fuzz(name: str, seconds: int, work: Path) -> tuple[int, str]:
    """Fuzz one target; its exit status and libFuzzer's log."""
    found = work / name
    found.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "tests.fuzz.worker", name, str(found), str(CORPUS / name)),
        f"-max_total_time={seconds}",
        f"-artifact_prefix={work}/{name}-",
        f"-max_len={_LARGEST_INPUT}",
        *(f"-timeout={_SECONDS_AN_INPUT}", f"-rss_limit_mb={_MEMORY_MIB}"),
        "-print_final_stats=1",
    ]
    try:
        run = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=seconds + _SECONDS_BESIDE,
        )
    except subprocess.TimeoutExpired as expired:
        log = (expired.stdout or b"").decode(errors="replace")
        return _HUNG, f"{log}\n{name} did not end: it hangs where it can't be interrupted"
    return run.returncode, run.stdout.decode(errors="replace")


def keep(name: str, work: Path) -> int:
    """Add to the corpus what of the new inputs reaches something new; gives how many were added."""
    corpus, merged = CORPUS / name, work / f"{name}-merged"
    shutil.rmtree(merged, ignore_errors=True)
    shutil.copytree(corpus, merged)
    # These inputs kept the limit of memory when they were found. Here it could be broken by whoever
    # starts this: Linux counts for a new program what the one before it had at most.
    command = [
        *(sys.executable, "-m", "tests.fuzz.worker", name, "-merge=1"),
        *("-rss_limit_mb=0", str(merged), str(work / name)),
    ]
    merging = subprocess.run(command, stderr=subprocess.PIPE, check=True, text=True)
    if "MERGE-OUTER: successful" not in merging.stderr:
        raise RuntimeError(f"the inputs were not merged: {merging.stderr[-2000:]}")
    known = {path.read_bytes() for path in corpus.iterdir()}
    size = sum(map(len, known))
    added = 0
    for path in sorted(merged.iterdir(), key=lambda each: (each.stat().st_size, each.name)):
        content = path.read_bytes()
        if content not in known and size + len(content) <= _LARGEST_CORPUS:
            (corpus / path.name).write_bytes(content)
            size += len(content)
            added += 1
    return added


def figures(log: str) -> str:
    """Executions, coverage and memory out of libFuzzer's log."""
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)
    cov, features, inputs = coverage[-1] if coverage else ("?", "?", "?")
    found = {
        key: (re.findall(rf"stat::{key}:\s+(\d+)", log) or ["?"])[-1]
        for key in ("number_of_executed_units", "peak_rss_mb")
    }
    return (
        f"{found['number_of_executed_units']} executions, coverage {cov}, features {features}, "
        f"{inputs} inputs, {found['peak_rss_mb']} MB"
    )


def main() -> int:
    """Read the arguments, fuzz, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--keep", action="store_true", help="add what is new to the corpus")
    options = parser.parse_args()
    names = options.targets or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    options.work.mkdir(parents=True, exist_ok=True)
    failed = False
    total = sum(_WEIGHTS[name] for name in names)
    for name in names:
        seconds = max(1, options.seconds * _WEIGHTS[name] // total)
        began = time.monotonic()
        status, log = fuzz(name, seconds, options.work)
        print(f"{name}: {figures(log)}, {time.monotonic() - began:.0f} s", flush=True)
        if status:
            failed = True
            print(log[-4000:], flush=True)
        elif options.keep:
            print(f"{name}: {keep(name, options.work)} inputs added to the corpus", flush=True)
    if not failed:
        print("No crash, no hang, no wrong answer, no more memory than allowed.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
