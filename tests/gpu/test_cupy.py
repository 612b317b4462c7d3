"""device="cuda" from end to end on the stand-in for CuPy: the bits of the CPU, and no more reads than losses.

Bit for bit is a promise of the stand-in alone; on a real card the tests that are parametrised by device, and
`tinybitvit doctor --device cuda`, compare to a tolerance.
"""

import copy
import itertools

import cuda_harness
import cupy_standin
import numpy as np
import pytest
from cupy_standin import reads
from devices import fetch, send
from op_cases import FUNCTIONS, of_op

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit import nn
from tinybitvit.models import VisionTransformer
from tinybitvit.ops import Context
from tinybitvit.optim import SGD, AdamW, clip_grad_norm
from tinybitvit.quant import BitLinear, PackedLinear
from tinybitvit.train import Recipe, Stage, Trainer
from tinybitvit.viz import attention

needs_compiler = pytest.mark.skipif(bool(cuda_harness.NO_COMPILER), reason=str(cuda_harness.NO_COMPILER))
CONFIG = {"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 12, "depth": 2, "heads": 2, "mlp_ratio": 2}


@pytest.fixture(autouse=True)
def xp():
    with cupy_standin.installed() as module:
        assert tb.backend.cuda_problem() is None  # looks for the device once: what is read later is a test's own
        yield module


def assert_same_bits(there, here):
    """Equal names or numbers of arrays, dtypes, shapes, bits; the first lies on the device unless it was fetched."""
    names = here if isinstance(here, dict) else range(len(here))
    assert len(there) == len(here)
    for name in names:
        a, b = fetch(there[name]), np.asarray(here[name])
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert a.tobytes() == b.tobytes(), f"{name} differs by {abs(a - b).max()}"


# --- operations and modules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", FUNCTIONS)
def test_every_operation_has_the_bits_of_numpy_and_reads_nothing(op, xp):
    for case in of_op(op):
        arrays = case.arrays("float32")
        g = np.asarray(case.oracle("float32")[1])
        results = []
        for device in ("cpu", "cuda"):
            ctx = Context(np if device == "cpu" else xp, (True,) * len(arrays))
            with np.errstate(all="ignore"), reads() as seen:
                y = case.function.forward(ctx, *send(arrays, device), **case.params)
                grads = case.function.backward(ctx, send(g, device))
            masks = case.op == "getitem" and any("mask" in text for text in seen)  # their size must be known
            assert not seen or masks, f"{case.id}: {seen}"
            results.append([y, *(d for d in grads if d is not None)])
        here, there = results
        assert all(isinstance(a, xp.ndarray) for a in there), case.id
        assert_same_bits(there, here)


MODULES = {
    "Linear": (lambda rng: nn.Linear(12, 7, rng=rng), (2, 3, 12)),
    "LayerNorm": (lambda rng: nn.LayerNorm(12), (2, 3, 12)),
    "RMSNorm": (lambda rng: nn.RMSNorm(12), (2, 3, 12)),
    "LayerScale": (lambda rng: nn.LayerScale(12, 0.1), (2, 3, 12)),
    "GELU": (lambda rng: nn.GELU("tanh"), (2, 3, 12)),
    "Dropout": (lambda rng: nn.Dropout(0.4), (2, 3, 12)),
    "MultiHeadAttention": (lambda rng: nn.MultiHeadAttention(12, 3), (2, 5, 12)),
    "PatchEmbed": (lambda rng: nn.PatchEmbed(8, 4, 3, 12, rng), (2, 8, 8, 3)),
    "TokenEmbed": (lambda rng: nn.TokenEmbed(nn.PatchEmbed(8, 4, 3, 12, rng), 12, True, 2, rng), (2, 8, 8, 3)),
    "Attend": (lambda rng: nn.Attend(), (2, 2, 5, 4)),
    **{f"BitLinear, {bits:g} bits": (lambda rng, bits=bits: BitLinear(12, 7, bits, norm=True, rng=rng), (4, 12))
       for bits in tb.quant.WEIGHT_BITS[1:]},
    "BitLinear, signs": (lambda rng: BitLinear(12, 7, 1, 1, rng=rng), (4, 12)),
    "VisionTransformer": (lambda rng: VisionTransformer(**CONFIG, pool="cls", registers=1, rng=rng), (2, 8, 8, 3)),
}  # fmt: skip


def test_every_module_is_listed():
    of_nn = {name for name in nn.__all__ if isinstance(getattr(nn, name), type)} - {"Module", "Parameter", "HookHandle"}
    assert of_nn <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_the_bits_of_numpy_and_reads_nothing(name, rng):
    make, shape = MODULES[name]
    here = make(np.random.default_rng(0))
    there = copy.deepcopy(here).to("cuda")
    x = rng.standard_normal(shape).astype("float32")
    results = []
    for module, device in ((here, "cpu"), (there, "cuda")):
        tb.manual_seed(1)
        inputs = [tb.Tensor(x, requires_grad=True, device=device) for _ in range(2 if name == "Attend" else 1)]
        with reads() as seen:
            y = module(*inputs)
            g = np.random.default_rng(2).standard_normal(y.shape).astype("float32")
            y.backward(send(g, device))
        assert not seen
        assert {p.device for p in module.parameters()} <= {device}
        results.append([y.data, *(t.grad for t in inputs), *(p.grad for p in module.parameters())])
    assert_same_bits(results[1], results[0])


def test_indices_are_checked_on_the_host_and_sent():
    x = tb.Tensor(np.arange(12.0).reshape(3, 4), requires_grad=True, device="cuda")
    with reads(at_most=0):
        y = x[[2, 0, 2]].sum() + x[np.array([0, 1]), [1, 3]].sum() + x[[]].sum()
        y.backward()
    assert x.grad.get().tolist() == [[1, 2, 1, 1], [0, 0, 0, 1], [2, 2, 2, 2]]
    for index in ([0, 3], np.array([-4]), (slice(None), [4])):
        with pytest.raises(IndexError):
            x[index]


def test_a_gradient_from_the_wrong_device_is_refused():
    x = tb.Tensor([1.0, 2.0], requires_grad=True, device="cuda")
    with pytest.raises(TypeError, match="on the CPU and on the GPU"):
        (x * 2).backward(np.ones(2, "float32"))
    with pytest.raises(TypeError, match="on the CPU and on the GPU"):
        F.linear(x, tb.Tensor(np.ones((3, 2), "float32")))


def test_state_comes_from_and_goes_to_either_device():
    here, there = (VisionTransformer(**CONFIG, rng=np.random.default_rng(seed)) for seed in (0, 1))
    there.to("cuda")
    there.load_state_dict(here.state_dict())
    assert_same_bits(there.state_dict(), here.state_dict())
    other = VisionTransformer(**CONFIG, rng=np.random.default_rng(2))
    other.load_state_dict(there.state_dict())
    assert_same_bits(other.state_dict(), here.state_dict())
    assert_same_bits(there.to("cpu").state_dict(), here.state_dict())


# --- training ---------------------------------------------------------------------------------------------------------


def batches(count=3, n=13):
    rng = np.random.default_rng(5)
    return [(rng.standard_normal((n, 8, 8, 3)).astype("float32"), rng.integers(0, 5, n)) for _ in range(count)]


def train(device, optimizer=AdamW, weight=None, steps=2, **options):
    """Losses and everything that a few steps change, and what was read in each step."""
    names = ("loss", "workers", "max_norm")
    settings = {name: options.pop(name) for name in names if name in options}
    model = VisionTransformer(**{**CONFIG, **options}, rng=np.random.default_rng(0)).to(device)
    optimizer = optimizer(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer, rng=3, **{"workers": 1, **settings})
    state, counts = {}, []
    for i, (x, y) in enumerate(batches(steps)):
        with reads() as seen:
            state[f"loss {i}"] = np.array(trainer.step(x, y, weight))
        counts.append(seen)
        state[f"outputs {i}"] = np.concatenate(trainer.outputs)
    arrays = fetch(optimizer.state_dict()["arrays"])
    return {**state, **fetch(model.state_dict()), **{f"slot {k}": a for k, a in arrays.items()}}, counts


def smoothed(output, y):
    return F.cross_entropy(output, y, label_smoothing=0.1)


@pytest.mark.parametrize(
    "options",
    [
        *({"bits": bits} for bits in tb.quant.WEIGHT_BITS),
        {"bits": 1, "activation_bits": 1, "ste": "clipped"},
        {"bits": 1.58, "granularity": "tensor", "scale": "absmedian", "pool": "cls"},
        {"max_norm": 0.1},
        {"max_norm": 1e3, "optimizer": SGD},
        {"dropout": 0.3, "bits": 1.58},
        {"workers": 3},
        {"weight": np.linspace(0, 2, 13)},
        {"loss": smoothed},
    ],
    ids=lambda options: ", ".join(f"{k}={v if np.isscalar(v) else 'given'}" for k, v in options.items()),
)
def test_training_steps_have_the_bits_of_numpy_and_read_once(options):
    here, _ = train("cpu", **options)
    there, counts = train("cuda", **options)
    assert_same_bits(there, here)
    assert all(len(seen) <= 1 for seen in counts), counts


@pytest.fixture
def reads_of_each_update(monkeypatch):
    """A list that grows by a number with every update of any Trainer."""
    counts, step = [], Trainer.step

    def counted(self, *batch):
        with reads() as seen:
            loss = step(self, *batch)
        counts.append(len(seen))
        return loss

    monkeypatch.setattr(Trainer, "step", counted)
    return counts


def test_every_update_of_a_fit_reads_once(data, reads_of_each_update):
    with reads() as seen:
        tb.ViT(**TINY, device="cuda").fit(*data)
    updates = TINY["epochs"] * -(-len(data[0]) // TINY["batch_size"])
    assert reads_of_each_update == [1] * updates
    assert sum("loop.py" in text for text in seen) == 0  # the accuracy comes from outputs that are here already


def test_class_numbers_out_of_range_are_refused_and_the_weights_stay():
    model = VisionTransformer(**CONFIG, rng=np.random.default_rng(0)).to("cuda")
    before = fetch(copy.deepcopy(model.state_dict()))
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1))
    x, y = batches(1)[0]
    for wrong in (5, -1):
        with pytest.raises(ValueError, match=r"class numbers must lie in 0..4, found"):
            trainer.step(x, np.where(np.arange(13) == 4, wrong, y))
    assert_same_bits(model.state_dict(), before)
    assert np.isfinite(trainer.step(x, y))


