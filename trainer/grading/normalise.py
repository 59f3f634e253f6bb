r"""From LaTeX as written to a list of tokens: dress removed, nothing evaluated.

Every pattern is applied once, left to right. Tokens are macros (`\frac`), environment marks
(`\begin{pmatrix}`), numbers, single characters, and one space where it stood between two digits:
`1 1/2` is not `11/2`.
"""

from __future__ import annotations

import re
from itertools import pairwise

_UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": "*",
        "·": "*",
        "π": r"\pi ",
        "∞": r"\infty ",
        "√": r"\sqrt ",
        "∪": r"\cup ",
        "±": r"\pm ",
        "°": r"^\circ ",
    }
)

# A separator inside one number: "10,\!080", "10{,}080", "10\,080", but never a plain space.
_GROUPED = re.compile(r"(?<=[0-9])(?:,\\!|\{,\}|\\[,;: ]|~)\s*(?=[0-9]{3}(?![0-9]))")
# "58,500" too, but inside brackets it is the point (58, 500).
_COMMAS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")
_BRACKET = re.compile(r"[(\[]|\\\{")

_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\phantom\s*(?:\{[^{}]*\}|\S)", ""),
        (r"(?<!\\)\\!|\\?\$|\\(?:left|right|displaystyle|limits|[bB]ig+[lr]?)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[,;: ()\[\]]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", ""),
        (r"\\(?:cdot|times)(?![A-Za-z])", "*"),
        (r"\\([lg])eq(?![A-Za-z])", r"\\\1e"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\%|(?:\\text\s*\{\s*percent\s*\}|(?<=[0-9])\s*percent)$", "%"),
        (r"\\(?:mathbf|mathit|boldsymbol|operatorname)(?![A-Za-z])", ""),
        (r"\\math(?:rm|sf)\s*\{\s*([A-Za-z])\s*\}", r"{\1}"),  # a variable, not a unit
        (r"\\begin\{bmatrix\}", r"\\begin{pmatrix}"),
        (r"\\end\{bmatrix\}", r"\\end{pmatrix}"),
    )
)

_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathsf)\s*\{(?P<words>[^{}]*)\}"
    r"(?P<power>\s*\^\s*(?:[23]|\{[23]\}))?(?P<base>\s*_)?"
)
_JOINER = re.compile(r"[\s,]*(?:and|or)[\s,]*")
_MULTIPLIER = re.compile(r"hundred|thousand|[mb]illion|dozen")
_UNIT = re.compile(
    r"(?<=[0-9}\s])\s*(?:(?:square|sq\.?|cubic)\s+)?"
    r"(?:units?|[cmk]m|inch(?:es)?|feet|foot|ft|yards?|miles?|mph|meters?|centimeters?|kilometers?"
    r"|degrees?|dollars?|cents?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|pounds?"
    r"|grams?|kg)(?:\s*\^\s*(?:[23]|\{[23]\}))?$"
)
_MACRO = re.compile(r"\\[A-Za-z]+")
_ABSORBS_PRODUCT = re.compile(r"[A-Za-z(]|\\(?!frac)[A-Za-z]")  # 3 \cdot x is 3x, 3 \cdot 4 not 34
_TOKEN = re.compile(
    r"(?<=[0-9])\s+(?=[0-9])|\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+|\\."
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\S",
    re.DOTALL,
)


def tokenise(text: str) -> list[str]:
    """Return the tokens of one answer, without units, sizes, dollar signs and end punctuation."""
    text = text.translate(_UNICODE).strip()
    text = _GROUPED.sub("", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _drop_words(text).strip().rstrip(".,;").rstrip()
    text = _UNIT.sub("", text)
    if not _BRACKET.search(text):
        text = _COMMAS.sub(lambda match: match.group().replace(",", ""), text)
    return [" " if token.isspace() else token for token in _TOKEN.findall(text)]


def _drop_words(text: str) -> str:
    r"""Remove `\text{...}` beside mathematics, where it is a unit; unwrap it where it is all."""
    beside = re.search(r"[0-9A-Za-z]", _TEXT.sub("", text)) is not None

    def replace(match: re.Match[str]) -> str:
        words = match["words"]
        if _JOINER.fullmatch(words):
            return ","
        if not beside or match["base"] or _MULTIPLIER.search(words):
            return words + (match["power"] or "") + (match["base"] or "")
        return " "

    text = re.sub(r"\s(?:and|or)\s", ",", _TEXT.sub(replace, text))
    return re.sub(r",\s*,", ",", text)


def compact(tokens: list[str]) -> str:
    """Join tokens into the string that is compared where no exact value is known.

    Braces around a single token go (`x^{2}` is `x^2`), and so do product signs before letters,
    roots and parentheses. Words compare without case, single letters (variables) with it.
    """
    kept: list[str] = []
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        if token == "*" and _ABSORBS_PRODUCT.match(following):
            continue
        if token == "}" and kept[-2:-1] == ["{"] and (len(kept[-1]) == 1 or kept[-1][0] == "\\"):
            kept[-2:] = kept[-1:]
            continue
        kept.append(token)
    joined = kept[0] if kept else ""
    for previous, token in pairwise(kept):
        joined += " " + token if _MACRO.fullmatch(previous) and token[0].isalpha() else token
    return joined.lower() if len(joined) > 1 and joined.isalpha() else joined
