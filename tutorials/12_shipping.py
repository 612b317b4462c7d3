# %% [markdown]
# # 12 Shipping: files, ONNX, a web page, and an honest size table
#
# A trained network in the memory of your notebook is worth nothing to anybody else. This tutorial gets it out: as a
# file that cannot be half-written or quietly damaged, as a graph for other runtimes, as a web page. And it answers the
# question that the first slide of every talk on low-bit networks gets wrong: *how large is it?*
#
# You need tutorial 07 (packing).

# %%
import importlib.util
import inspect
import json
import math
import struct
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import tinybitvit as tb
from tinybitvit import files
from tinybitvit.viz.figure import PALETTE, new_figure

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## 1. By hand: how large will it be?
#
# The network: `dim` 64, two blocks, MLP ratio 2, images of 8 x 8, patches of 2 x 2. Four matrices a block: qkv 192 x
# 64, proj 64 x 64, fc1 128 x 64, fc2 64 x 128.
#
# - Weights in blocks: $2 \cdot (192 \cdot 64 + 64 \cdot 64 + 2 \cdot 128 \cdot 64) = 65\,536$.
# - At 1.58 bits that would be $65\,536 \cdot 1.585 / 8 = 12\,984$ bytes. In base 3, five weights a byte, a row of 64
#   takes $\lceil 64 / 5 \rceil = 13$ bytes and a row of 128 takes 26:
#   $2 \cdot ((192 + 64 + 128) \cdot 13 + 64 \cdot 26) = 13\,312$.
# - Each of the $2 \cdot (192 + 64 + 128 + 64) = 896$ rows has a scale and a bias, both `float32`: 7,168 bytes.
# - Then: patch embedding, 16 positions, norms, head.
#
# **Predict** the size of the file of a "1.58-bit" network with 67,000 or so numbers: 13 kB? 20 kB? 30 kB?

# %%
rows_of_64, rows_of_128 = 192 + 64 + 128, 64
weights = 2 * (rows_of_64 * 64 + rows_of_128 * 128)
base3 = 2 * (tb.quant.packed_nbytes((rows_of_64, 64), "base3") + tb.quant.packed_nbytes((rows_of_128, 128), "base3"))
print(f"{weights} weights; {weights * math.log2(3) / 8:.0f} bytes in theory, {base3} in base 3")
assert weights == 65_536 and base3 == 13_312

# %% [markdown]
# ## 2. Train, save, load, ask again

# %%
digits = tb.data.load_digits()
common = {"dim": 64, "depth": 2, "heads": 4, "mlp_ratio": 2, "lr": 5e-3, "verbose": 0, "random_state": 0}


def fit(**options):
    return tb.ViT(**common, **options).fit(digits.X_train, digits.y_train)


models = {"32 bits": fit(bits=32, epochs=8)}
for name, bits in {"1.58 bits": 1.58, "1 bit": 1}.items():
    models[name] = fit(bits=bits, epochs=4, init_from=models["32 bits"], distill_from=models["32 bits"])

paths = {}
for name, model in models.items():
    low = name != "32 bits"
    paths[name, "full"] = folder / f"{name}.safetensors"
    model.save(paths[name, "full"])
    if low:
        paths[name, "packed"] = folder / f"{name}-packed.safetensors"
        model.save(paths[name, "packed"], packed=True)
        paths[name, "half"] = folder / f"{name}-half.safetensors"
        model.save(paths[name, "half"], packed=True, half=True)

# %% [markdown]
# `packed=True` writes bytes instead of latent weights. `half=True` also rounds what stays in floats to `float16`.
# **Predict**: which of the loaded models give *exactly* the logits of the model in memory?

# %%
table = []
for (name, kind), path in paths.items():
    loaded = tb.load(path)
    logits, expected = loaded.decision_function(digits.X_test), models[name].decision_function(digits.X_test)
    count = tb.quant.describe(models[name].model_)[-1].weights
    size = path.stat().st_size
    accuracy = loaded.score(digits.X_test, digits.y_test)
    table.append((name, kind, size, 8 * size / count, accuracy, (logits == expected).all()))
    if kind != "half":
        assert (logits == expected).all()
    else:
        assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.98

