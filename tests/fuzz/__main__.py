"""Fuzz every target in turn: `python -m tests.fuzz --seconds 600 [TARGET ...]`.

New inputs go to build/fuzz; an input that fails is written there too, and the exit status is 1.
`--keep` then adds to the corpus what reaches something new.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.seeds import CORPUS

NAMES = ("records", "explanations", "requests", "shapes")
_WEIGHTS = {"records": 4, "explanations": 3, "requests": 4, "shapes": 1}
_LARGEST_INPUT = 4096


def fuzz(name: str, seconds: int, work: Path) -> tuple[int, str]:
    """Fuzz one target; its exit status and libFuzzer's log."""
    found = work / name
    found.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "tests.fuzz.worker", name, str(found), str(CORPUS / name)),
        f"-max_total_time={seconds}",
        f"-artifact_prefix={work}/{name}-",
        f"-max_len={_LARGEST_INPUT}",
        *("-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"),
    ]
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=seconds + 60
    )
    return run.returncode, run.stdout.decode(errors="replace")


def keep(name: str, work: Path) -> None:
    """Add to the corpus what of the new inputs reaches something new."""
    command = [
        *(sys.executable, "-m", "tests.fuzz.worker", name, "-merge=1", "-rss_limit_mb=1024"),
        *(str(CORPUS / name), str(work / name)),
    ]
    subprocess.run(command, check=True, capture_output=True)


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
        status, log = fuzz(name, seconds, options.work)
        print(f"{name}: {figures(log)}", flush=True)
        if status:
            failed = True
            print(log[-4000:], flush=True)
        elif options.keep:
            keep(name, options.work)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
