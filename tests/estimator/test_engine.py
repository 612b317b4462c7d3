"""engine="onnxruntime": the same tb.ViT, answers and refusals, computed elsewhere."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone

import tinybitvit as tb
from tinybitvit.cli import main as cli
from tinybitvit.io import onnx_session

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

DIGITS = tb.data.load_digits()
X, Y = DIGITS.X_train[:80], DIGITS.y_train[:80]
T = DIGITS.X_test[:60]
TINY = {"dim": 16, "depth": 2, "heads": 2, "epochs": 3, "verbose": 0, "random_state": 0, "workers": 1, "device": "cpu"}
ORT = {"engine": "onnxruntime"}


def fit(X=X, y=Y, **options):
    return tb.ViT(**TINY | options).fit(X, y)


@pytest.fixture(scope="module")
def models():
    return {bits: fit(bits=bits) for bits in (32, 1.58, 1)}


def near(model, other, X=T):
    """Logits agree, but for the images in which a code lies at a half."""
    a, b = model.decision_function(X), other.decision_function(X)
    far = np.abs(a - b).reshape(len(X), -1).max(axis=1) > 1e-5
    assert far.mean() <= (0.3 if model.bits != 32 else 0) and np.abs(a - b).max() < 0.05
    assert (model.predict(X) == other.predict(X)).mean() > 0.98
    np.testing.assert_allclose(model.predict_proba(X), other.predict_proba(X), rtol=0, atol=0.02)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bits", [32, 1.58, 1])
def test_a_file_answers_as_with_numpy(tmp_path, models, bits, packed):
    model = models[bits]
    if bits == 32 and packed:
        return
    model.save(tmp_path / "m.safetensors", packed=packed)
    loaded = tb.load(tmp_path / "m.safetensors", **ORT)
    assert loaded.engine_ == "onnxruntime" and tb.load(tmp_path / "m.safetensors").engine_ == "numpy"
    near(loaded, model)
    assert loaded.classes_.tolist() == model.classes_.tolist()
    assert loaded.score(T, loaded.predict(T)) == 1


@pytest.mark.parametrize("bits", [32, 1.58, 1])
def test_packing_with_an_engine(models, bits):
    model = models[bits]
    fast = model.pack(**ORT)
    near(fast, model)
    near(fast.pack(**ORT), model)  # again: there is nothing to pack any more
    assert model.engine_ == "numpy" and fast.model_ is not model.model_
    assert bool(fast.model_.config["layout"]) == (bits != 32)


def test_two_classes_names_and_units():
    named = fit(X[Y < 2].astype("float32") / 255, np.array(["no", "yes"])[Y[Y < 2]], bits=32)
    fast = named.pack(**ORT)
    images = T[:8]
    assert fast.decision_function(images).shape == (8,) and set(fast.predict(images)) <= {"no", "yes"}
    near(fast, named, images)
    near(fast, named, images.astype("float32") / 255)
    for wrong in (images.astype("float32") * 3 - 9, images[:, :4], np.full((2, 8, 8, 1), np.nan)):
        messages = []
        for model in (named, fast):
            with pytest.raises(ValueError) as found:
                model.predict(wrong)
            messages.append(str(found.value))
        assert messages[0] == messages[1]


def test_outputs_that_are_not_finite_are_refused(models):
    fast = models[1.58].pack(**ORT)
    fast.model_.head.weight.data[...] = 3e38
    with pytest.raises(ValueError, match="the output for image 0 is not finite"):
        fast.predict(T)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_give_the_same_answers(models, workers):
    fast = models[1.58].pack(**ORT)
    expected = fast.decision_function(T)
    np.testing.assert_array_equal(fast.set_params(workers=workers).decision_function(T), expected)


def test_many_threads_at_once(models):
    fast = models[1].pack(**ORT)
    parts = [T[i : i + 7] for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fast.decision_function, parts))
    for part, answer in zip(parts, found, strict=True):
        np.testing.assert_array_equal(answer, fast.decision_function(part))


def test_copies_and_clones(models, monkeypatch):
    fast = models[1.58].pack(**ORT)
    expected = fast.decision_function(T)
    for other in (copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.engine_ == "onnxruntime"
        np.testing.assert_array_equal(other.decision_function(T), expected)
    again = clone(fast)
    assert again.engine_ == "numpy" and not hasattr(again, "model_")
    made = []
    monkeypatch.setattr("tinybitvit.estimator.answers.onnx_session", lambda network: made.append(network))
    fast.decision_function(T)
    assert not made  # the session is kept from answer to answer


def test_answers_follow_the_network_whatever_changed_it(models):
    """load_state_dict, an update of a Trainer, an array put in place, and another network."""
    fast, other = models[32].pack(**ORT), fit(bits=32, random_state=1)
    slow = copy.deepcopy(models[32])

    def change_all(change):
        for model in (fast, slow):
            change(model)
        near(fast, slow)

    near(fast, slow)
    change_all(lambda m: m.model_.load_state_dict(other.model_.state_dict()))
    near(fast, other)

    def update(model):
        optimizer = tb.optim.AdamW(model.model_.parameters(), lr=0.01)
        tb.train.Trainer(model.model_, optimizer, workers=1).step(model.prepare(X), np.arange(80) % 10)

    change_all(update)
    assert np.abs(fast.decision_function(T) - other.decision_function(T)).max() > 1e-3

    def replace(model):
        model.model_.head.bias.data = np.linspace(-1, 1, 10, dtype="float32")

    change_all(replace)

    def assign(model):
        model.model_ = copy.deepcopy(other.model_)

    change_all(assign)
    near(fast, other)


@pytest.mark.parametrize("bits", [32, 1.58])
def test_training_goes_on_and_answers_follow(tmp_path, models, bits):
    models[bits].save(tmp_path / "m.safetensors")
    loaded, reference = tb.load(tmp_path / "m.safetensors", **ORT), tb.load(tmp_path / "m.safetensors")
    before = loaded.decision_function(T)
    for model in (loaded, reference):
        model.set_params(workers=1)._rng = np.random.default_rng(0)
        model.partial_fit(X, Y)
    for a, b in zip(loaded.model_.parameters(), reference.model_.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)  # NumPy has trained both
    assert loaded.engine_ == "onnxruntime" and np.abs(loaded.decision_function(T) - before).max() > 1e-3
    near(loaded, reference)
    loaded.fit(X, Y)
    near(loaded, reference.fit(X, Y))
    with pytest.raises(RuntimeError, match="a packed model cannot be trained"):
        fast = models[1.58].pack(**ORT)
        fast.partial_fit(X, Y)


def test_an_interrupted_training_leaves_no_old_answers(models, monkeypatch):
    fast = models[32].pack(**ORT)
    before = fast.decision_function(T)

    def stop(run, epochs):
        fast.model_.head.bias.data[...] += 1
        fast.predict(T)
        fast.model_.head.bias.data[...] += 1
        raise KeyboardInterrupt

    monkeypatch.setattr("tinybitvit.estimator.vit.Run.train", stop)
    with pytest.raises(KeyboardInterrupt):
        fast.partial_fit(X, Y)
    np.testing.assert_allclose(fast.decision_function(T), before + 2, atol=1e-5)


def test_rounding_a_model_keeps_its_engine(models):
    rounded = tb.quantize(models[32].pack(**ORT), X, images=20, verbose=0)
    assert rounded.engine_ == "onnxruntime"
    rounded.bits = 1.58
    near(rounded, copy.copy(rounded).pack(engine="numpy"))


def test_attention_uses_numpy(models):
    fast = models[1.58].pack(**ORT)
    slow = models[1.58].pack()
    np.testing.assert_array_equal(tb.viz.attention(fast, T[:3]).logits, tb.viz.attention(slow, T[:3]).logits)


def test_what_is_refused(tmp_path, models, monkeypatch):
    models[1].save(tmp_path / "m.safetensors")
    for call in (lambda: tb.load(tmp_path / "m.safetensors", engine="tpu"), lambda: models[1].pack(engine="tpu")):
        with pytest.raises(ValueError, match="engine must be 'numpy' or 'onnxruntime', not 'tpu'"):
            call()
    with pytest.raises(ValueError, match="has no low-bit layers"):
        models[32].pack()
    monkeypatch.setattr("tinybitvit.backend.resolve_device", lambda device: "cuda")
    with pytest.raises(ValueError, match="computes on the CPU"):
        tb.load(tmp_path / "m.safetensors", device="cuda", **ORT)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (lambda: tb.load(tmp_path / "m.safetensors", **ORT), lambda: models[1].pack(**ORT)):
        with pytest.raises(ImportError, match=r'the package onnxruntime: pip install "tinybitvit\[onnx\]"'):
            call()


def test_command_line(tmp_path, models, capsys, monkeypatch):
    models[1.58].save(tmp_path / "m.safetensors", packed=True)
    Image.fromarray(T[0, :, :, 0] if T.ndim == 4 else T[0]).save(tmp_path / "five.png")
    said = []
    for engine in ((), ("--engine", "numpy"), ("--engine", "onnxruntime")):
        assert cli.main(["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "five.png"), *engine]) == 0
        said.append(capsys.readouterr())
    assert said[0] == said[1] == said[2] and not said[0].err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status = cli.main(
        ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "five.png"), "--engine", "onnxruntime"]
    )
    err = capsys.readouterr().err
    assert status == 1 or status == 2
    assert err.count("\n") == 1 and 'pip install "tinybitvit[onnx]"' in err


def test_a_session_says_nothing_and_keeps_to_its_thread(models, capfd):
    session = onnx_session.onnx_session(models[1.58].model_)
    options = session.get_session_options()
    assert options.intra_op_num_threads == options.inter_op_num_threads == 1
    assert capfd.readouterr() == ("", "")