print("weights    file      bytes   bits a number   test accuracy   same logits, bit for bit")
for name, kind, size, bits, accuracy, same in table:
    print(f"{name:10} {kind:7} {size:7} {bits:15.2f} {accuracy:15.3f}   {'yes' if same else 'no'}")

# %% [markdown]
# Two surprises. The *full* file of a ternary network is as large as that of 32 bits: it holds the latent weights, from
# which training can go on. And the packed file of the "1-bit" network takes several bits for every number. Where are
# they?

# %%
parts = {"codes of low-bit weights": {}, "their scales": {}, "other floats": {}, "names and configuration": {}}
for name in ("1.58 bits", "1 bit"):
    arrays, _ = files.read_safetensors(paths[name, "packed"])
    sizes = dict.fromkeys(parts, 0)
    for key, array in arrays.items():
        kind = {"packed": "codes of low-bit weights", "scale": "their scales"}.get(key.split(".")[-1], "other floats")
        sizes[kind] += array.nbytes
    sizes["names and configuration"] = paths[name, "packed"].stat().st_size - sum(sizes.values())
    for kind, size in sizes.items():
        parts[kind][name] = size
    print(name, sizes)

assert parts["codes of low-bit weights"] == {"1.58 bits": base3, "1 bit": weights // 8}
assert parts["their scales"]["1 bit"] == 4 * 896

figure = new_figure(8, 2.6)
ax = figure.subplots()
start = np.zeros(2)
for i, (kind, sizes) in enumerate(parts.items()):
    values = np.array(list(sizes.values())) / 1000
    ax.barh(list(sizes), values, left=start, color=PALETTE[i], label=kind)
    start += values
ax.set(xlabel="kB in the file", ylim=(1.5, -0.5))
ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.3), ncols=4, frameon=False)
figure

# %% [markdown]
# The codes are the smaller part! In a network this small, "1 bit" is a statement about a quarter of the file. It gets
# better with size, because matrices grow with the square of `dim`. **Predict** the bits a number for 2.7 million
# weights:

# %%
print("dim 192, depth 9, 32 x 32 pixels:")
large = {}
for bits in (32, 1.58, 1):
    rng = np.random.default_rng(0)
    network = tb.models.VisionTransformer(32, 4, 3, 10, dim=192, depth=9, heads=3, mlp_ratio=2, bits=bits, rng=rng)
    count = tb.quant.describe(network)[-1].weights
    for half in (False, True) if bits < 32 else (False,):
        path = folder / "large.safetensors"
        tb.io.save_model(path, network, packed=bits < 32, half=half)
        large[bits, half] = 8 * path.stat().st_size / count
        note = ", half=True" if half else ""
        print(f"{bits:4} bits: {path.stat().st_size:9} bytes, {large[bits, half]:5.2f} bits a number{note}")
assert 1.9 < large[1.58, True] < 2.1 and 1.3 < large[1, True] < 1.5

# %% [markdown]
# When you write a paper, print this column. "Sixteen times smaller" is the ratio of the *weights*; the ratio of the
# files is what the user downloads.
#
# ## 3. What is in the file?
#
# The format is safetensors: eight bytes with the length of the header, the header as JSON, then the bytes of all
# arrays. You can read it without any library. Nothing in it can be *run*, which is why this project has no pickle.

# %%
raw = paths["1 bit", "packed"].read_bytes()
(length,) = struct.unpack("<Q", raw[:8])
header = json.loads(raw[8 : 8 + length])
print("header:", length, "bytes;", len(header) - 1, "arrays and", list(header["__metadata__"]))
entry = header["model.blocks.0.attn.proj.packed"]
begin, end = entry["data_offsets"]
print("blocks.0.attn.proj.packed:", entry)
by_hand = np.frombuffer(raw[8 + length + begin : 8 + length + end], "uint8").reshape(entry["shape"])
codes, _ = models["1 bit"].model_.blocks[0].attn.proj.codes()
assert (by_hand == tb.quant.pack(codes, "1bit")).all()
assert by_hand.shape == (64, 8)

# %% [markdown]
# ## 4. Damage
#
# Somewhere on the way a bit flips. **Predict** what a reader without a checksum would do with a flipped bit among the
# packed weights: fail, or go on? (How many bytes are impossible in the layout `"1bit"`?)

