"""The rows of scripts/house_evidence.py, on a page where the right count is plain, and on ours."""

import re

import house_evidence
import pytest

SAMPLE = """# Extending

## What is not allowed

```python
# losses/not_a_way.py
```

## A loss term

From outside:

```python
import jax
# losses/not_the_first_line.py
```

As a part:

```python
# losses/own.py
TERM = 1
```

```diff
@@ settings/training.py @@
+    own_weight: float = 1
```

## An attribute

```diff
@@ types.py @@
+    a: int
+    b: int
@@ settings/training.py @@
+    a: float
@@ types.py @@
+    c: int
```
"""


def test_files_are_counted_by_the_blocks_that_name_them():
    assert house_evidence.files_to_touch(SAMPLE) == {
        "A loss term": ["losses/own.py", "settings/training.py"],
        "An attribute": ["types.py", "settings/training.py"],
    }


def test_lines_without_their_file_are_refused():
    page = SAMPLE.replace("@@ types.py @@\n+    a", "+    a")
    with pytest.raises(ValueError, match="An attribute: expected @@ FILE @@ above the lines, got"):
        house_evidence.files_to_touch(page)


def test_the_number_of_type_errors_is_read():
    assert house_evidence.allowed_type_errors("A = 1\nMAX_ERRORS = 7\n") == 7
    with pytest.raises(ValueError, match="expected a number MAX_ERRORS, got none"):
        house_evidence.allowed_type_errors("MAX = 7\n")


def test_the_table_of_the_page_has_the_numbers_that_are_counted():
    page = house_evidence.PAGE.read_text(encoding="utf-8")
    table = page.partition("## Files to touch")[2]
    said = dict(re.findall(r"^\| ([\w ]+?)(?:, not drawn)? +\|.*\| (\d+) +\|$", table, re.M))
    found = house_evidence.files_to_touch(page)
    assert len(found) == 8
    for title, files in found.items():
        name = re.sub(r"^An? ", "", title)
        assert len(files) == int(said[name]), title
        for path in files[-1:]:  # registered in a file that is there
            assert (house_evidence.ROOT / "cosurfgs_jax" / path).is_file(), path
