"""The page's scripts in Node: every operation and whole networks beside NumPy, drawings, sizes and times."""

import base64
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit.data import Normalize
from tinybitvit.models import VisionTransformer
from tinybitvit.quant import LAYOUTS, PackedLinear, pack
from tinybitvit.quant.integer import input_codes
from tinybitvit.web import export, to_html

RUNNER = Path(__file__).parents[1] / "support" / "vit_runner.js"
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node on the PATH")
IMAGES = 50


def node(page, task, **job):
    command = ["node", str(RUNNER), str(export.FOLDER), str(page), task]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def network(rng, shape=(8, 8, 1), patch=2, bits=1.58, activation_bits=8, pool="mean", **options):
    """A network with weights of which none is 0 or 1 by chance."""
    sizes = {"dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 2, **options}
    model = VisionTransformer(
        shape[:2], patch, shape[2], 10, bits=bits, activation_bits=activation_bits, pool=pool, rng=rng, **sizes
    )
    for _, p in model.named_parameters():
        p.data += 0.1 * rng.standard_normal(p.shape, dtype="float32")
    return model.eval()


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def run(model, X):
    """Logits, and for every packed layer the codes of its input and the sums of products of codes, whole numbers."""
    x, seen = Normalize(0.5, 0.5)(X), []

    def look(layer, inputs, output):
        codes, _ = input_codes(np, inputs[0].data.reshape(-1, layer.in_features), layer.activation_bits, layer.norm)
        if layer.activation_bits is not None:
            codes = codes.astype("int8")
            sums = codes.astype(int) @ layer.codes()[0].astype(int).T
            seen.append((codes.reshape(len(X), -1), sums.reshape(len(X), -1)))

    handles = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, PackedLinear)]
    with tb.no_grad():
        logits = model(x).numpy()
    for handle in handles:
        handle.remove()
    return logits, seen


# --- whole networks ---------------------------------------------------------------------------------------------------

SHAPES = {"digits": ((8, 8, 1), 2), "fashion-mnist": ((28, 28, 1), 4), "cifar10": ((32, 32, 3), 4)}
# What else can differ, spread over the widths.
OPTIONS = {
    32: {"layer_scale": 0.5, "registers": 2, "gelu": "none"},
    8: {"granularity": "tensor", "pool": "cls"},
    4: {"activation_bits": 4, "registers": 1, "pool": "cls+mean"},
    3: {"gelu": "none", "layer_scale": 0.5},
    2: {"granularity": "tensor", "class_token": True, "registers": 3},
    1.58: {"pool": "cls"},
    1: {},
}
CASES = [(shape, bits, OPTIONS[bits]) for shape in SHAPES for bits in OPTIONS] + [
    ("digits", 1, {"activation_bits": 1, "granularity": "tensor", "pool": "cls"}),
    ("digits", 1.58, {"activation_bits": 1, "gelu": "none"}),
    ("digits", 1, {"activation_bits": None}),
    ("digits", 1.58, {"activation_bits": 4, "sub_norm": False, "pool": "cls+dist", "registers": 1}),
    # Rows that end within a byte, and packed weights of an odd number of bytes
    ("digits", 1.58, {"dim": 36, "heads": 3, "mlp_ratio": 1.5, "granularity": "tensor"}),
    ("digits", 1.58, {"dim": 15, "depth": 1, "heads": 5, "mlp_ratio": 1}),
    # Heads of 32 and 48 channels, where the scale of the scores is no power of two
    ("digits", 1.58, {"dim": 64, "heads": 2}),
    ("digits", 1, {"dim": 96, "heads": 2}),
]