# %%
damaged = folder / "damaged.safetensors"
position = 8 + length + begin + 100
faults = {
    "one bit flipped": raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :],
    "the end is missing": raw[: len(raw) // 2],
    "another kind of file": b"PK\x03\x04" + raw[4:],
}
for what, content in faults.items():
    damaged.write_bytes(content)
    try:
        tb.load(damaged)
    except tb.io.CheckpointError as error:
        print(f"{what}: {str(error).replace(str(folder), '...')}\n")
    else:
        raise AssertionError(f"{what}: not noticed")

# %% [markdown]
# Every byte is possible in `"1bit"`, so the reader would go on, with one sign reversed, and nobody would ever know.
# Hence the sha256 over everything.
#
# And if the *writing* is cut short: power cut, full disk, Ctrl-C? The bytes go to a temporary name beside the target,
# to the disk, and only then is the file renamed, which happens whole or not at all:

# %%
print(inspect.getsource(files.replacement))
before = sorted(path.name for path in folder.iterdir())
models["1 bit"].save(paths["1 bit", "packed"], packed=True)
assert sorted(path.name for path in folder.iterdir()) == before  # no temporary file stays
assert paths["1 bit", "packed"].read_bytes() == raw  # the same model gives the same bytes

# %% [markdown]
# ## 5. ONNX: for other runtimes
#
# ONNX is a graph of standard operators. A low-bit layer keeps its bits there: weights are stored as INT2, cast to INT8,
# and multiplied by `MatMulInteger`, so that the other program sums the same whole numbers as ours. INT2 is young
# (operator set 25); `int8=True` writes the weights as bytes, four times as large, for runtimes that do not know it.
#
# **Predict**: which file is larger, the ONNX file with INT2 weights or our packed one (base 3)?

# %%
packed = models["1.58 bits"].pack()
if importlib.util.find_spec("onnx") is None:
    print('This cell needs the package onnx: pip install "tinybitvit[onnx]"')
else:
    options = {"preprocessing": packed.normalize_.to_dict()}
    for int8 in (False, True):
        target = folder / ("digits-int8.onnx" if int8 else "digits-int2.onnx")
        tb.io.export_onnx(packed.model_, target, int8=int8, **options)
        print(f"{target.name:17} {target.stat().st_size:6} bytes")
    assert (folder / "digits-int2.onnx").stat().st_size < (folder / "digits-int8.onnx").stat().st_size

if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None:
    print('To run the file here: pip install "tinybitvit[onnx]"')
else:
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "digits-int8.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": digits.X_test})
    ours = packed.decision_function(digits.X_test)
    same = float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean())
    print(f"onnxruntime {onnxruntime.__version__}: same class for {same:.1%} of {len(ours)} images")
    print(f"logits: median difference {np.median(np.abs(theirs - ours).max(axis=1)):.1e}")
    assert same > 0.98

# %% [markdown]
# Not every logit is equal to the last bit, and it cannot be: the two programs add floats in another order, a number
# that lies exactly between two codes is rounded up here and down there, and that moves a whole step. Whole numbers
# agree; floats *nearly* do.
#
# `tinybitvit export FILE --format hf` writes the layout of Hugging Face's BitNet instead.
#
# ## 6. Two files race
#
# Few bits make a small file. Do they also make a fast network? A processor has no instruction for two-bit numbers, so
# the weights are bytes again before they are multiplied. **Predict**: the same network, `dim` 192, six blocks, 32 x 32
# pixels, as a 32-bit and as a 1.58-bit ONNX file, both run by onnxruntime on one core. How many times as fast is the
# second? 0.5, 1, 2, 4 or 16?

