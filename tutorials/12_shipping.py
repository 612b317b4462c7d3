# %% [markdown]
# # 12 Shipping: your own network in a file, in ONNX, on a web page, and an honest size table
#
# The end of the course. A Vision Transformer learns, shrinks to one bit and leaves the notebook, all of it on
# operations that you wrote: as a file that you write byte by byte, as a graph for other runtimes, as a web page. And
# one question is answered that the first slide of most talks on low-bit networks gets wrong: *how large is it?*
#
# You need lesson 07. What you kept of the others is used; what is missing comes from the solutions.

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
from tinybitvit.course import answer, check, everything, keep, parts, predict, solution, unuse, use, yours
from tinybitvit.quant.watch import low_bit_layers
from tinybitvit.viz.figure import PALETTE, new_figure

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## 1. By hand: how large will it be?
#
# The network: `dim` 64, two blocks, images of 8 x 8. A block has four matrices: qkv 192 x 64, proj 64 x 64, fc1 128 x
# 64, fc2 64 x 128. A slide would say: weights times bits.

# %% kind="naive"
SHAPES = 2 * [(192, 64), (64, 64), (128, 64), (64, 128)]

weights = sum(rows * K for rows, K in SHAPES)
for bits in (32, 1.58, 1):
    print(f"{bits:4} bits: {weights} weights, {weights * bits / 8:,.0f} bytes")

# %% [markdown]
# In a file a byte holds 8 signs or, in base 3, 5 ternary codes, and each row begins a new byte. Besides, each row has a
# scale and a bias, both `float32`. At one bit: what do these weigh, compared with the codes themselves?

# %% kind="predict"
guess = predict("scales and biases, compared with the codes", choices=["a twentieth", "a quarter", "nine tenths"])


# %% kind="your-turn"
@yours("12.1")
def low_bit_bytes(shapes, n):
    """(bytes of the codes, bytes of scales and biases) of matrices of shapes [(rows, K), ...], n codes a byte."""
    # low_bit_bytes([(2, 11)], 5) gives (6, 16): three bytes a row, and 2 rows of two float32
    ...


check(low_bit_bytes)