@needs_node
@pytest.mark.parametrize(("shape", "bits", "options"), CASES)
def test_logits_and_sums_of_codes_equal_numpys(shape, bits, options, rng, tmp_path):
    """Sums exactly, logits within 1e-4, for 50 images: once the codes agree.

    NumPy and JavaScript add floats in another order, so that a number at a half, to the last bit, may be rounded up by
    one and down by the other. Such a code is taken from NumPy, after a check that it lies at a half.
    """
    shape, patch = SHAPES[shape]
    model = network(rng, shape, patch, bits, **options)
    X = rng.integers(0, 256, (IMAGES, *shape), dtype="uint8")
    logits, seen = run(model if bits == 32 else model.pack(), X)
    to_html(model, tmp_path / "page.html")
    files = {name: str(tmp_path / name) for name in ("path", "codes", "sums")}
    X.tofile(files["path"])
    np.concatenate([codes.ravel() for codes, _ in seen] or [np.zeros(0, "int8")]).tofile(files["codes"])
    found = node(tmp_path / "page.html", "replay", layers=[codes.shape[1] for codes, _ in seen], **files)
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-5)
    if seen:
        sums = np.concatenate([sums for _, sums in seen], axis=1)
        np.testing.assert_array_equal(np.fromfile(files["sums"], "int32"), sums.ravel())
    assert len(found["ties"]) <= 1e-4 * sum(codes.size for codes, _ in seen)
    assert max(found["ties"], default=0) < 1e-3


@needs_node
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_attention_maps_equal_those_of_the_visualizer(pool, rng, tmp_path):
    model = network(rng, bits=32, pool=pool, registers=1)
    X = rng.integers(0, 256, (3, 8, 8, 1), dtype="uint8")
    to_html(model, tmp_path / "page.html")
    X.tofile(tmp_path / "images")
    found = node(tmp_path / "page.html", "ask", path=str(tmp_path / "images"), maps=True)
    record = tb.viz.attention(model, Normalize(0.5, 0.5)(X))
    for i, answer in enumerate(found):
        for layer in range(2):
            np.testing.assert_allclose(answer["maps"][layer], record.maps[layer][i].ravel(), atol=1e-6)


@needs_node
def test_a_fitted_vit(rng, tmp_path):
    """Bytes and floats, any labels: the page's answers are those of decision_function."""
    images = rng.integers(0, 17, (60, 8, 8, 1))
    y = np.array(["circle", "square", "line"])[rng.integers(0, 3, 60)]
    for X in (np.uint8(images * 15), images / 16, images.astype("float32")):
        model = tb.ViT(bits=32, dim=16, epochs=1, verbose=0, random_state=0, workers=1).fit(X, y)
        data = data_of(to_html(model, tmp_path / "page.html", X=X[:5], y=y[:5]))
        assert data["models"][0]["classes"] == ["circle", "line", "square"]
        assert data["examples"]["labels"] == y[:5].tolist()
        (tmp_path / "images").write_bytes(base64.b64decode(data["examples"]["pixels"]))
        found = node(tmp_path / "page.html", "ask", path=str(tmp_path / "images"))
        atol = 1e-4 if X.dtype == np.uint8 else 0.05  # the page shows floats in 256 steps
        np.testing.assert_allclose([a["logits"] for a in found], model.decision_function(X[:5]), atol=atol)


@needs_node
@pytest.mark.parametrize("high", [255, 16])
@pytest.mark.parametrize("first", ["dark", "light"])
def test_light_on_dark_and_dark_on_light_on_one_page(first, high, rng, tmp_path):
    """The page's images are as the first model's; a model of the other polarity gets their negatives."""
    X = np.asarray(tb.data.load_digits().X_train[:60] / 255 * high, np.uint8 if high == 255 else np.float32)
    kinds = {"dark": X, "light": high - X}
    names = sorted(kinds, reverse=first == "light")
    models = {name: Fitted(network(rng, bits=32), Normalize.fit(kinds[name])) for name in names}
    data = data_of(to_html(models, tmp_path / "page.html", X=kinds[first][:5]))
    assert data["ground"] == first and data["frame"]["ink"] == pytest.approx(X.mean() / high, abs=1e-4)
    assert [model["ink"] for model in data["models"]] == pytest.approx([data["frame"]["ink"]] * 2)
    (tmp_path / "images").write_bytes(base64.b64decode(data["examples"]["pixels"]))
    pixels = np.fromfile(tmp_path / "images", "uint8").reshape(5, 8, 8, 1)
    np.testing.assert_allclose(pixels, kinds[first][:5] * (255 / high), atol=0.51)
    for i, (name, model) in enumerate(models.items()):
        alone = json.dumps({**data, "models": data["models"][i : i + 1]})
        (tmp_path / "alone.html").write_text(f'<script type="application/json" id="data">{alone}</script>')
        found = node(tmp_path / "alone.html", "ask", path=str(tmp_path / "images"))
        with tb.no_grad():
            expected = model.model_(model.normalize_(kinds[name][:5])).numpy()
        # The page shows floats in 256 steps
        np.testing.assert_allclose([a["logits"] for a in found], expected, atol=1e-5 if high == 255 else 0.05)