def test_a_loss_that_is_not_finite_names_the_layer():
    model = VisionTransformer(**CONFIG, rng=np.random.default_rng(0)).to("cuda")
    model.blocks[1].mlp.fc1.bias.data[3] = np.inf
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1))
    with pytest.raises(FloatingPointError, match=r"first in blocks\.1\.mlp\.fc1;"):
        trainer.step(*batches(1)[0])


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_waits_for_nobody(max_norm, rng):
    grads = [rng.standard_normal(shape).astype("float32") for shape in ((3, 4), (5,), ())]
    parameters = {device: [nn.Parameter(np.zeros_like(g)) for g in grads] for device in ("cpu", "cuda")}
    for device, ps in parameters.items():
        for p, g in zip(ps, grads, strict=True):
            p.grad = send(g.copy(), device)
    expected = clip_grad_norm(parameters["cpu"], max_norm)
    with reads(at_most=0):
        norm = clip_grad_norm(parameters["cuda"], max_norm)
    assert float(norm) == expected
    assert_same_bits([p.grad for p in parameters["cuda"]], [p.grad for p in parameters["cpu"]])


def test_moving_the_model_after_the_optimizer_was_made_is_refused():
    model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    model.to("cuda")
    with pytest.raises(RuntimeError, match="moved to another device"):
        optimizer.step()


