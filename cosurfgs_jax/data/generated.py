"""The reader of the generated town: made once from its settings, and then a COLMAP dataset."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from cosurfgs_jax.data import colmap
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.errors import required
from cosurfgs_jax.settings import GeneratedSettings

PATH = "generated"  # as config.data.path


class _Town(NamedTuple):
    settings: GeneratedSettings
    folder: Path
    model: str


def detects(source: Source) -> _Town | None:
    """The town that is asked for; None where another dataset is.

    Raises:
        InputError: settings of which no town can be made.
    """
    if source.data.path != PATH:
        return None
    settings = source.generated
    settings.validate()
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    name = f"generated-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return _Town(settings, Path(source.cache_dir) / name, source.data.model)


def read(town: _Town) -> Capture:
    """Makes the town where it is not there yet, and reads it."""
    from cosurfgs_jax.data.town.dataset import make_town  # other datasets need none of it

    make_town(town.settings, town.folder)
    model = required(colmap.find_model(town.folder, town.model), "the town's model")
    capture = colmap.read_model(model)
    return dataclasses.replace(capture, name=PATH, root=town.folder)
