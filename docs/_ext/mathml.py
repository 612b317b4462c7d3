"""Formulas as MathML, which browsers draw themselves: no MathJax, no fonts, no network.

The conversion from TeX is that of docutils, which Sphinx is built on.
"""

import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)

# TeX that MathJax in a notebook knows and docutils does not -> the same in other words
OTHER_WORDS = {
    r"\\dots(?![a-z])": r"\\ldots",
    r"\\([Bb]igg?)(?![A-Za-z])": r"\\\1l",
    r"\\frac(\d)(\d)": r"\\frac{\1}{\2}",
}


def to_mathml(node, as_block=False):
    code = node.astext().strip()
    for found, written in OTHER_WORDS.items():
        code = re.sub(found, written, code)
    try:
        return latex2mathml.tex2mathml(code, as_block=as_block)
    except MathError as error:
        logger.warning("the formula %r has no MathML: %s", code, error, location=node)
        return ""


def visit_math(self, node):
    self.body.append(to_mathml(node))
    raise nodes.SkipNode


def visit_displaymath(self, node):
    self.body.append(f'<div class="equation">{to_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
