"""Formulas typed as text, as they stand in docstrings, set as formulas: y_i = e^(x_i - max x) becomes MathML.

A paragraph is cut into words and formulas: what is no known name, number or operator is a word. A formula is parsed
into TeX, which docutils turns into MathML; one that cannot be parsed stays text with indices and exponents.
"""

import html
import re

from docutils.utils.math import MathError, latex2mathml

CODE = re.compile(r"`([^`]+)`")
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z]+(?:_\w+)?)|(?P<sign><=|>=|->|\.\.\.|[-+/*=<>^@()|\[\],])"
    r"|(?P<other>.)"
)
FUNCTIONS = {"ln", "log", "max", "min", "tanh", "exp"}  # as TeX has them; before what they are applied to
UPRIGHT = {"mean", "var", "sign", "clip", "round", "softmax", "erf", "sqrt", "sum"}
NAMES = {"pi": r"\pi", "eps": r"\varepsilon", "beta": r"\beta", "mu": r"\mu", "sigma": r"\sigma"}
QUANTITIES = {"low", "high", "top", "bits", "scale", "logits", "ddof", "ph", "pw", "qkv", "dlogits"}
SIGNS = {"<=": r"\leq", ">=": r"\geq", "->": r"\to", "...": r"\ldots", "*": r"\cdot", "@": r"\,@\,"}
RELATIONS = ("=", "<", ">", "<=", ">=", "->")
OPENING, CLOSING = {"(": ")", "[": "]"}, {")", "]"}


def typeset(text):
    """Text with formulas as HTML; `code` in backticks stays code."""
    parts = re.split(CODE, " ".join(text.split()))
    return "".join(f"<code>{html.escape(p)}</code>" if i % 2 else _paragraph(p) for i, p in enumerate(parts))


def _paragraph(text):
    text = re.sub(r"\b(\w+) x \1\b", r"\1 × \1", text)  # n x n is a size, in which x is no name
    tokens = [(m.lastgroup, m[0]) for m in TOKEN.finditer(text)]
    kinds = [_is_math(tokens, i) for i in range(len(tokens))]
    result, start = [], 0
    while start < len(tokens):
        end, opened = start, []
        while end < len(tokens) and (kinds[end] or tokens[end][0] == "space"):
            sign = tokens[end][1]
            if sign in CLOSING and not opened:
                break
            if not opened and end > start and sign in (",", *RELATIONS):
                break  # a line may end before a relation, and a comma between formulas is one of the sentence
            if sign in OPENING:
                opened.append(end)
            elif sign in CLOSING:
                opened.pop()
            end += 1
        end = max(opened[0] if opened else end, start + 1)  # a bracket around words is one of the sentence
        result.append(_piece(tokens[start:end], any(kinds[start:end])))
        start = end
    return "".join(result)


def _is_math(tokens, i):
    """Whether a token belongs to a formula; of words those that are names, in their places."""
    kind, text = tokens[i]
    if kind in ("number", "sign"):
        return True
    if kind != "name":
        return False
    before = next((t for t in reversed(tokens[:i]) if t[0] != "space"), ("sign", "="))
    after = next((t for t in tokens[i + 1 :] if t[0] != "space"), ("other", "."))
    name = text.partition("_")[0]
    plain_word = before[0] == "name" and len(before[1]) > 1 and not _known(before[1])
    if text in ("a", "A", "I"):  # the article, unless an operator or a formula stands beside it
        return not (plain_word or i == 0) or after[0] == "sign"
    if name in FUNCTIONS | UPRIGHT and "_" not in text:
        return not plain_word and (
            after[1] in "(|" or (after[0] == "name" and _known(after[1])) or after[0] == "number"
        )
    return _known(text)


def _known(text):
    name, _, index = text.partition("_")
    if len(index) > 3 or "__" in text:
        return False
    return (
        len(name) == 1
        or name in FUNCTIONS | UPRIGHT | NAMES.keys() | QUANTITIES
        or bool(re.fullmatch("d[A-Za-z]", name))
    )


def _piece(tokens, math):
    """One word, or one formula with the spaces around it."""
    text = "".join(t for _, t in tokens)
    bare = text.strip()
    kinds = {kind for kind, _ in tokens}
    if math and bare and ("name" in kinds or {"number", "sign"} <= kinds):  # a number alone is as good as text
        try:
            tex = Parser([t for t in tokens if t[0] != "space"]).all()
            lead, trail = (" " * (text != text.lstrip())), (" " * (text != text.rstrip()))
            mathml = " ".join(latex2mathml.tex2mathml(tex, as_block=False).split())  # one line, as markup needs it
            return lead + mathml.replace("<math", '<math displaystyle="true"', 1) + trail
        except (ValueError, MathError):
            pass
    return _raised(html.escape(text))


class Parser:
    """TeX of a formula: relations of sums of products, in which a / b is a fraction."""

    def __init__(self, tokens):
        self.tokens, self.place = tokens, 0
        self.in_bars = False

    def all(self):
        tex = self.sum()
        if self.peek() is not None:
            raise ValueError(f"{self.peek()} is left")
        return tex

    def peek(self):
        return self.tokens[self.place][1] if self.place < len(self.tokens) else None

    def take(self):
        if self.peek() is None:
            raise ValueError("the formula ends too soon")
        self.place += 1
        return self.tokens[self.place - 1]

    def sum(self):
        parts = []
        while self.peek() not in (None, ")", "]") and not (self.peek() == "|" and self.in_bars):
            if self.peek() in ("+", "-", "*", "@", ",", "...", *RELATIONS):
                sign = self.take()[1]
                parts.append(SIGNS.get(sign, sign))
            else:
                parts.append(self.product())
        if not parts:
            raise ValueError("nothing between the signs")
        return " ".join(parts)

    def product(self):
        factors = [self.factor()]
        while self.peek() is not None and (self.peek() == "/" or self.starts_a_factor()):
            if self.peek() == "/":
                self.take()
                factors = [rf"\frac{{{bare(factors)}}}{{{bare([self.factor()])}}}"]
            else:
                factors.append(self.factor())
        return r"\,".join(factors)

    def starts_a_factor(self):
        if self.peek() == "|":
            return not self.in_bars
        return self.tokens[self.place][0] in ("name", "number") or self.peek() in ("(", "[")

    def factor(self):
        kind, text = self.take()
        if text in OPENING:
            inside = self.sum()
            if self.take()[1] != OPENING[text]:
                raise ValueError("brackets that do not match")
            base = rf"\left{text} {inside} \right{OPENING[text]}"
        elif text == "|":
            self.in_bars = True
            base = rf"\left| {self.sum()} \right|"
            self.in_bars = False
            if self.take()[1] != "|":
                raise ValueError("bars that do not match")
        elif kind == "name":
            base = self.named(text)
        elif kind == "number":
            base = text
        else:
            raise ValueError(f"{text} begins no factor")
        if self.peek() == "^":
            self.take()
            sign = self.take()[1] if self.peek() == "-" else ""
            exponent = self.factor()
            base = rf"{{{base}}}^{{{sign}{bare([exponent])}}}"
        return base

    def named(self, text):
        name, _, index = text.partition("_")
        below = rf"_{{{index}}}" * bool(index)
        if name == "sqrt":
            return rf"\sqrt{{{bare([self.factor()])}}}"
        if name in ("sum", *FUNCTIONS, *UPRIGHT):
            words = r"\sum" if name == "sum" else rf"\{name}" if name in FUNCTIONS else rf"\mathrm{{{name}}}"
            argument = self.product() if name == "sum" and self.peek() else self.argument()
            space = "" if argument.startswith(r"\left") else r"\,"
            return f"{words}{below}{space} {argument}"
        if re.fullmatch("d[A-Za-z]|dlogits", name):
            return rf"\mathrm{{d}}{self.named(name[1:])}{below}"
        return (NAMES.get(name) or (name if len(name) == 1 else rf"\mathrm{{{name}}}")) + below

    def argument(self):
        """What a function is applied to: brackets, bars, or the next factor."""
        return self.factor() if self.peek() is not None and self.starts_a_factor() else ""


def bare(factors):
    """A product without brackets around all of it, where a fraction's line or a raised place makes them needless."""
    tex = r"\,".join(factors)
    inside = re.fullmatch(r"\\left\( (.*) \\right\)", tex)
    return (
        inside[1]
        if inside and inside[1].count(r"\left(") == inside[1].count(r"\right)") and balanced(inside[1])
        else tex
    )


def balanced(tex):
    depth = 0
    for found in re.findall(r"\\left\(|\\right\)", tex):
        depth += 1 if found == r"\left(" else -1
        if depth < 0:
            return False
    return depth == 0


# --- what stays text --------------------------------------------------------------------------------------------------

INDEX = re.compile(r"(?<![\w.])(d?[A-Za-z]|sum|max|d?logits)_([a-z0-9]{1,2})(?!\w)")
POWER = re.compile(r"\^(-?\w+|-\|x\||\((?:[^()]|\([^()]*\))*\))")


def _raised(text):
    text = INDEX.sub(r"\1<sub>\2</sub>", text)
    return POWER.sub(lambda m: f"<sup>{_raised(m[1].removeprefix('(').removesuffix(')'))}</sup>", text)


def raw(text, css, indent=""):
    """A paragraph of reStructuredText that holds the formula as HTML."""
    return f'.. raw:: html\n\n{indent}   <p class="{css}">{typeset(text)}</p>\n'
