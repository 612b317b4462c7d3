"""The shape of the tree: who may import whom, how long a file or a function may be, what `import tinybitvit` costs.

Every rule is a function from the package's folder to a list of faults, "file:line: what is wrong". The real package
must have none; a small package made in a temporary folder, with one fault planted in it, must have exactly that one.
"""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tinybitvit"


def layers_of_the_page():
    """The rows of the table of layers in docs/architecture.md, from the arrays up to the programs.

    A file imports only what stands in a row before its own; names in one row are siblings that do not know each other.
    """
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("| layer |")[1].split("\n\n")[0]
    return [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]


LAYERS = layers_of_the_page()
RANK = {unit: height for height, units in enumerate([*LAYERS, ["__main__"]]) for unit in units}
PROGRAMS = {"__main__", "cli", "course", "study"}  # may use the package as any user does: `import tinybitvit as tb`

# Module -> {where it may be imported (a unit, or a pattern of paths): why}. {} is nowhere.
ALLOWED = {
    "numpy": {
        "backend": "it is where the array module is chosen",
        "files": "what lies in a file lies on the host",
        "models/pretrained.py": "reads other programs' files",
        "models/positions.py": "resizes position embeddings on the host",
        "data": "reads files and augments images on the host, before anything is a Tensor",
        "train": "cuts host arrays into batches and shards",
        "estimator": "scikit-learn's arrays come in and go out",
        "viz": "matplotlib draws host arrays",
        "io": "files hold host arrays",
        "web": "a page holds host arrays",
        "study": "tables and confusion matrices",
        "course": "grades host arrays",
        "cli": "doctor reports NumPy's version and BLAS",
    },
    "cupy": {"backend": "it is where the array module is chosen", "gpu": "asks what is wrong with it"},
    "cupyx": {"backend": "CuPy's copy of scipy.special"},
    "matplotlib": {"viz": "the one place that draws"},
    "onnx": {"io/onnx*.py": "writes ONNX files"},
    "onnxruntime": {"io/onnx_session.py": "runs a network"},
    "torch": {},
    "torchvision": {},
    "transformers": {},
    "timm": {},
    "jax": {},
    "tensorflow": {},
    "pickle": {},  # files are safetensors: reading one must not be able to run code
    "joblib": {
        "study": "trains several models at the same time",
        "course": "grades several submissions at the same time",
    },
}

MAX_ENTRIES = 25  # what `ls` shows of the package: its architecture
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 45
MAX_FILE_BYTES = 1_000_000
TEXT = {".py", ".pyi", ".ipynb", ".md", ".rst", ".html", ".js", ".css", ".svg", ".cu", ".json", ".toml", ".csv", ".txt"}
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|tmp|Users)/")


def sources(package):
    """(path below the package, path, syntax tree) of every Python file."""
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def unit_of(name):
    """The word of the layer list to which a path below the package belongs."""
    return name.partition("/")[0].removesuffix(".py")


def named_in_call(node):
    """The module that import_module("a.b"), __import__("a.b") or lazy_loader's lazy.load("a.b") imports, or None."""
    called = ast.unparse(node.func)
    if called not in ("__import__", "import_module", "importlib.import_module", "lazy.load", "lazy_loader.load"):
        return None
    return node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None


def imports(name, tree, package):
    """(line, full dotted name) of every import, at any depth; `from a import b` counts as a.b."""
    folder = [package.name, *name.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and (module := named_in_call(node)):
            yield node.lineno, module


def upward_imports(package):
    faults = []
    for name, _, tree in sources(package):
        unit = unit_of(name)
        if unit == "__init__":
            continue  # the list of public names stands above all
        if unit not in RANK:
            faults.append(f"{name}:1: {unit} has no place in the layer list")
            continue
        for line, module in imports(name, tree, package):
            root, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if root != package.name or target == unit:
                continue
            if target in RANK:
                if RANK[target] >= RANK[unit]:
                    faults.append(f"{name}:{line}: {unit} may not import {target}: imports only point down")
            elif unit not in PROGRAMS and target != "__version__":
                faults.append(f"{name}:{line}: {unit} imports {module} from the top of the package")
    return faults


def forbidden_imports(package):
    faults = []
    for name, _, tree in sources(package):
        for line, module in imports(name, tree, package):
            top = module.partition(".")[0]
            places = ALLOWED.get(top)
            if places is not None and not any(unit_of(name) == place or fnmatch(name, place) for place in places):
                faults.append(f"{name}:{line}: {top} may be imported only in: {', '.join(places) or 'no file'}")
    return faults


def disguised_numpy(package):
    """`from backend import host as np` would make NumPy of one name and let any layer have it: say `backend.host`."""
    return [
        f"{name}:{node.lineno}: backend.host under another name"
        for name, _, tree in sources(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "host" for alias in node.names)
    ]


def imported_files(package):
    """Path below the package -> the paths of the files that it imports, at any depth."""
    names = [name for name, *_ in sources(package)]
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in names}
    found = {}
    for name, _, tree in sources(package):
        targets = (module.removeprefix(f"{package.name}.") for _, module in imports(name, tree, package))
        files = (modules.get(target) or modules.get(target.rpartition(".")[0]) for target in targets)
        found[name] = {file for file in files if file not in (None, name)}
    return found