# %% kind="solution"
@solution("12.1")
def low_bit_bytes(shapes, n):
    """(bytes of the codes, bytes of scales and biases) of matrices of shapes [(rows, K), ...], n codes a byte."""
    codes = sum(rows * -(-K // n) for rows, K in shapes)
    return codes, 8 * sum(rows for rows, _ in shapes)


# %% kind="answer"
for name, layout, n in (("1.58 bits", "base3", 5), ("1 bit", "1bit", 8)):
    codes, rest = low_bit_bytes(SHAPES, n)
    print(f"{name:9} {codes} bytes of codes, {rest} of scales and biases")
    assert codes == sum(tb.quant.packed_nbytes(shape, layout) for shape in SHAPES)
answer("scales and biases, compared with the codes", "nine tenths")
assert 0.85 < rest / codes < 0.95

# %% [markdown]
# ## 2. A network on your own operations
#
# First the library trains: a network with 32 bits, then one with a single bit that starts from it, twice, since one
# seed says little. The quantiser is lesson 05's: signs, a scale for each row, and the tent as slope.

# %%
digits = tb.data.load_digits()
common = {"dim": 64, "depth": 2, "heads": 4, "mlp_ratio": 2, "lr": 5e-3, "verbose": 0, "random_state": 0}
common |= {"label_smoothing": 0}  # the cross-entropy of lesson 04 takes labels as they are


def fit(**options):
    return tb.ViT(**{**common, **options}).fit(digits.X_train, digits.y_train)


def one_bit(start, seed=0):
    quantizer = tb.quant.find_quantizer("binary", ste="approx_sign")
    return fit(quantizer=quantizer, epochs=8, init_from=start, random_state=seed)


library = {"32 bits": fit(bits=32, epochs=8)}
library["1 bit"] = one_bit(library["32 bits"])
library["1 bit, seed 1"] = one_bit(library["32 bits"], seed=1)

# %% [markdown]
# Now the same on your operations. `everything()` collects what you kept of all lessons, and `use` puts it into the
# library. What stays is the loop of `fit` round them: batches, the schedule of lesson 08, threads. The mathematics is
# the same, and so are the random numbers; but you add up in another order, so that the last digit of some sum differs.
# After hundreds of steps: do the two 1-bit networks have the same codes? And the same accuracy?

# %% kind="predict"
guess = predict("codes that differ", choices=["none", "a few in a hundred", "one in two"])
guess = predict("accuracy", choices=["within a point", "several points apart"])

# %%
use(**everything())
models = {"32 bits": fit(bits=32, epochs=8)}
models["1.58 bits"] = fit(bits=1.58, epochs=4, init_from=models["32 bits"])
models["1 bit"] = one_bit(models["32 bits"])
once_more = one_bit(models["32 bits"], seed=1)
parts()

# %% kind="answer"
score = {}
for name, theirs in library.items():
    pair = theirs, models.get(name, once_more)
    score[name] = [100 * model.score(digits.X_test, digits.y_test) for model in pair]
    print(f"{name:13} the library's operations {score[name][0]:.1f} %, yours {score[name][1]:.1f} %")
codes = [
    np.concatenate([layer.codes()[0].ravel() for layer in low_bit_layers(model["1 bit"].model_)])
    for model in (library, models)
]
differ = float((codes[0] != codes[1]).mean())
print(f"{differ:.1%} of {len(codes[0])} codes differ")
answer("codes that differ", "a few in a hundred")
answer("accuracy", "within a point")
apart = {name: yours_ - theirs for name, (theirs, yours_) in score.items()}
assert abs(apart["32 bits"]) <= 1
assert abs(apart["1 bit"] + apart["1 bit, seed 1"]) / 2 <= 1
assert score["1 bit"][1] > 90

# %% [markdown]
# A sum in another order is off by a ten-millionth, some latent weight crosses 0 a step earlier, and from there on the
# two go their own ways: to different networks that are equally good. That is why a reproduction is judged by its
# accuracy, not by its weights.
#
# ## 3. Save, load, ask again
#
# `packed=True` writes your packed bytes instead of latent weights. `half=True` also rounds what stays in floats to
# `float16`. How large is the packed file of the 1.58-bit network, of which the slide said 13 kB? And which of the
# loaded models give *exactly* the logits of the model in memory?

# %% kind="predict"
guess = predict("the packed 1.58-bit file", "kB")
guess = predict("the same logits", choices=["all of them", "all but half=True", "only the unpacked"])

# %%
KINDS = {"full": {}, "packed": {"packed": True}, "half": {"packed": True, "half": True}}
paths = {}
for name, model in models.items():
    for kind in KINDS if name != "32 bits" else ("full",):
        paths[name, kind] = folder / f"{name}-{kind}.safetensors"
        model.save(paths[name, kind], **KINDS[kind])

# %% kind="answer"
print("weights    file     bytes   bits a number   test accuracy   same logits")
same = {}
for (name, kind), path in paths.items():
    loaded, model = tb.load(path), models[name]
    same[name, kind] = bool((loaded.decision_function(digits.X_test) == model.decision_function(digits.X_test)).all())
    size, count = path.stat().st_size, tb.quant.describe(model.model_)[-1].weights
    accuracy = loaded.score(digits.X_test, digits.y_test)
    print(f"{name:10} {kind:7} {size:6} {8 * size / count:15.2f} {accuracy:15.3f}   {same[name, kind]}")
    assert accuracy > model.score(digits.X_test, digits.y_test) - 0.01
answer("the packed 1.58-bit file", 39, paths["1.58 bits", "packed"].stat().st_size / 1000, tolerance=1, unit=" kB")
answer("the same logits", "all but half=True")
assert all(exact == (kind != "half") for (_, kind), exact in same.items())

# %% [markdown]
# Two surprises. The *full* file of a ternary network is as large as that of 32 bits: it holds the latent weights, from
# which training can go on. And the packed file of the "1-bit" network takes several bits for every number. Here they
# are:

# %% kind="see"
NAMES = {"packed": "codes", "scale": "their scales"}
where = {kind: [] for kind in ("codes", "their scales", "other floats", "header")}
for name in ("1.58 bits", "1 bit"):
    arrays, _ = files.read_safetensors(paths[name, "packed"])
    sizes = dict.fromkeys(where, 0)
    for key, array in arrays.items():
        sizes[NAMES.get(key.split(".")[-1], "other floats")] += array.nbytes
    sizes["header"] = paths[name, "packed"].stat().st_size - sum(sizes.values())
    for kind, size in sizes.items():
        where[kind].append(size)
    assert sizes["codes"] == low_bit_bytes(SHAPES, 8 if name == "1 bit" else 5)[0]
figure = new_figure(5, 3)
ax = figure.subplots()
start = np.zeros(2)
for i, (kind, sizes) in enumerate(where.items()):
    ax.barh(["1.58 bits", "1 bit"], np.array(sizes) / 1000, left=start, color=PALETTE[i], label=kind)
    start += np.array(sizes) / 1000
ax.set(xlabel="kB in the file", ylim=(1.5, -0.5))
ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2, frameon=False)
figure

# %% [markdown]
# The codes are the smaller part! In a network this small, "1 bit" is a statement about a quarter of the file. It gets
# better with size, because matrices grow with the square of `dim`. A network of `dim` 192 has 2.7 million weights. How
# many bits does each of its numbers take in the packed 1.58-bit file?

# %% kind="predict"
guess = predict("bits a number in the large 1.58-bit file", "bits")

# %%
large = {}
for bits in (32, 1.58, 1):
    rng = np.random.default_rng(0)
    network = tb.models.VisionTransformer(32, 4, 3, 10, dim=192, depth=9, heads=3, mlp_ratio=2, bits=bits, rng=rng)
    count = tb.quant.describe(network)[-1].weights
    for half in (False, True) if bits < 32 else (False,):
        tb.io.save_model(folder / "large.safetensors", network, packed=bits < 32, half=half)
        large[bits, half] = 8 * (folder / "large.safetensors").stat().st_size / count

# %% kind="answer"
for (bits, half), taken in large.items():
    print(f"{bits:4} bits{', half=True' if half else '':11} {taken:6.2f} bits a number")
answer("bits a number in the large 1.58-bit file", 2.4, large[1.58, False], tolerance=0.06, unit=" bits")
assert 1.9 < large[1.58, True] < 2.1 and 1.3 < large[1, True] < 1.5

# %% [markdown]
# When you write a paper, print this column. "Sixteen times smaller" is the ratio of the *weights*; the ratio of the
# files is what the user downloads.
#
# ## 4. Your own file
#
# What would you write first? Names and numbers as text: anybody can read it, and nothing in it can be *run*. (Python's
# pickle can run anything on loading, so no model should travel that way.) How large is the packed 1-bit network then,
# compared with its file of above?

# %% kind="predict"
guess = predict("as JSON text, compared with the file", choices=["equal", "2 times as large", "4 times as large"])

# %% kind="naive"
arrays, _ = files.read_safetensors(paths["1 bit", "packed"])
as_text = json.dumps({name: array.tolist() for name, array in arrays.items()})
print("text:", as_text[:60], "...")

# %% kind="answer"
times = len(as_text) / paths["1 bit", "packed"].stat().st_size
print(f"{len(as_text)} bytes, {times:.1f} times the file")
answer("as JSON text, compared with the file", "4 times as large")
assert 3 < times < 5

# %% [markdown]
# A `float32` is 4 bytes, and its text about 20. So: text for what is small, bytes for the numbers. The format
# **safetensors** is eight bytes with the length of a header (lowest byte first), the header as JSON, then the bytes of
# all arrays, one after the other. The header has an entry for each array, and texts under `"__metadata__"`:
#
#     {"__metadata__": {"by": "me"}, "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
#
# Offsets count from the end of the header. `dtype` is F, U or I for floats, whole numbers without and with a sign, and
# the number of bits.


# %% kind="your-turn"
@yours("12.2")
def file_bytes(arrays, text):
    """The bytes of a safetensors file: arrays {name: array}, text {str: str} for "__metadata__"."""
    # file_bytes({"w": np.zeros(2, "float32")}, {})[:8] is the length of the header as struct.pack("<Q", length)
    header, end = {"__metadata__": text}, 0
    ...  # array.dtype.kind, array.itemsize, array.nbytes, array.tobytes()


check(file_bytes)


# %% kind="solution"
@solution("12.2")
def file_bytes(arrays, text):
    """The bytes of a safetensors file: arrays {name: array}, text {str: str} for "__metadata__"."""
    header, end = {"__metadata__": text}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind = f"{array.dtype.kind.upper()}{8 * array.itemsize}"
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + b"".join(array.tobytes() for array in arrays.values())


# %% [markdown]
# Write your 1-bit network with it. The text is one that the library asks for: what network it is, and a checksum.

# %%
own_file = folder / "mine.safetensors"
own_file.write_bytes(file_bytes(arrays, files.read_header(paths["1 bit", "packed"])))
loaded = tb.load(own_file)
print(f"{own_file.name}, {own_file.stat().st_size} bytes: accuracy {loaded.score(digits.X_test, digits.y_test):.3f}")
print(inspect.getsource(files.tensor_bytes))

# %% kind="see"
assert (loaded.decision_function(digits.X_test) == models["1 bit"].decision_function(digits.X_test)).all()
raw = own_file.read_bytes()
(length,) = struct.unpack("<Q", raw[:8])
entry = json.loads(raw[8 : 8 + length])["model.blocks.0.attn.proj.packed"]
begin, end = entry["data_offsets"]
print("blocks.0.attn.proj.packed:", entry)
assert end - begin == 64 * 8  # 64 rows of 64 signs

# %% [markdown]
# The library leaves this to the format's own package, which also sorts the arrays so that each begins at a multiple of
# its item size: some readers map the file into memory and need that.
#
# ## 5. Damage
#
# Somewhere on the way a bit of the packed weights flips. What would a reader without a checksum do: fail, or go on
# with a wrong network? Think of how many of the 256 values of a byte are impossible in the layout `"1bit"`.

# %% kind="predict"
guess = predict("a reader without a checksum", choices=["it fails", "it goes on"])

# %%
position = 8 + length + begin + 100
faults = {
    "one bit flipped": raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :],
    "the end is missing": raw[: len(raw) // 2],
    "another kind of file": b"PK\x03\x04" + raw[4:],
}
for what, content in faults.items():
    (folder / "damaged.safetensors").write_bytes(content)
    try:
        tb.load(folder / "damaged.safetensors")
    except tb.io.CheckpointError as error:
        print(f"{what}: {str(error).replace(str(folder), '...')}\n")
    else:
        raise AssertionError(f"{what}: not noticed")

# %% kind="answer"
byte = raw[position]
signs = [tb.quant.unpack(np.array([[b]], "uint8"), "1bit", (1, 8)) for b in (byte, byte ^ 1)]
print(f"the byte holds {signs[0][0].astype(int)}, damaged {signs[1][0].astype(int)}")
answer("a reader without a checksum", "it goes on")
assert (signs[0] != signs[1]).sum() == 1

# %% [markdown]
# Every byte is eight valid signs. The reader would go on with one of them reversed, and nobody would ever know. Hence
# the **checksum**, a sha256 over all values.
#
# And if the *writing* is cut short: power cut, full disk, Ctrl-C? The bytes go to a temporary name beside the target,
# to the disk, and only then is the file renamed, which happens whole or not at all:

# %%
print(inspect.getsource(files.replacement))

# %% kind="see"
before = sorted(path.name for path in folder.iterdir())
first = paths["1 bit", "packed"].read_bytes()
models["1 bit"].save(paths["1 bit", "packed"], packed=True)
assert sorted(path.name for path in folder.iterdir()) == before, "no temporary file stays"
assert paths["1 bit", "packed"].read_bytes() == first, "the same model gives the same bytes"
print("saved twice: the same bytes, and no temporary file")

# %% [markdown]
# ## 6. ONNX: for other runtimes
#
# **ONNX** is a graph of standard operators. A low-bit layer stays one there: 8-bit activations times weights of -1, 0
# and 1, summed as whole numbers by the operator `MatMulInteger`. An x86 processor has a fast instruction for bytes
# *without* a sign times bytes *with* one, and none for two with a sign. But a code is -127 to 127! So it is stored as
# u = code + 128: 128 is the **zero point**. Codes 3 and -2, weights 1 and 1: the sum is 1, but 131 + 126 = 257.
#
# First plainly, in NumPy, with 300 codes of 127 and weights of 1. The codes' sum is 300 x 127 = 38,100. What comes out?

# %% kind="predict"
guess = predict("300 bytes times 300 bytes, plainly", choices=["38,100", "76,500", "neither"])

# %% kind="naive"
u, w = np.full((1, 300), 127 + 128, "uint8"), np.ones((300, 1), "int8")
plainly = u @ w

# %% kind="answer"
print(f"{plainly[0, 0]} as {plainly.dtype}: 300 x 255 = 76,500 has no room in 16 bits")
answer("300 bytes times 300 bytes, plainly", "neither")
assert plainly.dtype == "int16" and plainly[0, 0] == 76_500 - 2**16

# %% [markdown]
# Two things are to be mended: the room for the sums, and the 128 too many in each code. Do not subtract it from u: that
# would need a sign. By how much is the whole sum too large?


# %% kind="your-turn"
@yours("12.3")
def byte_product(u, w, zero):
    """(u - zero) @ w, from uint8 u (R, K) and int8 w (K, N), with sums of 32 bits: int32 (R, N)."""
    # byte_product of u = [[131, 126]], w = [[1], [1]], zero = 128 is [[1]]
    ...


check(byte_product)


# %% kind="solution"
@solution("12.3")
def byte_product(u, w, zero):
    """(u - zero) @ w, from uint8 u (R, K) and int8 w (K, N), with sums of 32 bits: int32 (R, N)."""
    return u.astype("int32") @ w.astype("int32") - zero * w.sum(axis=0, dtype="int32")


# %% [markdown]
# The correction costs one number a column, and depends on the weights alone. Weights are stored as INT2 in the file,
# four to a byte; INT2 is young (operator set 25), so `int8=True` writes bytes for runtimes that do not know it. Which
# file of the 1.58-bit network is larger: ONNX with INT2 weights, or our packed one?

# %% kind="predict"
guess = predict("the larger file", choices=["the ONNX file", "our packed file"])

# %%
unuse()  # from here on other programs compute
HAS_ONNX = importlib.util.find_spec("onnx") is not None
can_run = HAS_ONNX and importlib.util.find_spec("onnxruntime") is not None
packed = models["1.58 bits"].pack()
onnx_bytes = {}
if HAS_ONNX:
    for int8 in (False, True):
        target = folder / ("digits-int8.onnx" if int8 else "digits-int2.onnx")
        tb.io.export_onnx(packed.model_, target, int8=int8, preprocessing=packed.normalize_.to_dict())
        onnx_bytes[target.name] = target.stat().st_size
if can_run:
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "digits-int8.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": digits.X_test})

