"""Writes docs/settings.md: every setting with its type, default and help, from the declarations.

python scripts/settings_page.py
"""

from pathlib import Path

from cosurfgs_jax.settings import settings_reference

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def main() -> None:
    """Writes the page, and says where."""
    PAGE.write_text(settings_reference(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
