"""The library's docstrings are plain text, written for `help()` and for the editor; here they become reStructuredText.

What is marked up: `code` in backticks; lists with dashes; "Parameters" and other underlined headings with their
`name : meaning` items; indented blocks, columns set with spaces, and tables, which stay as they are typed. All other
characters mean themselves: |x|, y_i and dL/dw are formulas, not markup.
"""

import re

CODE = re.compile(r"``([^`]+)``|`([^`]+)`")
ITEM = re.compile(r"(?P<term>[\w, ]+?) : ")


def escape(text):
    """Text as one paragraph's reStructuredText; only `code` keeps its meaning."""
    parts, end = [], 0
    for match in CODE.finditer(text):
        parts += [re.sub(r"([\\*`|_<])", r"\\\1", text[end : match.start()]), rf"\ ``{match[1] or match[2]}``\ "]
        end = match.end()
    parts.append(re.sub(r"([\\*`|_<])", r"\\\1", text[end:]))
    return r"\ " + "".join(parts)  # an escaped space is nothing, but keeps a first "-" or "1." from starting a list


def is_drawn(lines):
    """Whether a paragraph's lines must stay as they are: indented, a table, or columns."""
    columns = sum(bool(re.search(r"\S {2,}\S", line)) for line in lines)
    table = len(lines) > 1 and all(line[0] == line[-1] == "|" for line in lines)
    return table or columns > 1 or all(line.startswith("  ") for line in lines)


def definitions(lines):
    """A list of terms from the lines `name : meaning`, each of which may go on over several lines."""
    items = []
    for line in lines:
        if match := ITEM.match(line):
            items.append([match["term"], line[match.end() :].strip()])
        elif items:
            items[-1][1] += " " + line.strip()
        else:
            return [escape(" ".join(lines)), ""]
    return [text for term, meaning in items for text in (f"``{term}``", f"    {escape(meaning)}", "")]


def to_rst(text):
    """The lines of a docstring as the lines of reStructuredText."""
    result, section = [], False
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.split("\n")
        if len(lines) > 1 and re.fullmatch(r"-{3,}", lines[1]):
            result += [f".. rubric:: {lines[0]}", ""]
            lines, section = lines[2:], True
        if section:
            result += definitions(lines)
        elif is_drawn(lines):
            result += ["::", "", *("    " + line for line in lines), ""]
        elif lines[0].startswith("- "):
            items = re.split(r"\n(?=- )", paragraph)
            result += [*("- " + escape(" ".join(item[2:].split())) for item in items), ""]
        else:
            result += [escape(" ".join(line.strip() for line in lines)), ""]
    return result


def process(app, what, name, obj, options, lines):
    lines[:] = to_rst("\n".join(lines))


def setup(app):
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
