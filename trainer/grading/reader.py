r"""Recursive descent from tokens to one exact number."""

from __future__ import annotations

import re
from fractions import Fraction

from trainer.grading import number
from trainer.grading.number import NotExact, Number

MAX_DEPTH = 32  # brackets and macros within each other, far below Python's recursion limit
MAX_DIGITS = 200  # of one literal; int() is quadratic in them
MAX_PI_POWER = 99

_LITERAL = re.compile(r"[0-9]*\.?[0-9]+")
_TERM_ENDS = {"", "+", "-", ")", "}"}


def read_number(tokens: list[str], depth: int = 0) -> Number:
    """Read all of `tokens` as one number; NotExact when they are anything else.

    `depth` counts the brackets that the caller has already opened.
    """
    reader = _Reader(tokens, depth)
    value = reader.total()
    if reader.peek():
        raise NotExact
    return value


class _Reader:
    """Recursive descent over one number; raises NotExact at the first token that does not fit."""

    def __init__(self, tokens: list[str], depth: int) -> None:
        self.tokens = list(tokens)  # consumed from `at` on; `\frac12` splits a token in place
        self.at = 0
        self.depth = depth

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def total(self) -> Number:
        value = self.signed_term()
        while self.peek() in ("+", "-"):
            value = number.add(value, self.signed_term())
        return value

    def signed_term(self) -> Number:
        sign = self.take() if self.peek() in ("+", "-") else "+"
        value = self.term()
        return number.negate(value) if sign == "-" else value

    def term(self) -> Number:
        value = self.mixed() if self.peek().isdecimal() else self.factor()
        while self.peek() not in _TERM_ENDS:
            if self.peek() == "/":
                self.take()
                value = number.divide(value, self.factor())
                if self.peek() not in _TERM_ENDS:
                    raise NotExact  # 1/2√3 could be either
            else:
                if self.peek() == "*":
                    self.take()
                value = number.multiply(value, self.factor())
        return value

    def mixed(self) -> Number:
        r"""`1\frac{2}{3}` and `1 2/3` are sums; any other integer is a factor."""
        whole = self.factor()
        if self.peek() == " ":
            self.take()
            part = self.factor()
            if self.take() != "/":
                raise NotExact
            part = number.divide(part, self.factor())
        elif self.peek() == r"\frac":
            part = self.factor()
            if part.keys() != {number.ONE}:
                return number.multiply(whole, part)
        else:
            return whole
        fraction = number.as_rational(part)
        if not 0 < fraction < 1:
            raise NotExact
        return number.rational(number.as_rational(whole) + fraction)

    def factor(self) -> Number:
        if self.depth >= MAX_DEPTH:
            raise NotExact
        self.depth += 1  # not restored by a refusal: that ends the reading
        value = self.bare_factor()
        self.depth -= 1
        return value

    def bare_factor(self) -> Number:
        token = self.take()
        if _LITERAL.fullmatch(token):
            return _literal(token)
        if token == r"\frac":
            return number.divide(self.argument(), self.argument())
        if token == r"\sqrt":
            return number.root(number.as_rational(self.argument()))
        if token == r"\pi":
            return {(1, self.pi_power(), 0): Fraction(1)}
        if token == "i":
            return {(1, 0, 1): Fraction(1)}
        if token in ("(", "{"):
            value = self.total()
            if (token, self.take()) in (("(", ")"), ("{", "}")):
                return value
        raise NotExact

    def pi_power(self) -> int:
        if self.peek() != "^":
            return 1
        self.take()
        power = number.as_rational(self.argument())
        if power.denominator != 1 or not 0 < power <= MAX_PI_POWER:
            raise NotExact
        return int(power)

    def argument(self) -> Number:
        r"""A macro's argument as TeX takes it: a group, a macro, or one digit (`\frac12`)."""
        if self.peek() == " ":
            self.take()
        token = self.peek()
        if token.isdecimal() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return _literal(token[0])
        return self.factor()


def _literal(token: str) -> Number:
    if len(token) > MAX_DIGITS:
        raise NotExact
    return number.rational(Fraction(token))