# --- packed inference -------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("activation_bits", [8, 4, 1, None])
@pytest.mark.parametrize("bits", tb.quant.WEIGHT_BITS[1:])
def test_packed_layers_have_the_bits_of_numpy(bits, activation_bits, rng):
    here = BitLinear(37, 9, bits, activation_bits, norm=True, rng=np.random.default_rng(0))
    there = copy.deepcopy(here).to("cuda")
    x = rng.standard_normal((3, 5, 37)).astype("float32")
    with tb.no_grad():
        expected = PackedLinear.from_bitlinear(here)(tb.Tensor(x)).data
        packed = PackedLinear.from_bitlinear(there)
        with reads(at_most=0):
            found = packed(tb.Tensor(x, device="cuda"))
    assert found.device == "cuda" and packed.packed.dtype == "uint8"
    assert_same_bits([found.data], [expected])
    assert_same_bits(packed.state_dict(), PackedLinear.from_bitlinear(here).state_dict())
    assert_same_bits([packed.to("cpu")(tb.Tensor(x)).data], [expected])


@needs_compiler
@pytest.mark.parametrize("bits", [1.58, 1])
def test_packed_networks_have_the_bits_of_numpy(bits):
    here = VisionTransformer(**CONFIG, bits=bits, rng=np.random.default_rng(0))
    there = copy.deepcopy(here).to("cuda")
    x = batches(1)[0][0]
    expected = Trainer(here.pack(), workers=1).predict(x)
    with reads() as seen:
        packed = there.pack()
        while seen:  # packing checks its codes, which may read
            seen.pop()
        found = Trainer(packed, workers=1).predict(x)
    assert [text.partition(" ")[0] for text in seen] == ["get()"]  # the logits
    assert_same_bits([found], [expected])
    assert packed.nbytes == here.pack().nbytes


