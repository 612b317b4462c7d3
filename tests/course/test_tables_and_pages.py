"""What teachers open: tables in any spreadsheet, and pages in a browser, with whatever students wrote in them."""

import csv
import io
import random
import re
from html.parser import HTMLParser

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from tinybitvit.course import gradebook

ROWS = [
    {
        "student": "ann",
        "question": "q",
        "answer": "=1+1",
        "max_points": 4,
        "points": "2,5",
        "comment": 'a "b";\nc, d\te é',
    },
    {"student": "bob", "question": "q", "answer": "", "max_points": 4, "points": "", "comment": ""},
    {"student": "éva", "question": "q", "answer": "x", "max_points": 4, "points": "4", "comment": "'Tis good – 'fine'"},
]


def table(encoding, delimiter, newline):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter, lineterminator=newline)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode(encoding)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_table_comes_back_from_any_spreadsheet(encoding, delimiter, newline, tmp_path):
    path = tmp_path / "answers.csv"
    path.write_bytes(table(encoding, delimiter, newline))
    assert [{name: row[name] for name in gradebook.NEEDED} for row in gradebook.read_table(path)] == [
        {name: row[name] for name in gradebook.NEEDED} for row in ROWS
    ]


def test_odd_tables(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_bytes(b"sep=;\r\n Student ;Question;Points;Comment\r\nann;q;3\r\n\r\n;;;\r\n")
    assert gradebook.read_table(path) == [{"student": "ann", "question": "q", "points": "3", "comment": ""}]
    for data in (b"", b"a,b\n1,2\n", b"\x00\x01", b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="lacks the columns student, question, points, comment"):
            gradebook.read_table(path)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n=", " =", "'=", "''+", "\t\r@"])
def test_no_cell_is_a_formula(start, tmp_path):
    """Wherever a spreadsheet with another separator would cut the cell; and what was written comes back."""
    command = f"{start}cmd|' /C calc'!A0"
    for text in (command, f"well;{command}", f"well\t{command}", f"well\n{command}"):
        gradebook._write_csv(tmp_path / "t.csv", gradebook.NEEDED, [dict.fromkeys(gradebook.NEEDED, text)])
        written = io.StringIO((tmp_path / "t.csv").read_bytes().decode("utf-8-sig"), newline="")
        _, cells = csv.reader(written)
        assert not any(re.match(r"\s*[=+@-]", piece) for cell in cells for piece in re.split(r"[;\t\r\n]", cell))
        assert gradebook.read_table(tmp_path / "t.csv") == [dict.fromkeys(gradebook.NEEDED, text)]


def test_any_text_comes_back(tmp_path):
    draw = random.Random(0)
    for _ in range(300):
        texts = ["".join(draw.choices("=+-@'\t\r\n ;,\"aé1", k=draw.randint(1, 9))) + "." for _ in gradebook.NEEDED]
        row = dict(zip(gradebook.NEEDED, texts, strict=True))
        gradebook._write_csv(tmp_path / "t.csv", gradebook.NEEDED, [row])
        assert gradebook.read_table(tmp_path / "t.csv") == [row]


# --- feedback ---------------------------------------------------------------------------------------------------------

HOSTILE = """
<script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)></svg><iframe src="http://x.example"></iframe>
<a href="javascript:alert(1)">a</a> [b](javascript:alert(1)) [c](java&#115;cript:alert(1))
<a href=" data:text/html,x">d</a><base href="http://x.example"><style>@import "//x.example";</style>
<meta http-equiv="refresh" content="0;url=http://x.example"><object data="x"></object><link rel=stylesheet href=x>
<form action="http://x.example"><input autofocus onfocus=alert(1)></form>
<div style="background:url(http://x.example)" onclick="alert(1)">e</div><img src="http://x.example/spy.png">

**bold**, `a < b`, $x < y$ and a [link](https://example.org)

| table | of |
|---|---|
| two | rows |
"""
GOOD_TAGS = "a b br code div em h1 h2 h3 h4 hr img li ol p pre span strong table tbody td th thead tr ul"


class Student(HTMLParser):
    """What a browser would find on the page."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def check_inert(text):
    page = Student()
    page.feed(text)
    for tag, attributes in page.tags:
        assert tag in GOOD_TAGS.split(), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc", "width")], (
            attributes
        )
        assert re.match(r"https://|#|$", attributes.get("href", "")), attributes
        assert re.match(r"data:image/(png|jpeg);base64,|$", attributes.get("src", "")), attributes


def page_of(book, tmp_path):
    """The page that GenerateFeedback makes of a notebook."""
    pytest.importorskip("nbgrader")
    from nbconvert.exporters import HTMLExporter
    from nbgrader.converters import GenerateFeedback
    from traitlets.config import Config

    from tinybitvit.course.grading import configure
    from tinybitvit.course.preprocessors import MakeInert

    config = Config()
    configure(config, tmp_path)
    converter = GenerateFeedback(config=config)
    exporter = HTMLExporter(config=converter.config)
    exporter._preprocessors = []
    exporter.register_preprocessor(MakeInert, enabled=True)
    names = {"notebook": "ps1", "score": 1, "max_score": 2, "late_penalty": 0}
    return exporter.from_notebook_node(book, {"nbgrader": names})[0]


def test_nothing_of_a_student_runs_in_the_feedback(tmp_path):
    graded = {"grade_id": "q", "grade": True, "solution": True, "points": 1, "score": 1, "comment": HOSTILE}
    html = {"text/html": HOSTILE, "application/javascript": "alert(1)", "image/svg+xml": "<svg onload='alert(1)'/>"}
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": "<script>alert(1)</script>"}
    cells = [
        new_markdown_cell(HOSTILE, metadata={"nbgrader": graded}),
        new_markdown_cell(HOSTILE, attachments={"x.png": {"image/png": '"><script>alert(1)</script>'}}),
        new_raw_cell(HOSTILE, metadata={"raw_mimetype": "text/html"}),
        new_code_cell(
            f"'''{HOSTILE}'''",
            metadata={"tags": ['"><script>alert(1)</script>'], "alt": '"><script>alert(1)</script>'},
            outputs=[
                new_output("display_data", html, metadata={"text/html": {"isolated": True}}),
                new_output("display_data", picture, metadata={"image/png": {"width": "1 onerror=alert(1)"}}),
                new_output(
                    "display_data", {"text/markdown": HOSTILE, "text/latex": HOSTILE, "text/vnd.mermaid": HOSTILE}
                ),
                new_output("stream", text=HOSTILE),
                new_output("error", ename=HOSTILE, evalue=HOSTILE, traceback=[HOSTILE]),
            ],
        ),
    ]
    text = page_of(new_notebook(cells=cells, metadata={"title": "</title><script>alert(1)</script>"}), tmp_path)
    body = text[text.index("<main>") + 6 : text.rindex("</main>")]
    check_inert(body)
    plain = page_of(new_notebook(), tmp_path)
    for tag in ("<script", "<meta", "<iframe", "<link", "<style"):
        assert text.count(tag) == plain.count(tag), f"{tag} more than on an empty page"
    assert (
        "<strong>bold</strong>" in body and '<a href="https://example.org">link</a>' in body and "<td>two</td>" in body
    )
    assert "a &lt; b" in body and "x &lt; y" in body and 'src="data:image/png;base64,iVBORw0KGgo="' in body