@needs_node
@pytest.mark.parametrize(
    ("shape", "sizes", "limit"),
    [
        (((8, 8, 1), 2), {"dim": 64, "heads": 4, "mlp_ratio": 2}, 30),
        (((32, 32, 3), 4), {"dim": 192, "depth": 6, "heads": 3, "mlp_ratio": 4, "pool": "cls"}, 400),
    ],
)
@pytest.mark.parametrize("bits", [32, 1.58])
def test_time_an_image(shape, sizes, limit, bits, rng, tmp_path):
    model = network(rng, *shape, bits, **sizes)
    to_html(model, tmp_path / "page.html")
    rng.integers(0, 256, shape[0], dtype="uint8").tofile(tmp_path / "image")
    assert node(tmp_path / "page.html", "time", path=str(tmp_path / "image"), runs=10) < limit


# --- operations -------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(rng, tmp_path):
    """Calls of functions of vit.js and draw.js, all of one Node process."""
    to_html(network(rng), tmp_path / "page.html")
    return lambda *calls, floats=False: node(tmp_path / "page.html", "call", calls=calls, floats=floats)


@needs_node
def test_rounding_is_half_to_even(call, rng):
    near = [0.49999997, -0.49999997, 2.5000002]
    values = (
        np.concatenate([np.arange(-9, 9.5, 0.5), rng.uniform(-200, 200, 100), near]).astype("float32").astype(float)
    )
    assert call(*(["rint", v] for v in values)) == np.rint(values).tolist()


@needs_node
@pytest.mark.parametrize("bits", [8, 4])
def test_activation_codes_equal_numpys_on_floats_between_halves(call, rng, bits):
    """Rows whose largest value is `top`, so that every multiple of 1/2 is a tie; and a row of zeros."""
    top = 2 ** (bits - 1) - 1
    x = rng.integers(-2 * top, 2 * top + 1, (20, 64)).astype("float32") / 2
    x[:, 0], x[7] = top, 0
    x[10:] *= rng.standard_normal((10, 1), dtype="float32")
    (found,) = call(["absmax_codes", x.ravel().tolist(), 64, bits], floats=True)
    codes, step = tb.quant.ste.absmax_codes(np, x, bits)
    np.testing.assert_array_equal(list(found["codes"].values()), codes.ravel())
    np.testing.assert_array_equal(np.float32(list(found["step"].values())), step.ravel())


@needs_node
def test_signs_of_activations_equal_numpys(call, rng):
    x = rng.integers(-2, 3, (20, 64)).astype("float32")
    x[7] = 0
    (found,) = call(["binary_codes", x.ravel().tolist(), 64], floats=True)
    codes, step, _ = tb.quant.ste.binary_codes(np, x, centre=False)
    np.testing.assert_array_equal(list(found["codes"].values()), codes.ravel())
    np.testing.assert_array_equal(np.float32(list(found["step"].values())), step.ravel())


@needs_node
def test_every_layout_is_unpacked(call, rng):
    calls, expected = [], []
    for layout in LAYOUTS.values():
        if layout.along == "K":
            codes = rng.choice(layout.codes, (3, 13))
            spec = {"base": layout.base, "weights_per_byte": layout.weights_per_byte, "codes": layout.codes}
            calls.append(["unpack", pack(codes, layout.name).ravel().tolist(), spec, [3, 13]])
            expected.append(codes.ravel().tolist())
    assert call(*calls) == expected


@needs_node
def test_erf_is_exact_to_float32(call):
    from scipy.special import erf

    x = np.concatenate([np.linspace(-6, 6, 241), [1e-30, -1e-9]])
    np.testing.assert_allclose(call(*(["erf", v] for v in x)), erf(x), rtol=1e-8, atol=2e-8)