def test_describe_counts_on_the_device():
    here = VisionTransformer(**CONFIG, bits=1.58, rng=np.random.default_rng(0))
    expected = tb.quant.describe(here)
    assert tb.quant.describe(here.to("cuda")) == expected


# --- tb.ViT -----------------------------------------------------------------------------------------------------------

TINY = {"dim": 16, "depth": 1, "heads": 2, "epochs": 3, "batch_size": 20, "random_state": 0, "verbose": 0, "workers": 1}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = rng.random((60, 6, 6)).astype(np.float32)
    for k in range(3):
        X[y == k, 2 * k : 2 * k + 2] += 1
    return X, np.array(["ant", "bird", "cat"])[y]


def pair(data, **options):
    """The same fit on both devices."""
    return [tb.ViT(**{**TINY, **options, "device": device}).fit(*data) for device in ("cpu", "cuda")]


def without_seconds(history):
    return {key: values for key, values in history.items() if key != "seconds"}


@needs_compiler
@pytest.mark.parametrize("bits", [32, 1.58, 1])
def test_numpy_in_and_numpy_out(data, bits, tmp_path):
    X, y = data
    here, there = pair(data, bits=bits)
    assert there.model_.head.weight.device == "cuda"
    assert without_seconds(there.history_) == without_seconds(here.history_)
    assert_same_bits(there.model_.state_dict(), here.model_.state_dict())
    for call in ("predict", "predict_proba", "decision_function"):
        found = getattr(there, call)(X)
        assert type(found) is np.ndarray and np.array_equal(found, getattr(here, call)(X))
    assert there.score(X, y) == here.score(X, y)
    packed = [model.pack() for model in (here, there)] if bits < 32 else [here, there]
    assert np.array_equal(packed[1].predict_proba(X), packed[0].predict_proba(X))
    for name, model in {"here": here, "there": there}.items():
        model.save(tmp_path / name)
        if bits < 32:
            model.save(tmp_path / f"{name} packed", packed=True)
    for path in sorted(tmp_path.iterdir()):
        for device in ("cpu", "cuda"):
            loaded = tb.load(path, device=device)
            assert loaded.model_.head.weight.device == device
            assert np.array_equal(loaded.predict_proba(X), here.predict_proba(X)), (path.name, device)


