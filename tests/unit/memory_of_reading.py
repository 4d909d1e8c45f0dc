"""How much memory a reading of a file takes at most, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CHILD = """
import sys
from shared.errors import NeuropilError
{imported}
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
with open(sys.argv[1], "rb") as file:
    data = file.read()
before = peak()
try:
    {call}
except NeuropilError:
    pass
print((peak() - before) * 1024)
"""


def peak_bytes(imported: str, call: str, file: Path) -> int:
    """Bytes that `call` takes besides the content of `file`, which it finds as `data`."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD.format(imported=imported, call=call), str(file)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(child.stdout)