def test_functions_have_the_librarys_names():
    """All but two: base64 is the page's own affair, and NumPy brings rint along. Files that comments name exist."""
    text, package = (export.FOLDER / "vit.js").read_text(), export.FOLDER.parent
    library = "\n".join(path.read_text() for path in package.rglob("*.py"))
    known = set(re.findall(r"def _?(\w+)", library))
    known |= {re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in re.findall(r"class (\w+)", library)}
    assert set(re.findall(r"^function (\w+)", text, re.M)) - known == {"decode_base64", "rint"}
    files = re.findall(r"\b\w+/\w+\.py\b", text)
    assert len(files) >= 8 and all((package / name).exists() for name in files)


# --- drawings ---------------------------------------------------------------------------------------------------------

DIGITS = {"box": [20 / 32, 1], "stretch": True, "centre": "box", "pen": None, "ink": 0.305}
MNIST = {"box": [20 / 28, 20 / 28], "stretch": False, "centre": "mass", "pen": 2.4, "ink": None}
WHOLE = {"box": [1, 1], "stretch": False, "centre": "box", "pen": None, "ink": None}
SEVEN = np.array([[0.2, 0.2], [0.8, 0.2], [0.4, 0.9]])


def stroke(points, width=0.08, erase=False):
    return {"points": np.asarray(points).tolist(), "width": width, "erase": erase}


def drawn(call, shape, frame, *drawings):
    found = call(*(["drawnImage", drawing, shape, frame] for drawing in drawings))
    return [image if image is None else np.reshape(image, shape) for image in found]


def box(image):
    """First and last column and row with ink."""
    return [int(i) for axis in (0, 1) for i in np.flatnonzero(image.any(axis))[[0, -1]]]


@needs_node
def test_size_and_place_of_a_drawing_do_not_matter(call):
    places = [SEVEN, SEVEN * 0.5, SEVEN * 0.5 + [0.4, 0.1], SEVEN * 0.3 + 0.6]
    for shape, frame in (((8, 8), DIGITS), ((28, 28), MNIST)):
        first, *others = drawn(call, shape, frame, *([stroke(p)] for p in places))
        for other in others:
            assert np.abs(first - other.astype(float)).mean() < 12  # of 255


@needs_node
def test_drawings_are_framed_as_the_training_images(call):
    seven, line = [stroke(SEVEN)], [stroke([[0.1, 0.5], [0.9, 0.5]])]
    (digit,) = drawn(call, (8, 8), DIGITS, seven)
    assert box(digit) == [1, 6, 0, 7]  # 20 of 32 samples wide: 1.5 to 6.5 pixels
    assert digit.mean() / 255 == pytest.approx(0.305, abs=0.02)
    thin, thick = drawn(call, (8, 8), DIGITS, [stroke(SEVEN, 0.03)], [stroke(SEVEN, 0.2)])
    assert np.abs(thin - thick.astype(float)).mean() < 25
    (mnist,) = drawn(call, (28, 28), MNIST, seven)
    rows, columns = np.indices(mnist.shape)
    centre = [(i * mnist).sum() / mnist.sum() for i in (rows, columns)]
    assert np.allclose(centre, 13.5, atol=0.3)
    left, right, top, bottom = box(mnist)
    assert bottom - top + 1 in (20, 21) and right - left < 20
    for image in drawn(call, (28, 28), WHOLE, seven, line):
        assert box(image)[:2] == [0, 27] or box(image)[2:] == [0, 27]
    (wide,) = drawn(call, (8, 12), WHOLE, [stroke([[0.1, 0.1], [0.9, 0.5]])])
    assert box(wide)[:2] == [0, 11]


@needs_node
def test_a_drawing_on_a_light_ground_is_the_negative(call):
    seven = [stroke(SEVEN)]
    dark, light = call(["drawnImage", seven, [8, 8], DIGITS, "dark"], ["drawnImage", seven, [8, 8], DIGITS, "light"])
    assert max(dark) > 200 and light == [255 - v for v in dark]
    assert call(["drawnImage", [], [8, 8], DIGITS, "light"]) == [None]