# %% kind="answer"
ours = paths["1.58 bits", "packed"].stat().st_size
print(f"our packed file {ours} bytes", onnx_bytes or 'the others need onnx: pip install "tinybitvit[onnx]"')
answer("the larger file", "the ONNX file")
assert all(size > ours for size in onnx_bytes.values())
if can_run:
    logits = packed.decision_function(digits.X_test)
    same_class = float((theirs.argmax(axis=1) == logits.argmax(axis=1)).mean())
    print(f"onnxruntime {onnxruntime.__version__}: same class for {same_class:.1%} of {len(logits)} images")
    print(f"logits: median difference {np.median(np.abs(theirs - logits).max(axis=1)):.1e}")
    assert same_class > 0.98

# %% [markdown]
# The graph itself takes its bytes, in a network this small. And not every logit is equal to the last bit, nor can it
# be: the two programs add floats in another order, a number that lies exactly between two codes is rounded up here and
# down there, and that moves a whole step. Whole numbers agree; floats *nearly* do.
#
# `tinybitvit export FILE --format hf` writes the layout of Hugging Face's BitNet instead.
#
# ## 7. Two files race
#
# Few bits make a small file. Do they also make a fast network? The same network, `dim` 192, six blocks, 32 x 32 pixels,
# as a 32-bit and as a 1.58-bit ONNX file, both run by onnxruntime on one core. The weights are bytes again before they
# are multiplied. How fast is the second?

