"""The symbolic tier: math-verify, in a worker of its own because it may hang or eat memory."""

from __future__ import annotations

from trainer.grading.worker import Same, serve


def load() -> Same:
    """Import math-verify, seconds; ImportError without it."""
    import logging

    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    logging.disable(logging.CRITICAL)  # it warns that its own limits are off
    # Not its extraction of plain expressions, which evaluates text as Python through sympy.
    configs = [LatexExtractionConfig(boxed_match_priority=-1)]

    def read(text: str) -> list[object]:
        # A full stop behind a formula is not seen as one inside dollars.
        inline = "$" + text.replace("$", " ").strip().rstrip(".,;") + "$"
        return parse(inline, configs, fallback_mode="no_fallback", parsing_timeout=None)

    def same(answer: str, truth: str) -> bool:
        gold, found = read(truth), read(answer)
        return bool(gold) and bool(found) and verify(gold, found, timeout_seconds=None)

    return same


if __name__ == "__main__":
    serve(load)
