"""`python -m services.launcher` is the command `neuropil`."""

from __future__ import annotations

from services.launcher.cli import main

if __name__ == "__main__":
    main()
