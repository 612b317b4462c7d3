"""How far it is from `tb.ViT.fit` to the first layer, and how many files a reader of that path meets."""

import sys
from pathlib import Path

import pytest

import tinybitvit as tb
from tinybitvit.models import VisionTransformer

PACKAGE = Path(tb.__file__).parent
MOST_CALLS, MOST_FILES = 8, 34


@pytest.fixture(scope="module")
def seen():
    """The functions between `fit` and the first `VisionTransformer.forward`, and the files with a function that ran.

    Of a fit in silence on one thread, the second one: what runs only once, such as imports, is no part of the path.
    """
    data, calls, files = tb.data.load_digits(), [], set()
    model = tb.ViT(epochs=1, random_state=0, workers=1, device="cpu", verbose=0)
    model.fit(data.X_train[:128], data.y_train[:128])

    def look(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event != "call" or PACKAGE not in path.parents or frame.f_code.co_name == "<module>":
            return
        files.add(path.relative_to(PACKAGE).as_posix())
        if not calls and frame.f_code is VisionTransformer.forward.__code__:
            while frame.f_code.co_name != "fit":
                calls.append(frame.f_code.co_name)
                frame = frame.f_back

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        model.fit(data.X_train[:128], data.y_train[:128])
    finally:
        sys.setprofile(before)
    return calls[::-1], sorted(files)


def test_few_calls_lie_between_fit_and_the_first_forward(seen):
    calls, _ = seen
    assert calls[:2] + calls[-2:] == ["_train", "train", "__call__", "forward"] and len(calls) <= MOST_CALLS, calls


def test_few_files_run_in_a_fit(seen):
    _, files = seen
    assert {"train/loop.py", "train/step.py", "train/shards.py", "models/vit.py", "optim.py"} <= set(files)
    assert len(files) <= MOST_FILES, files