# %% kind="predict"
guess = predict("the 1.58-bit file runs", choices=["half as fast", "about twice as fast", "16 times as fast"])


# %%
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
racers, took = {}, {}
if can_run:
    for bits in (32, 1.58):
        network = tb.models.VisionTransformer(32, 4, bits=bits, rng=np.random.default_rng(0), **size)
        tb.io.export_onnx(network, folder / "racer.onnx", int8=True)
        racers[bits] = partial(session_of(folder / "racer.onnx").run, None, {"images": images})
    took = shortest(racers)

# %% kind="answer"
answer("the 1.58-bit file runs", "about twice as fast")  # by a processor with an instruction for bytes
if took:
    print({f"{bits} bits": f"{1000 * seconds:.0f} ms" for bits, seconds in took.items()})
    print(f"here the integer file is {took[32] / took[1.58]:.2f} times as fast")
else:
    print('The race needs onnx and onnxruntime: pip install "tinybitvit[onnx]"')

# %% [markdown]
# What decides it? A product of matrices (R, K) x (K, N) needs $2RKN$ operations, and moves at least its two inputs and
# its output, each number once. The first layer of the MLP, 192 -> 768, for 16 images of 64 tokens:
#
# - both: $2 \cdot 1024 \cdot 192 \cdot 768 = 302$ million operations;
# - float32: $4\,(1024 \cdot 192 + 192 \cdot 768 + 1024 \cdot 768) = 4.5$ MB, so 67 operations a byte;
# - bytes in, 32-bit sums out: $1024 \cdot 192 + 192 \cdot 768 + 4 \cdot 1024 \cdot 768 = 3.5$ MB, so 87.
#
# A core that reads B bytes a second and computes at most P operations a second reaches the smaller of P and B times
# the operations a byte: the **roofline** (Williams, Waterman and Patterson 2009).


