"""The documentation: every code block and command on a page runs, every link leads somewhere, and the site builds.

The site is built without the network and without running the tutorials, with warnings as errors; what it shows is
compared with the library it documents. Long blocks and commands carry the mark `slow`.
"""

import ast
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser

import numpy as np
import pytest
from pages import ROOT, blocks, commands, excuse, links, pages
from test_structure import RANK

from tinybitvit import ops
from tinybitvit.cli.main import build_parser

DOCS = ROOT / "docs"
PAGES = pages()
COMMANDS = [command for page, text in PAGES.items() for command in commands(page, text)]

# --- code blocks ------------------------------------------------------------------------------------------------------

QUICK = {"docs/architecture.md", "docs/bitnet.md"}  # pages whose blocks take a few seconds; the others are slow
ELSEWHERE = {  # page -> the test that runs its blocks
    "README.md": "test_readme.py",
    "CONTRIBUTING.md": "test_contributing.py, which follows its steps in a copy of the package",
    "docs/attention.md": "test_viz.py, which compares the pictures, too",
    "docs/index.md": "test_readme.py: it shows a part of the README's example",
}


def runnable(page):
    return [code for code in blocks(PAGES[page], "python") if not excuse(code)]


WITH_PYTHON = [
    pytest.param(page, marks=[] if page in QUICK else pytest.mark.slow)
    for page in PAGES
    if page not in ELSEWHERE and runnable(page)
]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run_in_order(page, tmp_path):
    code = "\n".join(runnable(page))
    options = [sys.executable, "-W", "error", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(options, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_are_python(page):
    for code in blocks(PAGES[page], "python"):
        ast.parse(code)


def test_the_start_page_shows_the_example_of_the_readme():
    (here,) = blocks(PAGES["docs/index.md"], "python")
    there = next(code for code in blocks(PAGES["README.md"], "python") if "import tinybitvit" in code)
    assert there.startswith(here.rstrip())


# --- commands ---------------------------------------------------------------------------------------------------------

TOOLS = {  # the programs that are not ours -> where they are run
    ".": "it switches on a virtual environment",
    ".ci/run": "it is what runs the tests",
    "cd": "it changes the folder",
    "cp": "it copies a file",
    "gh": "it needs an account at GitHub",
    "jupyter": "test_tutorials.py runs the notebooks without it",
    "mypy": ".ci/run",
    "pip": ".ci/run installs everything in a fresh environment",
    "pre-commit": "git runs it",
    "pytest": "this is it",
    "ruff": ".ci/run",
    "sphinx-build": "below",
}
SETUP = re.compile(r"(\w+=\S+ )+")
UV = re.compile(r"^uv run (--extra \w+ )?")


def check_python(arguments):
    """What `python ARGUMENTS` names must exist: a file, or a module of this repository or of a dependency."""
    if arguments[0] == "-m":
        return importlib.util.find_spec(arguments[1]) is not None
    return (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.text}")
def test_commands_parse(command):
    program, *arguments = shlex.split(UV.sub("", SETUP.sub("", command.text)))
    if program == "mpiexec":
        program, arguments = "tinybitvit", arguments[arguments.index("tinybitvit") + 1 :]
    if program == "tinybitvit":
        build_parser().parse_args(arguments)
    elif program in ("python", "python3"):
        assert check_python(arguments), command.text
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = set(re.findall(r"[\w]+", ",".join(re.findall(r"\[(.*?)\]", command.text))))
        assert asked <= extras.keys(), asked - extras.keys()
    else:
        assert program in TOOLS, f"{command.page}: nothing tests {command.text!r}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page):
    """`tinybitvit WORD --option` and `python FILE` between backticks."""
    prose = re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.M | re.S)
    parser = build_parser()
    (subcommands,) = (a.choices for a in parser._actions if hasattr(a, "choices") and isinstance(a.choices, dict))
    for code in re.findall(r"`([^`\n]+)`", prose):
        words = code.split()
        if words[0] == "tinybitvit" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in subcommands, code
            known = {option for a in subcommands[words[1]]._actions for option in a.option_strings}
            assert {w.partition("=")[0] for w in words[2:] if w.startswith("--")} <= known, code
        elif words[0] == "python" and len(words) > 1 and not words[1].startswith("-c"):
            assert check_python(words[1:]), code


def runs_of(page):
    """The page's commands that are ours and may run, in order."""
    return [c.text for c in COMMANDS if c.page == page and not c.excuse and c.text.startswith("tinybitvit ")]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runs_of(page) and page != "docs/index.md"])
