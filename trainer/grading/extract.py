r"""Finds the last `\boxed{...}` of a text in one pass."""

from __future__ import annotations

import re

_BOX = r"\\(?:boxed|fbox)(?![A-Za-z])"
# "\\." swallows every other escape whole, so that "\{" and "\}" do not count as braces.
_TOKEN = re.compile(rf"(?P<box>{_BOX}\s*)|\\.|[{{}}]", re.DOTALL)
_BARE = re.compile(rf"(?!{_BOX})[^\s$<{{}}]")
_BARE_END = re.compile(r"[\s$<{}]|\Z")


def last_box(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` or `\fbox{...}` of `text`, else None.

    The last box is the one that opens last, so of nested boxes the inner one counts. Only boxes
    with balanced braces count: a box cut off by the token limit is no answer. `\boxed 5` holds
    the text up to the next space, `$`, brace or `<` (a special token may follow). One pass with
    a stack of open braces, so linear in `text` however many boxes stay open.
    """
    start, end = -1, -1  # of the best box so far; end stays -1 for a bare one
    open_braces: list[tuple[int, bool]] = []  # (offset after the brace, is it a box's)
    box_end = -1  # where the latest "\\boxed" ended; a brace there is its argument
    for match in _TOKEN.finditer(text):
        token = match.group()
        if match["box"] is not None:
            box_end = match.end()
            if _BARE.match(text, box_end):
                start, end = box_end, -1
        elif token == "{":
            open_braces.append((match.end(), match.start() == box_end))
        elif token == "}" and open_braces:
            opened, is_box = open_braces.pop()
            if is_box and opened > start:
                start, end = opened, match.start()
    if start < 0:
        return None
    if end < 0:  # found only now, for the last one: a search per bare box could be quadratic
        end = _BARE_END.search(text, start).start()
    return text[start:end].strip()
