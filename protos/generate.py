"""Generate the Python stubs of the contract.

`python protos/generate.py [OUT]` writes them below OUT, by default the client's source folder. The
output is checked in and never edited; a test runs this into an empty folder and compares.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
DEFAULT_OUT = PROTOS.parent / "clients" / "python" / "src"


def generate(out: Path) -> None:
    """Write messages, their type stubs, and service stubs with types for the aio client.

    Raises:
        RuntimeError: if the compiler refuses the contract; it has printed why.
    """
    out.mkdir(parents=True, exist_ok=True)
    third_party = PROTOS / "third_party"
    contract = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.glob("neuropil/**/*.proto"))
    services = [path for path in contract if path.endswith("_service.proto")]
    include = [f"-I{PROTOS}", f"-I{third_party}", f"-I{files('grpc_tools') / '_proto'}"]
    messages = [f"--python_out={out}", f"--pyi_out={out}"]
    _run([*include, *messages, *contract, "buf/validate/validate.proto"])
    _run([*include, f"--grpc_python_out={out}", f"--mypy_grpc_out={out}", *services])


def _run(arguments: list[str]) -> None:
    status = protoc.main(["protoc", *arguments])
    if status:
        raise RuntimeError(f"protoc ended with status {status}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT)