def circles(package):
    """Files that import each other, directly or through others: none can be read, or tested, without the rest."""
    graph = imported_files(package)
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    while outer := graph.keys() - {target for targets in graph.values() for target in targets}:
        graph = {name: targets for name, targets in graph.items() if name not in outer}
    return [f"{name}:1: imports and is imported by {', '.join(sorted(graph))}" for name in sorted(graph)[-1:]]


def stray_files(package):
    """A file at the top that a single other part imports belongs into that part."""
    users = {name: set() for name, *_ in sources(package) if "/" not in name and not name.startswith("__")}
    for name, targets in imported_files(package).items():
        for target in targets & users.keys():
            users[target].add(unit_of(name))
    return [f"{name}:1: only {units.pop()} imports it" for name, units in users.items() if len(units) == 1]


def crowded(package):
    entries = [path.name for path in package.iterdir() if path.name != "__pycache__"]
    return [] if len(entries) <= MAX_ENTRIES else [f"{len(entries)} entries, at most {MAX_ENTRIES}"]


def at_import(tree):
    """The nodes that run when the module is imported: all but function bodies and `if __name__ == "__main__"`."""
    stack = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            continue
        yield node
        stack.extend(ast.iter_child_nodes(node))


def prints_at_import(package):
    return [
        f"{name}:{node.lineno}: prints when it is imported"
        for name, _, tree in sources(package)
        for node in at_import(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    ]


def long_files(package):
    counts = [(name, len(path.read_text(encoding="utf-8").splitlines())) for name, path, _ in sources(package)]
    return [f"{name}:{n}: {n} lines, at most {MAX_FILE_LINES}" for name, n in counts if n > MAX_FILE_LINES]


def code_lines(function, lines):
    """Lines of a function's body, without blank ones and the docstring.

    The signature does not count: one parameter a line is the formatter's doing, and scikit-learn asks for many.
    """
    body = function.body if ast.get_docstring(function) is None else function.body[1:]
    return sum(bool(lines[n - 1].strip()) for n in range(body[0].lineno, function.end_lineno + 1)) if body else 0


def long_functions(package):
    faults = []
    for name, path, tree in sources(package):
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                n = code_lines(node, lines)
                if n > MAX_FUNCTION_LINES:
                    faults.append(
                        f"{name}:{node.lineno}: {node.name} has {n} lines of code, at most {MAX_FUNCTION_LINES}"
                    )
    return faults


def published_files(folder):
    """Files that could be committed: nothing below a cache, a hidden or a build folder."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not re.search(r"(^|/)(\.|_build/|__pycache__/)", name):
            yield name, path


def machine_paths(folder):
    return [
        f"{name}:{number}: a path of somebody's machine"
        for name, path in published_files(folder)
        if path.suffix in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]


def large_files(folder):
    return [
        f"{name}:1: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES}"
        for name, path in published_files(folder)
        if path.stat().st_size > MAX_FILE_BYTES
    ]


PACKAGE_RULES = [
    upward_imports,
    forbidden_imports,
    disguised_numpy,
    circles,
    stray_files,
    crowded,
    prints_at_import,
    long_files,
    long_functions,
]
FILE_RULES = [machine_paths, large_files]


@pytest.mark.parametrize("rule", [*PACKAGE_RULES, *FILE_RULES])
def test_package(rule):
    assert any(sources(PACKAGE))
    assert not rule(PACKAGE), "\n".join(rule(PACKAGE))


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "tutorials"])
def test_no_machine_paths_elsewhere(folder):
    assert not machine_paths(ROOT / folder), "\n".join(machine_paths(ROOT / folder))


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "tests", "tutorials"])
def test_no_large_files_elsewhere(folder):
    assert not large_files(ROOT / folder), "\n".join(large_files(ROOT / folder))


# What the rules let pass: each line is the near miss of a fault below.
GOOD = {
    "__init__.py": "from tinybitvit.estimator import ViT\nfrom .ops import OPS\n__version__ = '0'\n",
    "__main__.py": "from tinybitvit.cli import main\nif __name__ == '__main__':\n    print(main())\n",
    "backend.py": "import numpy as np\ndef gpu():\n    import cupy\n    from cupyx.scipy import special\n",
    "ops/__init__.py": "from . import base\nfrom .base import Function\nfrom tinybitvit.backend import array_module\n",
    "ops/base.py": "from .. import backend\nfrom ..backend import device_of\nimport numpydoc\n",
    "nn/layers.py": "from tinybitvit import functional as F\nimport tinybitvit.ops.base\nfrom .module import Module\n",
    "nn/module.py": "def show():\n    'torch, numpy: only words'\n    print('called, not imported')\n",
    "train/loop.py": "import numpy\nfrom ..models import vit\nfrom .. import __version__\n",
    "viz/maps.py": "from matplotlib import pyplot\nlazy.load('matplotlib.pyplot')\n",
    "io/onnx_export.py": "import onnx\nload('torch')\n",
    "cli/main.py": "import tinybitvit as tb\nfrom tinybitvit import ViT, study\n",
    "models/users.py": "from .. import backend, functional\n",
    "course/users.py": "from ..gradcheck import check_op\n",
    "models/long.py": "#\n" * MAX_FILE_LINES,
    "functional.py": "from .ops import OPS\n",
    "optim.py": f"def f(\n    a,\n    b,\n):\n    '''{'text' + chr(10) * 60}'''\n"
    + "    x = 1\n\n" * MAX_FUNCTION_LINES,
    "study/words.py": "def only_words():\n    '''No body but this.'''\n",
    "viz/page.html": "<a href='https://example.org/home/'>~/tmp/ home/ $HOME/tmp/x ./tmp/</a>\n",
    "viz/picture.png": " " * MAX_FILE_BYTES,
}


def make_package(tmp_path, files):
    package = tmp_path / "tinybitvit"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize("rule", [*PACKAGE_RULES, *FILE_RULES])
def test_rules_accept_a_good_package(rule, tmp_path):
    assert rule(make_package(tmp_path, GOOD)) == []


PLANTED = [
    (upward_imports, "ops/bad.py", "from tinybitvit.tensor import Tensor", "ops may not import tensor"),
    (upward_imports, "ops/bad.py", "from ..tensor import Tensor", "ops may not import tensor"),
    (upward_imports, "ops/bad.py", "from .. import tensor", "ops may not import tensor"),
    (upward_imports, "ops/__init__.py", "from ..nn import layers", "ops may not import nn"),
    (upward_imports, "autograd.py", "import tinybitvit.functional", "autograd may not import functional"),
    (upward_imports, "functional.py", "from . import nn", "functional may not import nn"),
    (upward_imports, "nn/bad.py", "def f():\n    from tinybitvit import quant", "nn may not import quant"),
    (
        upward_imports,
        "nn/bad.py",
        "import importlib\nimportlib.import_module('tinybitvit.quant')",
        "may not import quant",
    ),
    (upward_imports, "models/bad.py", "from ..optim import AdamW", "models may not import optim"),
    (upward_imports, "viz/bad.py", "from tinybitvit import io", "viz may not import io"),
    (upward_imports, "gradcheck.py", "from tinybitvit.nn import Module", "gradcheck may not import nn"),
    (upward_imports, "study.py", "from tinybitvit.cli import main", "study may not import cli"),
    (upward_imports, "train/bad.py", "import tinybitvit", "from the top of the package"),
    (upward_imports, "train/bad.py", "from tinybitvit import ViT", "from the top of the package"),
    (upward_imports, "helpers.py", "", "helpers has no place"),
    (forbidden_imports, "ops/bad.py", "import numpy as np", "numpy may be imported only in"),
    (forbidden_imports, "nn/bad.py", "from numpy import random", "numpy may be imported only in"),
    (forbidden_imports, "quant/bad.py", "def f():\n    import cupy", "cupy may be imported only in: backend, gpu"),
    (forbidden_imports, "quant/bad.py", "x = __import__('numpy')", "numpy may be imported only in"),
    (forbidden_imports, "tensor.py", "import numpy.random", "numpy may be imported only in"),
    (forbidden_imports, "train/bad.py", "import cupy", "cupy may be imported only in: backend, gpu"),
    (forbidden_imports, "study.py", "import matplotlib.pyplot as plt", "matplotlib may be imported only in: viz"),
    (
        forbidden_imports,
        "cli/main.py",
        "plt = lazy.load('matplotlib.pyplot')",
        "matplotlib may be imported only in: viz",
    ),
    (forbidden_imports, "viz/bad.py", "def f():\n    from torch import nn", "torch may be imported only in: no file"),
    (forbidden_imports, "models/bad.py", "from transformers import ViTModel", "transformers may be imported only in"),
    (forbidden_imports, "models/bad.py", "import timm", "timm may be imported only in: no file"),
    (forbidden_imports, "backend.py", "import jax.numpy as jnp", "jax may be imported only in: no file"),
    (
        forbidden_imports,
        "io/onnx_export.py",
        "import onnxruntime",
        "onnxruntime may be imported only in: io/onnx_session.py",
    ),
    (forbidden_imports, "io/files.py", "import onnx", "onnx may be imported only in: io/onnx*.py"),
    (forbidden_imports, "data/cifar.py", "import pickle", "pickle may be imported only in: no file"),
    (disguised_numpy, "nn/bad.py", "from ..backend import host as np", "backend.host under another name"),
    (disguised_numpy, "nn/bad.py", "def f():\n    from ..backend import host", "backend.host under another name"),
    (circles, "nn/module.py", "from .layers import Linear", "is imported by nn/layers.py, nn/module.py"),
    (stray_files, "gradcheck.py", "", "only course imports it"),
    (prints_at_import, "nn/bad.py", "print('hello')", "prints when it is imported"),
    (prints_at_import, "nn/bad.py", "class A:\n    if True:\n        print('hello')", "prints when it is imported"),
    (prints_at_import, "nn/bad.py", "import sys\nsys.stderr.write('x')", "prints when it is imported"),
    (long_files, "nn/bad.py", "\n" * (MAX_FILE_LINES + 1), "351 lines"),
    (long_functions, "nn/bad.py", "def f():\n" + "    x = 1\n" * 46, "f has 46 lines of code"),
    (long_functions, "nn/bad.py", "class A:\n  async def g(s):\n" + "    x = 1\n" * 46, "g has 46 lines of code"),
    (machine_paths, "data/bad.py", "ROOT = '/home/ann/data'", "a path of somebody's machine"),
    (machine_paths, "viz/bad.js", "load(`/tmp/x.json`)", "a path of somebody's machine"),
    (machine_paths, "course/bad.ipynb", '"File /root/x.py"', "a path of somebody's machine"),
    (large_files, "course/bad.bin", " " * (MAX_FILE_BYTES + 1), "1000001 bytes"),
]


@pytest.mark.parametrize(("rule", "name", "text", "expected"), PLANTED)
def test_rules_report_a_planted_fault(rule, name, text, expected, tmp_path):
    faults = rule(make_package(tmp_path, {**GOOD, name: text}))
    assert len(faults) == 1 and faults[0].startswith(f"{name}:") and expected in faults[0], faults


def run_python(code, *options):
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def test_import_is_silent():
    done = run_python("import tinybitvit", "-W", "error")
    assert (done.stdout, done.stderr) == ("", "")


def test_import_leaves_heavy_modules_alone():
    loaded = run_python(
        "import sys, tinybitvit; print(*{name.partition('.')[0] for name in sys.modules})"
    ).stdout.split()
    assert "tinybitvit" in loaded
    assert not {"sklearn", "matplotlib", "scipy", "PIL", "onnx", "cupy", "torch"} & set(loaded)


def test_import_costs_little_more_than_numpy():
    """The fastest of five each, in turns: a busy spell of the machine meets both and cannot fail it."""
    code = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    seconds = {"numpy": [], "tinybitvit": []}
    for _ in range(5):
        for module, runs in seconds.items():
            runs.append(float(run_python(code.format(module)).stdout))
    assert min(seconds["tinybitvit"]) - min(seconds["numpy"]) <= 0.150, seconds
