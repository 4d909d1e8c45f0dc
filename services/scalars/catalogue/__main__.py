"""`python -m services.scalars.catalogue`: write docs/scalars.md from the declarations."""

from __future__ import annotations

from services.scalars.catalogue.document import DOCUMENT, render


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(render(), encoding="utf-8")
    print(f"wrote {DOCUMENT.name}: {render().count(chr(10))} lines")


if __name__ == "__main__":
    main()