@needs_node
def test_the_zoos_digits_are_trained_on_what_the_page_makes_of_strokes(call, rng):
    """zoo/digits.py and draw.js agree byte for byte; a drawing is as inky as the scans, and each is its own."""
    digits = runpy.run_path(str(Path(__file__).parents[2] / "zoo" / "digits.py"))
    styles = [style for all_of_one in digits["STYLES"].values() for style in all_of_one]
    assert set(digits["STYLES"]) == set(range(10)) and all(len(s) >= 4 for s in digits["STYLES"].values())
    drawings = [digits["written"](style, rng) for style in styles]
    pens = rng.uniform(0.04, 0.14, len(styles)).tolist()
    strokes = [[stroke(points, pen) for points in d] for d, pen in zip(drawings, pens, strict=True)]
    made = np.stack([digits["drawn_image"](d, pen, 0.305) for d, pen in zip(drawings, pens, strict=True)])
    np.testing.assert_array_equal(drawn(call, [8, 8], DIGITS, *strokes), made)
    assert np.abs(made.mean(axis=(1, 2)) / 255 - 0.305).max() < 0.05
    again = digits["drawings"](20, 0.3, seed=5)
    np.testing.assert_array_equal(again[0], digits["drawings"](20, 0.3, seed=5)[0])
    assert len(np.unique(again[0].reshape(20, -1), axis=0)) == 20 and again[1].tolist() == [*range(10)] * 2


@needs_node
def test_the_eraser_and_an_empty_canvas(call):
    both = [stroke([[0.2, 0.2], [0.2, 0.8]]), stroke([[0.8, 0.2], [0.8, 0.8]])]
    rubbed = [*both, stroke([[0.8, 0.1], [0.8, 0.9]], 0.2, erase=True)]
    alone, left, nothing, empty = drawn(call, (28, 28), MNIST, both[:1], rubbed, [stroke([[0.5, 0.5]], erase=True)], [])
    np.testing.assert_array_equal(left, alone)
    assert nothing is None and empty is None
    (dot,) = drawn(call, (8, 8), DIGITS, [stroke([[0.9, 0.1]])])
    assert dot is not None and dot.max() > 0


# --- the text ---------------------------------------------------------------------------------------------------------


def test_the_page_holds_what_the_packed_model_weighs(rng, tmp_path):
    model = network(rng, dim=64, mlp_ratio=2)
    page = to_html(model)
    (data,) = data_of(page)["models"]
    total = tb.quant.describe(model.pack("base3"))[-1]
    tb.io.save_model(tmp_path / "m", model, packed=True)
    size = (tmp_path / "m").stat().st_size
    assert data["size"] == {"bytes": size, "effective_bits": pytest.approx(total.effective_bits)}
    assert len(base64.b64decode(data["bytes"])) == total.bytes
    assert len(page.encode()) < 120_000
    assert to_html(model.pack()) == page  # whatever layout a packed model computes from
    float_model = network(rng, bits=32)
    (data,) = data_of(to_html(float_model))["models"]
    tb.io.save_model(tmp_path / "m", float_model)
    size = (tmp_path / "m").stat().st_size
    assert data["size"] == {"bytes": size, "effective_bits": 32} and data["layouts"] == {}


def test_nothing_from_outside_and_nothing_injected(rng, tmp_path):
    evil = "</script><script>alert(1)</script>"
    models = {evil: network(rng), "<b>1 & 1</b> {{js}}": network(rng, bits=1)}
    X = rng.integers(0, 256, (2, 8, 8), dtype="uint8")
    page = to_html(models, tmp_path / "page.html", X=X, y=[evil, "{{data}}"])
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert not re.search(r"https?:|\bsrc=|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", page)
    assert "default-src 'none'" in page
    assert page.count("</script>") == 2 and "<script>alert" not in page and "<b>" not in page
    assert page.count("{{js}}") == 3 and page.count("{{data}}") == 1  # the names in title, heading and data, no other
    data = data_of(page)
    assert [m["name"] for m in data["models"]] == list(models) and data["examples"]["labels"] == [evil, "{{data}}"]
    assert to_html(models, title="<i>").count("&lt;i&gt;") == 2


