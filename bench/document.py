"""The section of a document that a bench writes, between two markers."""

from __future__ import annotations

from pathlib import Path


def write_section(document: Path, begin: str, end: str, section: str) -> None:
    """Replaces what stands between the markers; a document that is not there is made.

    ValueError when it lacks a marker.
    """
    text = document.read_text(encoding="utf-8") if document.exists() else f"{begin}\n{end}\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} lacks a marker: {begin!r} and {end!r}")
    document.write_text(f"{before}{begin}\n\n{section}\n{end}{after}", encoding="utf-8")
