"""Some hundred spoilt files for every kind of reader: refused in the package's own error, or read,
never anything else.

scripts/fuzz.py does the same by the hundred thousand, with limits on time and memory.
"""

import time
import warnings

import fuzz_cases
import fuzz_formats
import pytest

from cosurfgs_jax.errors import InputError

READERS = {reader.name: reader for reader in fuzz_formats.all_readers()}
# Those of which one takes milliseconds; others take less.
NUM_FILES = {
    "workdir": 20,
    "config": 30,
    "teachers": 40,
    "checkpoint": 15,
    "plan": 80,
    "masks": 30,
    "colmap_binary": 100,
    "colmap_text": 100,
    "transforms_json": 80,
    "transforms_points": 60,
    "metashape": 20,
    "realityscan_list": 20,
    "pix4d": 20,
    "xmp": 12,
    "control_points": 30,
    "similarity": 60,
    "mvsnet": 20,
    "matrix_city": 20,
    "mega_nerf": 20,
    "run_files": 60,
    "prepared": 60,
    "shards": 40,
    "lpips_weights": 20,
    "place": 20,
    "checkpoint_notes": 6,
}
MAX_SECONDS = 2.0  # of processor time, for one file


@pytest.mark.parametrize("name", READERS)
def test_spoilt_files_are_refused_or_read(name, tmp_path):
    case = fuzz_cases.Case(READERS[name], tmp_path / name)
    num_refused = 0
    for seed in range(25 if name.startswith("photograph") else NUM_FILES.get(name, 200)):
        path, _ = case.spoil(seed)
        started = time.process_time()
        with warnings.catch_warnings():  # Pillow warns of metadata that it leaves out
            warnings.simplefilter("ignore")
            try:
                wrong, heard = case.read()
            except InputError as error:
                num_refused += 1
                assert (
                    str(tmp_path) in str(error)
                    or path.name in str(error)
                    or "config." in str(error)
                ), f"seed {seed}: {error}"
            else:
                assert heard or not any(text.startswith("number of") for text in wrong), (
                    f"seed {seed}: {wrong}"
                )
        assert time.process_time() - started < MAX_SECONDS, f"seed {seed}"
        case.restore()
    assert num_refused > 5 or name == "checkpoint_notes"  # there is an older one
    assert case.read()[0] == []
