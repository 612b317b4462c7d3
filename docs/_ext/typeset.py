"""Formulas typed as text, as they stand in docstrings, with their indices and exponents set low and high in HTML."""

import html
import re

INDEX = re.compile(r"(?<![\w.])(d?[A-Za-z]|sum|max|d?logits)_([a-z0-9]{1,2})(?!\w)")
POWER = re.compile(r"\^(-?\w+|-\|x\||\((?:[^()]|\([^()]*\))*\))")
CODE = re.compile(r"`([^`]+)`")


def typeset(text):
    """y_i = e^(x_i - max x) as HTML; `code` in backticks stays code."""
    parts = re.split(CODE, " ".join(text.split()))
    return "".join(f"<code>{html.escape(p)}</code>" if i % 2 else _formula(html.escape(p)) for i, p in enumerate(parts))


def _formula(text):
    text = INDEX.sub(r"\1<sub>\2</sub>", text)
    return POWER.sub(lambda m: f"<sup>{_formula(m[1].removeprefix('(').removesuffix(')'))}</sup>", text)


def raw(text, css, indent=""):
    """A paragraph of reStructuredText that holds the formula as HTML."""
    return f'.. raw:: html\n\n{indent}   <p class="{css}">{typeset(text)}</p>\n'