def test_names_of_models(rng):
    assert data_of(to_html(network(rng, bits=1)))["models"][0]["name"] == "1 bit"
    page = to_html({"a": network(rng), "b": network(rng, bits=4)})
    assert "<h1>Vision Transformer: a, b</h1>" in page and [m["bits"] for m in data_of(page)["models"]] == [1.58, 4]


@pytest.mark.parametrize(
    ("shape", "high", "dtype", "ink", "expected"),
    [
        ((8, 8, 1), 255, "uint8", 0.3, (0, 1, (20 / 32, 1), "box")),
        ((8, 8, 1), 16, "float32", 0.3, (0, 16 / 255, (20 / 32, 1), "box")),
        ((8, 8, 1), 16, "float32", 0.7, (0, 16 / 255, (20 / 32, 1), "box")),
        ((28, 28, 1), 255, "float32", 0.13, (0, 1, (20 / 28, 20 / 28), "mass")),
        ((28, 28, 1), 255, "uint8", 0.29, (0, 1, (1, 1), "box")),
        ((28, 28, 1), 255, "uint8", 0.87, (0, 1, (20 / 28, 20 / 28), "mass")),
        ((20, 30, 1), 1, "float32", 0.3, (0, 1, (1, 1), "box")),
        ((32, 32, 3), 255, "uint8", 0.5, (0, 1, None, None)),
        ((1, 64, 1), 1, "float32", 0.5, (0, 1, None, None)),
        ((96, 96, 1), 255, "uint8", 0.5, (0, 1, None, None)),
    ],
)
@pytest.mark.parametrize("examples", [False, True])
def test_pixels_and_frame_follow_from_the_training_images(shape, high, dtype, ink, expected, examples, rng):
    X = (high * (rng.random((40, *shape)) < ink)).astype(dtype)
    model = network(rng, shape, (shape[0] // min(4, shape[0]), shape[1] // 2))
    model = Fitted(model, Normalize.fit(X))
    data = data_of(to_html(model, X=X[:3] if examples else None))
    normalize, frame = data["models"][0]["normalize"], data["frame"]
    low, step, box, centre = expected
    assert (normalize["low"], normalize["step"]) == pytest.approx((low, step))
    white = X.mean() / high
    assert data["models"][0]["ink"] == pytest.approx(1 - white if ink > 0.5 else white, abs=1e-4)
    # None: pixels of both kinds at the border, so no drawings
    assert data["ground"] == ("dark" if ink < 0.5 else "light" if ink > 0.5 else None)
    assert (frame and (tuple(frame["box"]), frame["centre"])) == (box and (box, centre))
    if examples:
        pixels = np.frombuffer(base64.b64decode(data["examples"]["pixels"]), "uint8").reshape(3, *shape)
        np.testing.assert_array_equal(pixels, X[:3] * (255 / high))


class Fitted:
    """What a page reads of a tb.ViT."""

    def __init__(self, model, normalize):
        self.model_, self.normalize_, self.classes_ = model, normalize, list("abcdefghij")


def test_what_cannot_be_on_a_page(rng):
    digits, other = network(rng), network(rng, (12, 8, 1))
    X = np.zeros((2, 8, 8, 1), "uint8")
    for arguments, options, message in (
        ((tb.ViT(),), {}, "call fit first"),
        (({},), {}, "at least one model"),
        (({"a": digits, "b": other},), {}, r"these take \{'a': \(8, 8, 1\), 'b': \(12, 8, 1\)\}"),
        ((VisionTransformer(8, 2, 1, 0, 16, 1, 1, rng=rng),), {}, "without a head"),
        ((digits,), {"X": X[:, :4]}, "needed"),
        ((digits,), {"X": X, "y": [1]}, "2 images and y 1 labels"),
        ((digits,), {"X": X.reshape(2, 1, 8, 8).repeat(3, 1)}, "needed"),
    ):
        with pytest.raises(ValueError, match=message):
            to_html(*arguments, **options)


def test_a_page_too_large_is_refused_with_its_size(rng, tmp_path):
    large = VisionTransformer(32, 4, 3, 10, 512, 3, 8, bits=32, rng=rng)
    size = round(large.nbytes * 4 / 3 / 1e6)
    with pytest.raises(ValueError, match=f"the page would have {size} MB, and up to 25 MB"):
        to_html(large, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