# %%
can_run = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def session_of(source):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def shortest(functions, rounds=12):
    """The shortest time of each function in seconds, of rounds in which they take turns: CPU time of this thread, so
    that it matters less what else the computer does."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.thread_time()
            function()
            times[name].append(time.thread_time() - start)
    return {name: min(found) for name, found in times.items()}


# %%
images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype="uint8")
size = {"dim": 192, "depth": 6, "heads": 3, "mlp_ratio": 4}
if can_run:
    racers = {}
    for bits in (32, 1.58):
        network = tb.models.VisionTransformer(32, 4, bits=bits, rng=np.random.default_rng(0), **size)
        tb.io.export_onnx(network, folder / "racer.onnx", int8=True)
        racers[bits] = partial(session_of(folder / "racer.onnx").run, None, {"images": images})
    took = shortest(racers)
    print({f"{bits} bits": f"{1000 * seconds:.0f} ms" for bits, seconds in took.items()})
    print(f"the integer file is {took[32] / took[1.58]:.2f} times as fast")
else:
    print('The race needs onnx and onnxruntime: pip install "tinybitvit[onnx]"')

# %% [markdown]
# What decides it? A product of matrices (R, K) x (K, N) needs $2RKN$ operations, and moves at least its two inputs and
# its output, each number once. **By hand**, for the first layer of the MLP, 192 -> 768, and 16 images of 64 tokens:
#
# - both: $2 \cdot 1024 \cdot 192 \cdot 768 = 302$ million operations;
# - float32: $4\,(1024 \cdot 192 + 192 \cdot 768 + 1024 \cdot 768) = 4.5$ MB, so 67 operations a byte;
# - bytes in, 32-bit sums out: $1024 \cdot 192 + 192 \cdot 768 + 4 \cdot 1024 \cdot 768 = 3.5$ MB, so 87 operations a
#   byte.
#
# A core that reads B bytes and computes P operations a second reaches at most the smaller of P and B times the
# operations a byte: the *roofline* (Williams, Waterman and Patterson 2009). We measure B with a copy that fits no
# cache, and every layer's product by a graph of one operator.

# %%
LAYERS = {"qkv": (192, 576), "proj": (192, 192), "fc1": (192, 768), "fc2": (768, 192)}


def operations_a_byte(rows, K, N, whole):
    """2 R K N operations over the bytes of inputs and output; whole: uint8 by int8 into int32."""
    width = 1 if whole else 4
    return 2 * rows * K * N / (width * (rows * K + K * N) + 4 * rows * N)


def product(rows, K, N, whole):
    """The function that multiplies (rows, K) by (K, N) in onnxruntime."""
    rng, helper = np.random.default_rng(0), onnx.helper
    a, b = rng.integers(0, 255, (rows, K)), rng.integers(-1, 2, (K, N))
    a, b = (a.astype("uint8"), b.astype("int8")) if whole else (a.astype("float32"), b.astype("float32"))
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (a.dtype, "int32" if whole else "float32")]
    ends = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip("ay", kinds, strict=True)]
    node = helper.make_node("MatMulInteger" if whole else "MatMul", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [onnx.numpy_helper.from_array(b, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    run = partial(session_of(model.SerializeToString()).run, None, {"a": a})
    assert (run()[0] == a.astype("float64") @ b.astype("float64")).all()  # whole numbers: both are exact
    return run


assert round(operations_a_byte(1024, 192, 768, False)) == 67
assert round(operations_a_byte(1024, 192, 768, True)) == 87

# %%
source = np.ones(2**25, "float32")
target = np.empty_like(source)
bandwidth = 2 * source.nbytes / shortest({"copy": partial(np.copyto, target, source)}, 5)["copy"]
print(f"memory: {bandwidth / 1e9:.0f} GB/s")
points = {}
if can_run:
    for whole in (False, True):
        shapes = {(name, n): (64 * n, *shape) for name, shape in LAYERS.items() for n in (1, 16)}
        shapes["largest"] = (1024, 1536, 1536)  # as fast as it gets
        seconds = shortest({key: product(*shape, whole) for key, shape in shapes.items()})
        points[whole] = {
            key: (operations_a_byte(*shape, whole), 2 * math.prod(shape) / seconds[key])
            for key, shape in shapes.items()
        }
        print("bytes:" if whole else "floats:", f"{points[whole]['largest'][1] / 1e9:.0f} Gop/s at most")

# %%
figure = new_figure(7, 4)
ax = figure.subplots()
intensity = np.geomspace(1, 1000, 200)
for whole, found in points.items():
    name, peak = ("uint8 x int8", "float32")[not whole], max(speed for _, speed in found.values())
    ax.plot(intensity, np.minimum(peak, bandwidth * intensity) / 1e9, color=PALETTE[whole], label=f"roof: {name}")
    for n, marker in (1, "o"), (16, "s"):
        x, y = np.transpose([found[layer, n] for layer in LAYERS])
        word = "image" if n == 1 else "images"
        ax.scatter(x, y / 1e9, color=PALETTE[whole], marker=marker, label=f"layers, {n} {word}", zorder=3)
ax.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="billion operations a second")
ax.set_yticks([20, 50, 100, 200, 400], ["20", "50", "100", "200", "400"])
ax.minorticks_off()
ax.legend(fontsize=8, frameon=False)
figure

# %% [markdown]
# Where on the roof are the layers? Under its flat part, or near the corner: there the number of operations decides, not
# that of bytes, and smaller weights alone would gain next to nothing. What is gained is the *height* of the roof. A
# vector of 512 bits holds 16 floats but 64 bytes, and one instruction (VNNI on x86, `dot` on ARM) multiplies and adds
# all of them; a processor without it gains less. That is also why the file keeps activations as `uint8`: x86 has the
# instruction for bytes without a sign times bytes with one, and none for two with a sign.
#
# The race was won by less than the height of the roof. Between the products lie layer norms, softmax, GELU and the
# quantiser itself: floats in both files, and more of them in the integer one. **Estimate** from your numbers how much
# of each file's time is products, and what an infinitely fast product would bring.

# %%
if can_run:
    for bits, whole in (32, False), (1.58, True):
        speeds = [points[whole][layer, 16][1] for layer in LAYERS]
        work = [2 * 16 * 64 * math.prod(shape) for shape in LAYERS.values()]
        products = size["depth"] * sum(w / speed for w, speed in zip(work, speeds, strict=True))
        print(f"{bits:4} bits: {1000 * products:.0f} of {1000 * took[bits]:.0f} ms are products of linear layers")

# %% [markdown]
# `tb.load(path, engine="onnxruntime")` and `model.pack(engine="onnxruntime")` give a `tb.ViT` that computes its answers
# this way; [Performance](../docs/performance.md) has more sizes and other programs.
#
# ## 7. A web page
#
# The forward pass once more, in 270 lines of JavaScript, with the packed weights inside one HTML file: draw a digit,
# and three networks read it. The page asks the network for nothing, and forbids it to itself.
#
# **Predict**: how many kB do the packed weights of *all three* networks take on the page, given that it writes them as
# text, six bits a character?

# %%
page = folder / "digits.html"
text = tb.web.to_html(models, page, X=digits.X_test[:10], y=digits.y_test[:10])
arrays = sum(path.stat().st_size for (name, kind), path in paths.items() if kind == "packed" or name == "32 bits")
print(f"the three files together: {arrays / 1000:.0f} kB, as text {arrays / 750:.0f} kB")
print(f"the page, with the program: {page.stat().st_size / 1000:.0f} kB")
assert "Content-Security-Policy" in text and "default-src 'none'" in text
assert page.stat().st_size < 2 * 4 / 3 * arrays + 200_000

# %% [markdown]
# To see it, write the page to a place of your own, `tb.web.to_html(models, "digits.html")`, and open it in a browser;
# or `tinybitvit export digits.safetensors --format html --out digits.html` on the command line.

# %%
temporary.cleanup()

# %% [markdown]
# ## Exercises
#
# 1. *(by hand)* Compute the size of the packed 1-bit file from section 1's shapes: codes, scales, biases, norms, SubLN,
#    positions, patch embedding, head. Compare with the bar. What is left is the header.
# 2. *(arithmetic)* `granularity="tensor"` has one scale a matrix instead of one a row. How many bits a number does that
#    save at `dim` 64 and at 192? What might it cost? Measure the accuracy.
# 3. *(code)* Write `read_header(path)` and list all arrays of a file with shape, dtype and share of the bytes, without
#    importing `tinybitvit` or `safetensors`.
# 4. *(experiment)* Flip single bits of `model.blocks[0].attn.qkv`'s *latent* weight, of its packed byte, and of its
#    scale (the exponent!). How much does each cost in accuracy? Which numbers deserve an error-correcting code?
# 5. *(harder)* Make the "1-bit" digits network's file as small as you can without losing more than half a point: larger
#    patches, `granularity`, `half`, fewer heads, a smaller head. Report bytes, not bits.
