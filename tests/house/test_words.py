"""The words of the field: paraphrases and name patterns that have a term, with the term."""

import re

import pytest
from package_tree import ROOT, source_files

# What is banned, as a regular expression over the text with its line breaks as spaces, and the
# term to write. Names are whole identifiers, or what they begin or end with.
PHRASES = {
    r"\bto the bit\b|\bbit for bit\b": "bit-identical",
    r"\bthe way back\b": "backward pass; for coordinates: round trip, inverse",
    r"\b(is|are|be) held to\b": "verified against",
    r"\bwithout chance\b": "deterministic",
    r"\bfront half of (its|their) light\b": "while transmittance > 0.5",
    r"\bthousand million\b": "2^31 (2.1 billion)",
    r"\bone text serves\b": "one implementation serves",
    r"\bhave following numbers\b": "consecutive indices",
    r"\bexpected flags only\b": "unexpected positional argument",
    r"\bgot another one\b": "differs between ...; or name what was got",
    r"\bmoving things\b": "moving objects",
    r"\bwhat was hit\b": "the surface, the depth",
}
NAMES = {
    r"_?(MOST|LEAST)_[A-Z_]+|k(Most|Least)[A-Z]\w*": "MAX_, MIN_",
    r"(most_asked|num_first|is_real|keep_head|blind_camera|there_and_back)": "see house rules",
    r"expose": "apply_exposure",
    r"[A-Z_]+_SHARE|(line|cell|confidence)_shares?": "fraction",
    r"g_(px|py|pz|dx|dy|sigma|alpha|screen|z|u|v|sh|pose|fields|probe)": "grad_* (Python)",
    r"drop_(by_itself|unconfirmed)": "filter_single_view, filter_multi_view",
    r"(gpu_bin|_as_one|tell_[a-z]\w*)": "binning, noinline, summarize_*",
}
# This table, and C++, whose kernels name gradients g_x throughout.
EXCEPTIONS = {
    "tests/house/test_words.py": tuple(PHRASES) + tuple(NAMES),
    "*.native": (next(rule for rule in NAMES if rule.startswith("g_")),),
}
NATIVE = (".h", ".cc", ".cu", ".cuh")


def faults(name: str, text: str) -> list[str]:
    """What is banned in the text of a file, and what to write."""
    allowed = EXCEPTIONS.get(name, ())
    if name.endswith(NATIVE):
        allowed += EXCEPTIONS["*.native"]
    # A phrase may go over a line, with the sign of a comment between.
    flat = re.sub(r"\s*\n\s*(?:#|//|\*)?\s*", " ", text)
    rules = [(rule, rule, term) for rule, term in PHRASES.items()]
    rules += [(rule, rf"(?<![\w.-])(?:{rule})(?![\w-])", term) for rule, term in NAMES.items()]
    return [
        f"{name}: {found[0]!r}; expected {term}"
        for rule, pattern, term in rules
        if rule not in allowed
        for found in [re.search(pattern, flat)]
        if found
    ]


def test_words_are_those_of_the_field():
    found = []
    for path in source_files():
        if path.suffix not in (".json", ".txt", ""):
            name = path.relative_to(ROOT).as_posix()
            found += faults(name, path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "equal to the bit",
        "# equal to\n    # the bit",
        "// on the way\n// back",
        "kernels that are held to it",
        "_MOST_POINTS = 3",
        "constexpr float kLeastGray = 1;",
        "picture = expose(picture)",
        "g_px = 1",
        "_FREE_SHARE = 0.25",
    ],
)
def test_a_banned_word_is_found(text):
    assert len(faults("cosurfgs_jax/new.py", text)) == 1


@pytest.mark.parametrize(
    "text", ["blocks share a folder", "the most points", "g_tree", "exposed", "held together"]
)
def test_words_with_another_sense_are_not(text):
    assert not faults("cosurfgs_jax/new.py", text)