# %% kind="your-turn"
@yours("12.4")
def roof(R, K, N, width, bandwidth, peak):
    """The most operations a second of (R, K) x (K, N), inputs of width bytes a number, outputs of 4."""
    # roof(1024, 192, 768, 4, 1e9, 1e12) is about 67e9, and at most 5e9 where the peak is 5e9
    ...


check(roof)


# %% kind="solution"
@solution("12.4")
def roof(R, K, N, width, bandwidth, peak):
    """The most operations a second of (R, K) x (K, N), inputs of width bytes a number, outputs of 4."""
    moved = width * (R * K + K * N) + 4 * R * N
    return min(peak, bandwidth * 2 * R * K * N / moved)


# %% [markdown]
# Measure B with a copy that fits no cache, P with a large product, and each layer's product as a graph of one operator.
# Then: which side of the roof are the layers of the network on?

# %% kind="predict"
guess = predict("what limits the layers", choices=["the bytes moved", "the computing"])


# %%
def operator(rows, K, N, whole):
    """The function that multiplies (rows, K) by (K, N) in onnxruntime, and what the product should be."""
    rng, helper = np.random.default_rng(0), onnx.helper
    a, b = rng.integers(0, 255, (rows, K)), rng.integers(-1, 2, (K, N))
    a, b = (a.astype("uint8"), b.astype("int8")) if whole else (a.astype("float32"), b.astype("float32"))
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (a.dtype, "int32" if whole else "float32")]
    ends = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip("ay", kinds, strict=True)]
    constants = {"b": b, "z": np.array(128, "uint8")} if whole else {"b": b}
    node = helper.make_node("MatMulInteger" if whole else "MatMul", ["a", *constants], ["y"])
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    run = partial(session_of(model.SerializeToString()).run, None, {"a": a})
    if rows * K * N < 1e7:
        assert (run()[0] == (byte_product(a, b, 128) if whole else a @ b)).all()  # yours, with the zero point
    return run


