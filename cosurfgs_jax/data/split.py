"""Which views are kept for testing."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import read_lines, reading

_TEST_WORDS = ("test", "val", "validation", "eval")


def _read_names(path: Path) -> list[str]:
    with reading(path, "a text file with one image name per line", "write it again"):
        lines = read_lines(path)
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def views_of_names(listed: list[str], names: list[str], source: str) -> list[int]:
    """The views that a list of names means.

    Args:
        listed: names as in `names`; without folders or without the ending is enough where that says
            which view.
        names: of all views.
        source: where the list is from, for messages.
    Raises:
        InputError: names that are unknown or fit several views; gives the first and the count.
    """
    by_key: dict[str, set[int]] = {}
    for view, name in enumerate(names):
        path = Path(name)
        for key in {name, path.name, str(path.with_suffix("")), path.stem}:
            by_key.setdefault(key, set()).add(view)
    exact = {name: view for view, name in enumerate(names)}
    views = []
    unknown = []
    for entry in listed:
        entry = entry.replace("\\", "/").removeprefix("./")
        found = by_key.get(entry) or by_key.get(entry.partition("/")[2], set())
        if entry in exact:
            found = {exact[entry]}
        if len(found) == 1:
            views.append(next(iter(found)))
        else:
            unknown.append(entry)
    if unknown:
        raise InputError(
            f"{source}: expected names of the {len(names)} images (such as {names[0]}), got "
            f"{len(unknown)} that fit no "
            f"image or several, the first is {unknown[0]!r}; correct the list"
        )
    return sorted(set(views))


def _from_folders(names: list[str]) -> np.ndarray | None:
    words = [name.split("/")[0].lower() if "/" in name else "" for name in names]
    if "train" not in words or not any(word in _TEST_WORDS for word in words):
        return None
    strange = [
        name
        for name, word in zip(names, words, strict=True)
        if word != "train" and word not in _TEST_WORDS
    ]
    if strange:
        raise InputError(
            'config.data.split "folders": expected every image in train/ or one of '
            f"{', '.join(_TEST_WORDS)}/, "
            f"got {len(strange)} elsewhere, the first is {strange[0]}; move them, or use every8 or "
            "a list file"
        )
    return np.array([word in _TEST_WORDS for word in words])


def _views_of_list(path: Path, names: list[str], left_out: Sequence[str]) -> list[int]:
    """The views that a file lists; images that the dataset names and that are not there are no
    mistake of the list.
    """
    views = views_of_names(_read_names(path), [*names, *left_out], str(path))
    return [view for view in views if view < len(names)]


def _from_lists(names: list[str], folder: Path, left_out: Sequence[str]) -> np.ndarray | None:
    test_lists = [
        folder / f"{word}.txt" for word in _TEST_WORDS if (folder / f"{word}.txt").is_file()
    ]
    train_list = folder / "train.txt"
    is_test = np.zeros(len(names), bool)
    for path in test_lists:
        is_test[_views_of_list(path, names, left_out)] = True
    if not train_list.is_file():
        return is_test if test_lists else None
    is_train = np.zeros(len(names), bool)
    is_train[_views_of_list(train_list, names, left_out)] = True
    if not test_lists:
        return ~is_train
    wrong = np.flatnonzero(is_train == is_test)
    if wrong.size:
        raise InputError(
            f"{folder}: expected every image either in train.txt or in {test_lists[0].name}, got "
            f"{wrong.size} in both "
            f"or neither, the first is {names[wrong[0]]}; correct the lists"
        )
    return is_test


def views_for_testing(
    split: str,
    names: list[str],
    folder: Path,
    own_test_names: list[str] | None = None,
    left_out: Sequence[str] = (),
) -> np.ndarray:
    """Which views are for testing.

    Args:
        split: "every<n>": the first and each n-th after it, by name. "all": no view is for testing.
            "folders": what the dataset says itself: its own lists (`own_test_names`), else images
            in train/ and test/ (val/) sub-folders, else train.txt and test.txt (val.txt) in its
            folder, of which one is enough. Else the path of a text file with names of test images,
            one per line, from the working directory or the dataset's folder.
        names: of all views, sorted.
        folder: of the dataset.
        own_test_names: names that the dataset's files call test images, or None.
        left_out: names of images that are no views, which lists may have.
    Returns:
        bool[V].
    Raises:
        InputError: no such split, no such file, unknown names, or no view left for training.
    """
    number = re.fullmatch(r"every(\d+)", split)
    if split == "all":
        is_test = np.zeros(len(names), bool)
    elif number:
        period = int(number[1])
        if period < 2:
            raise InputError(
                f"config.data.split: expected every<n> with n of at least 2, got {split!r}"
            )
        is_test = np.arange(len(names)) % period == 0
    elif split == "folders":
        is_test = _own_split(names, folder, own_test_names, left_out)
    else:
        path = next((path for path in (Path(split), folder / split) if path.is_file()), None)
        if path is None:
            raise InputError(
                'config.data.split: expected "every<n>", "all", "folders" or a text file with '
                "names of test images, "
                f"got {split!r}, which is none of them"
            )
        is_test = np.zeros(len(names), bool)
        is_test[_views_of_list(path, names, left_out)] = True
    if is_test.all():
        raise InputError(
            f"config.data.split: expected at least one view for training, got {split!r}, which "
            "leaves none of "
            f"{len(names)}; choose another split"
        )
    return is_test


def _own_split(names, folder, own_test_names, left_out):
    if own_test_names is not None:
        is_test = np.zeros(len(names), bool)
        is_test[views_of_names(own_test_names, names, str(folder))] = True
        return is_test
    is_test = _from_folders(names)
    if is_test is None:
        is_test = _from_lists(names, folder, left_out)
    if is_test is None:
        raise InputError(
            'config.data.split: expected a dataset with its own split for "folders", got none (no '
            "train/ and test/ or "
            f"val/ folders of images, no train.txt, test.txt or val.txt in {folder}); use every8 "
            "or a list file"
        )
    return is_test