RECIPES = {
    "best": "best",
    "ede, in two stages": Recipe({"ste": "ede"}, (Stage(1), Stage(1, relative_lr=0.1))),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_bits_of_numpy_and_read_once_an_update(name, data, reads_of_each_update):
    models = []
    for device in ("cpu", "cuda"):
        options = {**TINY, "device": device}
        if name == "best":
            options["distill_from"] = tb.ViT(bits=32, **options).fit(*data)
        reads_of_each_update.clear()
        models.append(tb.ViT(bits=1, recipe=RECIPES[name], **options).fit(*data))
    here, there = models
    assert without_seconds(there.history_) == without_seconds(here.history_)
    assert_same_bits(there.model_.state_dict(), here.model_.state_dict())
    assert set(reads_of_each_update) == {1}


def test_training_goes_on_after_loading_on_another_device(data, tmp_path):
    tb.ViT(**TINY, device="cuda").fit(*data).save(tmp_path / "there")
    on_cpu, on_gpu = (tb.load(tmp_path / "there", device).partial_fit(*data) for device in ("cpu", "cuda"))
    assert on_gpu.model_.head.weight.device == "cuda"
    assert_same_bits(on_gpu.model_.state_dict(), on_cpu.model_.state_dict())


def test_everything_else_that_fit_does(data, tmp_path):
    X, y = data
    options = {"early_stopping": True, "patience": 1, "augment": "flip,crop:1", "validation_fraction": 0.3}
    here, there = pair(data, **options)
    assert without_seconds(there.history_) == without_seconds(here.history_)
    assert_same_bits(there.model_.state_dict(), here.model_.state_dict())
    first, second = (
        tb.ViT(**{**TINY, "bits": 1, "device": device}).fit(X, y, sample_weight=np.linspace(0, 1, 60), eval_set=(X, y))
        for device in ("cpu", "cuda")
    )
    assert without_seconds(second.history_) == without_seconds(first.history_)


def test_checkpoints_of_a_gpu_run_resume_on_the_cpu(data, tmp_path):
    """A run that is cut on one device ends with the bits of a run that was never cut, on any device."""
    calls, stops = itertools.count(), []

    def augment(X, rng):
        if next(calls) in stops:
            raise KeyboardInterrupt
        return X

    whole = tb.ViT(**TINY, augment=augment, device="cpu").fit(*data)
    stops.append(next(calls) + 5)
    cut = tb.ViT(**TINY, augment=augment, device="cuda").fit(*data, checkpoint=tmp_path, every=0)
    assert cut.interrupted_
    resumed = tb.ViT(**TINY, augment=augment, device="cpu").fit(*data, checkpoint=tmp_path, resume=True)
    assert_same_bits(resumed.model_.state_dict(), whole.model_.state_dict())


def test_auto_takes_the_gpu_and_says_so(data, capsys):
    tb.ViT(**{**TINY, "verbose": 1, "epochs": 1}, device="auto").fit(*data)
    first, line = capsys.readouterr().out.splitlines()
    assert first == "device: cuda" and "images/s on cuda" in line
    tb.ViT(**{**TINY, "verbose": 1, "epochs": 1}, device="cpu").fit(*data)
    (line,) = capsys.readouterr().out.splitlines()
    assert "images/s on cpu" in line


@pytest.mark.parametrize("target", [None, "predicted"])
def test_attention_is_recorded_on_the_host(data, target):
    here, there = pair(data, bits=1.58)
    a, b = (attention(model, data[0][:4], target=target) for model in (here, there))
    arrays = ["maps", "gradients"] if target else ["maps"]
    for name in arrays:
        assert_same_bits(getattr(b, name), getattr(a, name))
    assert all(type(m) is np.ndarray for m in b.maps) and np.array_equal(b.logits, a.logits)
    assert np.array_equal(b.rollout(), a.rollout())


@needs_compiler
def test_files_for_others_are_the_same_from_either_device(data, tmp_path):
    pytest.importorskip("onnx")
    here, there = pair(data, bits=1.58)
    texts = []
    for name, model in {"here": here, "there": there}.items():
        tb.io.export(model.model_, tmp_path / f"{name}.onnx")
        model.history_["seconds"] = [1.0] * len(model.history_["seconds"])
        model.set_params(device="cpu")  # the page names its file's bytes, and the file holds both
        model.to_html(tmp_path / f"{name}.html", X=data[0][:2])
        texts.append([(tmp_path / f"{name}.{kind}").read_bytes() for kind in ("onnx", "html")])
    assert texts[0] == texts[1]