# %%
LAYERS = {"qkv": (192, 576), "proj": (192, 192), "fc1": (192, 768), "fc2": (768, 192)}

source = np.ones(2**25, "float32")
target = np.empty_like(source)
bandwidth = 2 * source.nbytes / shortest({"copy": partial(np.copyto, target, source)}, 5)["copy"]
print(f"memory: {bandwidth / 1e9:.0f} GB/s")
speeds, peaks = {}, {}
for whole in (False, True) if can_run else ():
    shapes = {(name, n): (64 * n, *shape) for name, shape in LAYERS.items() for n in (1, 16)}
    shapes["largest"] = (1024, 1536, 1536)  # as fast as it gets
    seconds = shortest({key: operator(*shape, whole) for key, shape in shapes.items()})
    speeds[whole] = {key: 2 * math.prod(shape) / seconds[key] for key, shape in shapes.items()}
    peaks[whole] = max(speeds[whole].values())
    print("bytes:" if whole else "floats:", f"{peaks[whole] / 1e9:.0f} Gop/s at most")

# %% kind="answer"
answer("what limits the layers", "the computing")
for whole, peak in peaks.items():
    flat = [roof(64 * n, *s, 1 if whole else 4, bandwidth, peak) == peak for s in LAYERS.values() for n in (1, 16)]
    print(f"{'bytes' if whole else 'floats'}: {sum(flat)} of {len(flat)} layers are under the flat part of the roof")