def test_commands_run(page, tmp_path):
    """One after the other in one folder, in which lie an image.png and a photo.jpg; silent on stderr."""
    from matplotlib.image import imsave

    from tinybitvit.data import load_digits

    imsave(tmp_path / "image.png", load_digits().X_test[0, :, :, 0], cmap="gray")
    imsave(tmp_path / "photo.jpg", np.random.default_rng(0).random((48, 64, 3)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in runs_of(page):
        words = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert (done.returncode, done.stderr) == (0, ""), f"{command}\n{done.stderr}"


def test_the_start_page_has_the_commands_of_the_readme():
    assert set(runs_of("docs/index.md")) <= set(runs_of("README.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links(PAGES[page]):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_readme_lists_the_layers_in_their_order():
    table = PAGES["README.md"].split("| layer |")[1].split("\n\n")[0]
    units = [unit for line in table.splitlines()[2:] for unit in re.findall(r"`(\w+)/?`", line.split("|")[1])]
    assert sorted(units) == sorted(RANK.keys() - {"__main__"})
    assert [RANK[unit] for unit in units] == sorted(RANK[unit] for unit in units)


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    environment = {**os.environ, "TINYBITVIT_DOCS": "quick"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


class Page(HTMLParser):
    """The tags of a page, its ids, and the addresses that a browser would fetch."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.fetched, self.tags = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids.add(attributes.get("id"))
        fetches = ("src", "srcset", "data", "poster") + (("href",) if tag != "a" else ())
        self.fetched += [attributes[name] for name in fetches if attributes.get(name)]


def external(addresses):
    return [address for address in addresses if re.match(r"\s*(\w+:)?//", address)]


def test_the_site_asks_the_network_for_nothing(site):
    for path in site.rglob("*.html"):
        assert not external(Page(path).fetched), path.name
    for path in site.rglob("*.css"):
        found = re.findall(r"""(?:url\(|@import\s+)["']?([^"')]+)""", path.read_text(encoding="utf-8"))
        assert not external(found), path.name


def test_an_address_outside_would_be_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<a href="https://a"><img src="//b"><script src="https://c"></script><link href="https://d">')
    assert external(Page(page).fetched) == ["//b", "https://c", "https://d"]


@pytest.mark.parametrize("name", ops.OPS)
def test_every_operation_has_its_page(site, name):
    text = re.sub(r"<[^>]+>", "", (site / "ops" / f"{name}.html").read_text(encoding="utf-8"))
    function = ops.OPS[name].__name__
    titles = ("Formula", "Derivation", "Code", "Test cases")
    formula, derivation, code, tests = (text.index(f"\n{title}#") for title in titles)
    assert formula < derivation < code < tests
    assert f"class {function}(" in text[code:tests] and "def backward" in text[code:tests]
    assert re.search(r"\bcases\(", text[tests:]), "no test case"


def test_every_public_name_is_in_the_reference(site):
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        from generate import members, public_names
    finally:
        sys.path.pop(0)
    modules, names = public_names()
    assert len(modules) > 10 and {"ViT", "Tensor", "no_grad"} <= set(names)
    wanted = {"tinybitvit": names}
    wanted |= {f"tinybitvit.{m}": members(importlib.import_module(f"tinybitvit.{m}")) for m in modules}
    for module, its in wanted.items():
        page = Page(site / "api" / f"{module}.html")
        own = {name for name in its if (site / "api" / f"{module}.{name}.html").exists()}  # modules in their turn
        assert {f"{module}.{name}" for name in set(its) - own} <= page.ids


def test_the_reference_has_a_line_for_every_public_name():
    """As `docs/make_reference.py` writes it now."""
    script = runpy.run_path(str(DOCS / "make_reference.py"))
    assert script["text"]() == (DOCS / "reference.md").read_text(encoding="utf-8"), "run python docs/make_reference.py"
    lines = [line for line in script["text"]().splitlines() if line.startswith("| `")]
    assert len(lines) > 200 and not [line for line in lines if line.endswith("|  |")]


def test_every_page_and_notebook_is_on_the_site(site):
    notebooks = {f"tutorials/{path.stem}.html" for path in (ROOT / "tutorials").glob("[0-9]*.ipynb")}
    written = {page.removeprefix("docs/").removesuffix(".md") + ".html" for page in PAGES if page.startswith("docs/")}
    assert not {name for name in written | notebooks if not (site / name).exists()}


def test_formulas_are_drawn_without_a_script(site):
    page = Page(site / "bitnet.html")
    assert page.tags.count("math") > 10 and not any("mathjax" in address.lower() for address in page.fetched)


def test_the_live_page_is_there(site):
    for name in ("index", "browser"):
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        frames = re.findall(r'<iframe class="live" src="(_static/[\w-]+\.html)"', text)
        assert frames[0] == "_static/digits.html" and len(frames) == len(set(frames))
        for frame in frames:
            page = (site / frame).read_text(encoding="utf-8")
            assert "Content-Security-Policy" in page and len(page) < 3_000_000


@pytest.mark.browser
def test_the_home_of_a_phone_shows_drawing_and_answers(site):
    """Without scrolling, in a frame as high as its page."""
    from chromium import Chromium

    inside = "document.querySelector('iframe.live').getBoundingClientRect()"
    with Chromium() as browser:
        browser.open(site / "index.html", width=390, height=844)
        browser.evaluate("new Promise((resolve) => setTimeout(resolve, 1500))")
        top, height, left, right = browser.evaluate(
            f"(({{ top, height, left, right }}) => [top, height, left, right])({inside})"
        )
        assert top < 250 and left >= 0 and right <= 390  # tests/web/test_zoo_page.py: 590 pixels below are the answers
        assert 700 < height < 1700  # what the page in it told


@pytest.mark.browser
def test_pages_in_a_browser(site):
    """On a computer and on a phone, light and dark: nothing is fetched from outside, nothing is too wide, no error."""
    from chromium import Chromium

    with Chromium() as browser:
        for name in ("index", "bitnet", "browser", "ops/cross_entropy", "api/tinybitvit"):
            for width, dark in ((1300, False), (390, True)):
                browser.open(site / f"{name}.html", width=width, dark=dark)
                assert not browser.errors, (name, browser.errors)
                assert not [address for address in browser.requests if not address.startswith(("file:", "data:"))]
                assert browser.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        browser.open(site / "bitnet.html")
        assert browser.evaluate("document.querySelector('.equation math').getBoundingClientRect().height") > 20


# --- how docstrings become pages --------------------------------------------------------------------------------------


@pytest.fixture
def extensions(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("|x| and y_i * 2, |z|", [r"\ \|x\| and y\_i \* 2, \|z\|", ""]),
        ("See `softmax`, ``axis``.", ["\\ See \\ ``softmax``\\ , \\ ``axis``\\ .", ""]),
        ("- one\n  more\n- two", ["- \\ one more", "- \\ two", ""]),
        ("A table:\n\n    a  1\n    b  2", ["\\ A table:", "", "::", "", "        a  1", "        b  2", ""]),
        (
            "Parameters\n----------\nbits : 1 or 2.\nlr, seed : of the run,\n    both.",
            [
                ".. rubric:: Parameters",
                "",
                "``bits``",
                r"    \ 1 or 2.",
                "",
                "``lr, seed``",
                r"    \ of the run, both.",
                "",
            ],
        ),
    ],
)
def test_docstrings_are_text(extensions, text, expected):
    from plain_docstrings import to_rst

    assert to_rst(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y_i = e^(x_i - max x)", r"y_{i} = {e}^{x_{i} - \max\, x}"),
        ("a / (b + 1) per row", r"\frac{a}{b + 1} per row"),
        ("x (1 + z) / 2", r"\frac{x\,\left( 1 + z \right)}{2}"),
        ("e^a / sum_j e^b", r"\frac{{e}^{a}}{\sum_{j}\, {e}^{b}}"),
        ("dL/dx_ij < g^T x^2", r"\frac{\mathrm{d}L}{\mathrm{d}x_{ij}} < {g}^{T}\,{x}^{2}"),
        ("e^-|x| <= 1", r"{e}^{-\left| x \right|} \leq 1"),
        ("s = sqrt(mean(x^2) + eps)", r"s = \sqrt{\mathrm{mean} \left( {x}^{2} \right) + \varepsilon}"),
        ("a border of a constant value", "a border of a constant value"),
    ],
)
def test_formulas_are_read(extensions, monkeypatch, text, expected):
    """What TeX a formula becomes; a line may end before a relation, and words stay words."""
    import typeset

    monkeypatch.setattr(typeset.latex2mathml, "tex2mathml", lambda tex, as_block: tex)
    assert typeset.typeset(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`a_b` and pad_width", "<code>a_b</code> and pad_width"),
        ("in 2016 (arXiv 1607)", "in 2016 (arXiv 1607)"),
    ],
)
def test_formulas_are_set(extensions, text, expected):
    from typeset import typeset

    assert typeset(text) == expected
