"""What several test files need."""

import os
from pathlib import Path

import pytest


def real_scene(name: str) -> Path:
    """The folder of a real dataset, or a skip with the reason where it is not on this machine."""
    root = os.environ.get("COSURFGS_DATA")
    folder = Path(root) if root else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / name / "sparse").is_dir():
        pytest.skip(
            f"no real dataset {name} in {folder}; set COSURFGS_DATA to the folder that has it"
        )
    return folder / name