# %% kind="see"
figure = new_figure(5, 4.2)
ax = figure.subplots()
for whole, found in speeds.items():
    name, width = ("uint8 x int8", 1) if whole else ("float32", 4)
    R, K = np.geomspace(1, 3e3, 200), 3000
    bound = [roof(r, K, K, width, bandwidth, peaks[whole]) for r in R]
    ax.plot([roof(r, K, K, width, 1, math.inf) for r in R], np.array(bound) / 1e9, color=PALETTE[whole], label=name)
    for n, marker in (1, "o"), (16, "s"):
        x = [roof(64 * n, *shape, width, 1, math.inf) for shape in LAYERS.values()]
        y = [found[layer, n] / 1e9 for layer in LAYERS]
        label = f"layers, {n} image{'s' * (n > 1)}"
        ax.scatter(x, y, color=PALETTE[whole], marker=marker, label=label, zorder=3)
ax.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="billion operations a second")
ax.set_yticks([20, 50, 100, 200, 400], ["20", "50", "100", "200", "400"])
ax.minorticks_off()
ax.set_xlim(2, 1000)
ax.legend(fontsize=8, frameon=False)
figure

# %% [markdown]
# Near the corner or under the flat part: there the number of operations decides, not that of bytes, and smaller weights
# alone would gain next to nothing. What is gained is the *height* of the roof. A vector of 512 bits holds 16 floats but
# 64 bytes, and one instruction (VNNI on x86, `dot` on ARM) multiplies and adds all of them; a processor without it
# gains less.
#
# The race was won by less than the height of the roof. Between the products lie layer norms, softmax, GELU and the
# quantiser itself: floats in both files, and more of them in the integer one. From the numbers below: what would an
# infinitely fast product bring?

