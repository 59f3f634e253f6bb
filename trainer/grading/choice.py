"""Multiple choice: a letter, however it is dressed."""

from __future__ import annotations

import re

_WRAPPER = re.compile(r"\\(?:text|textbf|mbox|mathrm|mathbf|textrm)\s*(?=\{)|[{}$\s]")
# The letter alone, or the letter with a delimiter and then the option's own words.
_LETTER = re.compile(r"\(([A-Za-z])\)|([A-Za-z])(?:[.):]|$)")


def read_choice(text: str) -> str | None:
    r"""Return the option letter in upper case, or None when `text` does not start with one.

    `C`, `c`, `(C)`, `\text{(C)}`, `C.` and `C) 17` are C; `CD` and `Carbon` are nothing. Case does
    not matter, because the options of one question never differ by case alone.
    """
    match = _LETTER.match(_WRAPPER.sub("", text))
    return (match[1] or match[2]).upper() if match else None


def same_choice(answer: str, truth: str) -> bool:
    """Whether both texts name the same option; an unreadable answer is never right."""
    letter = read_choice(answer)
    return letter is not None and letter == read_choice(truth)