# %% kind="see"
for bits, whole in ((32, False), (1.58, True)) if can_run else ():
    work = {layer: 2 * 16 * 64 * math.prod(shape) for layer, shape in LAYERS.items()}
    products = size["depth"] * sum(w / speeds[whole][layer, 16] for layer, w in work.items())
    print(f"{bits:4} bits: {1000 * products:.0f} of {1000 * took[bits]:.0f} ms are products of linear layers")

# %% [markdown]
# `tb.load(path, engine="onnxruntime")` and `model.pack(engine="onnxruntime")` give a `tb.ViT` that computes its answers
# this way; [Performance](../docs/performance.md) has more sizes and other programs.
#
# ## 8. A web page
#
# The forward pass once more, as a small program in JavaScript, with the packed weights inside one HTML file: draw a
# digit, and your three networks read it. The page asks the network for nothing, and forbids it to itself.
#
# The weights are bytes, but HTML is text, so they are written six bits a character. By how much do they grow?

# %% kind="predict"
guess = predict("bytes as text grow by", "%")

# %%
page = folder / "digits.html"
text = tb.web.to_html(models, page, X=digits.X_test[:10], y=digits.y_test[:10])

# %% kind="answer"
answer("bytes as text grow by", 33, measured=100 * (8 / 6 - 1), tolerance=0.5, unit="%")
arrays_on_page = sum(p.stat().st_size for (name, kind), p in paths.items() if kind == "packed" or name == "32 bits")
print(f"the three files: {arrays_on_page / 1000:.0f} kB, as text {arrays_on_page / 750:.0f} kB")
print(f"the page, with the program: {page.stat().st_size / 1000:.0f} kB")
assert "Content-Security-Policy" in text and "default-src 'none'" in text
assert page.stat().st_size < 2 * 4 / 3 * arrays_on_page + 200_000

# %% [markdown]
# To see it, write the page to a place of your own, `tb.web.to_html(models, "digits.html")`, and open it in a browser;
# or `tinybitvit export digits.safetensors --format html --out digits.html` on the command line.
#
# ## What you take along
#
# The bits of the weights are not the bytes of the file: scales, norms, embeddings and names count, most in small
# networks. A file is a header and bytes, a checksum and a rename. Few bits are fast where a processor has an
# instruction for them, and where the products are most of the time.
#
# **You can now**: state the size of a low-bit network so that nobody has to correct it; write and read a model file
# with nothing but bytes; say from a roofline what fewer bits will bring before you measure.
#
# And the list below is the course: a Vision Transformer, its training, its one bit and its file, part by part.

# %%
temporary.cleanup()
keep(low_bit_bytes, file_bytes, byte_product, roof)
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/12](solutions/12_shipping.ipynb).
#
# 1. (20 min, by hand) Compute the size of the packed 1-bit file from its shapes: codes, scales, biases, norms, SubLN,
#    positions, patch embedding, head. What is left is the header. Hand in the table.
# 2. (15 min, measure) `granularity="tensor"` has one scale a matrix instead of one a row. How many bits a number does
#    that save at `dim` 64 and at 192? What does it cost in accuracy on the digits?
# 3. (15 min, code) Write `read_file(path)`, the inverse of `file_bytes`, with neither `tinybitvit` nor `safetensors`,
#    and list all arrays with shape, dtype and share of the bytes.
# 4. (30 min, measure) Flip single bits of `blocks.0.attn.qkv`: of its packed weights, and of its scales (the
#    exponent!). How much does each cost in accuracy? Which numbers deserve an error-correcting code?
# 5. (an evening) Make the "1-bit" digits network's file as small as you can without losing more than a point: larger
#    patches, `granularity`, `half`, a smaller head. Report bytes, not bits.
