# %% [markdown]
# # 12 Solutions of the exercises
#
# The exercises of lesson 12, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import json
import struct
import tempfile
from pathlib import Path

import numpy as np

import tinybitvit as tb
from tinybitvit import files
from tinybitvit.course import mine

file_bytes = mine("file_bytes")
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
digits = tb.data.load_digits()
common = {"dim": 64, "depth": 2, "heads": 4, "mlp_ratio": 2, "lr": 5e-3, "verbose": 0, "random_state": 0}


def fit(**options):
    return tb.ViT(**{**common, **options}).fit(digits.X_train, digits.y_train)


def save(model, half=False):
    """The file of a packed model, and its size in bytes."""
    path = folder / "model.safetensors"
    model.save(path, packed=True, half=half)
    return path, path.stat().st_size


teacher = fit(bits=32, epochs=8)
one_bit = fit(bits=1, epochs=4, init_from=teacher)

# %% [markdown]
# ## 1. Every byte
#
# Hint: go through a block in the order of the computation: norm, qkv, SubLN, proj, norm, fc1, SubLN, fc2. SubLN is the
# norm in front of proj and fc2, and has a weight alone.

# %% kind="solution"
d, blocks, rows = 64, 2, 192 + 64 + 128 + 64
table = {
    "codes": blocks * (192 * 64 + 64 * 64 + 128 * 64 + 64 * 128) // 8,
    "scales": 4 * blocks * rows,
    "biases": 4 * blocks * rows,
    "norms": 4 * (2 * blocks + 1) * 2 * d,
    "SubLN": 4 * blocks * (d + 2 * d),
    "positions": 4 * 16 * d,
    "patch embedding": 4 * (d * 4 + d),
    "head": 4 * (10 * d + 10),
}
path, whole = save(one_bit)
for what, count in table.items():
    print(f"{what:16} {count:6}")
print(f"{'header':16} {whole - sum(table.values()):6}, the rest of {whole}")
assert sum(table.values()) == files.array_bytes(path) == 27_432

# %% [markdown]
# ## 2. One scale a matrix
#
# Hint: 896 rows have a scale of 32 bits each at `dim` 64; how many are left, and over how many numbers do you spread
# what is saved? At `dim` 192 a row is three times as long.

# %% kind="solution"
tensor = fit(quantizer=tb.quant.find_quantizer("binary", granularity="tensor"), epochs=4, init_from=teacher)
small = save(tensor)[1]
count = tb.quant.describe(one_bit.model_)[-1].weights
print(f"dim 64: {8 * (whole - small) / count:.2f} bits a number less in the file")
print(f"by hand, dim 64: {32 * (896 - 8) / count:.2f}; dim 192, nine blocks: {32 * 9 * (1344 - 4) / 2_700_000:.2f}")
for name, model in {"row": one_bit, "tensor": tensor}.items():
    print(f"one scale a {name:6} accuracy {model.score(digits.X_test, digits.y_test):.3f}")
assert abs(8 * (whole - small) - 32 * 888) < 4_000  # the names in the header change a little

# %% [markdown]
# Half a bit in a small network, an eighth in a larger one. The accuracies differ by less than two seeds do: on the
# digits the scales of the rows are cheap to give up.
#
# ## 3. Reading it again
#
# Hint: `struct.unpack("<Q", raw[:8])`; the names of the dtypes map to NumPy's by "F" -> "f", "U" -> "u", "I" -> "i" and
# the bits divided by 8.


# %% kind="solution"
def read_file(path):
    """(arrays, text) of a safetensors file."""
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    text, arrays = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = f"<{entry['dtype'][0].lower()}{int(entry['dtype'][1:]) // 8}"
        arrays[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
    return arrays, text


path, whole = save(one_bit)
arrays, text = read_file(path)
for name, array in sorted(arrays.items(), key=lambda item: -item[1].nbytes)[:6]:
    print(f"{name:32} {array.dtype!s:8} {array.shape!s:12} {array.nbytes / whole:.1%}")
again = folder / "again.safetensors"
again.write_bytes(file_bytes(arrays, text))
assert (tb.load(again).predict(digits.X_test) == one_bit.predict(digits.X_test)).all()

# %% [markdown]
# ## 4. Which bits matter?
#
# Hint: read the arrays with `files.read_safetensors`, change a copy of one, and write them with
# `files.write_safetensors`, which makes the checksum anew. A float32 seen as `uint32` has its sign in bit 31, its
# exponent in 30 to 23.


# %% kind="solution"
def accuracy_after(name, bit, place=5):
    """The accuracy with one bit flipped in the array `name`; 0 where the network computes no numbers any more."""
    arrays, metadata = files.read_safetensors(path)
    found = arrays[name].copy()
    bits = found.reshape(-1).view("uint8" if found.dtype == np.uint8 else "uint32")
    bits[place] ^= bits.dtype.type(1 << bit)
    files.write_safetensors(folder / "flipped.safetensors", {**arrays, name: found}, metadata)
    try:
        with np.errstate(all="ignore"):
            return tb.load(folder / "flipped.safetensors").score(digits.X_test, digits.y_test)
    except ValueError as error:
        print(f"bit {bit}: {str(error).partition(':')[0]}")
        return 0.0


before = one_bit.score(digits.X_test, digits.y_test)
qkv = "model.blocks.0.attn.qkv"
costs = {"a packed weight": before - accuracy_after(f"{qkv}.packed", 3)}
for bit, what in ((22, "highest of the fraction"), (31, "sign"), (30, "highest of the exponent")):
    costs[f"a scale, bit {bit}, {what}"] = before - accuracy_after(f"{qkv}.scale", bit, place=130)
for what, cost in costs.items():
    print(f"{what:44} costs {100 * cost:5.1f} points")
assert abs(costs["a packed weight"]) < 0.02
assert max(costs.values()) == costs["a scale, bit 30, highest of the exponent"] > 0.3

# %% [markdown]
# A sign among 64 of a row hardly counts, and neither does most of a scale. But the exponent's highest bit multiplies a
# row by $2^{128}$ and takes the network with it. A few bits of each float deserve protection, the codes none.
#
# ## 5. As small as you can
#
# Hint: look at the table of exercise 1 from above. What is not codes? `half` halves all floats; one scale a matrix
# removes the scales; a larger patch needs fewer positions; one block less needs half of nearly everything.

# %% kind="solution"
tensor_signs = tb.quant.find_quantizer("binary", granularity="tensor")
small_teacher = fit(bits=32, epochs=8, depth=1, mlp_ratio=1)
tries = {
    "as in the lesson": (one_bit, False),
    "half": (one_bit, True),
    "half, one scale a matrix": (tensor, True),
    "the same, one block, narrow MLP": (
        fit(quantizer=tensor_signs, epochs=12, depth=1, mlp_ratio=1, init_from=small_teacher),
        True,
    ),
}
sizes = {}
for what, (model, half) in tries.items():
    path, sizes[what] = save(model, half)
    print(f"{what:32} {sizes[what]:6} bytes, accuracy {tb.load(path).score(digits.X_test, digits.y_test):.3f}")
assert sizes["the same, one block, narrow MLP"] < 0.5 * sizes["as in the lesson"]
temporary.cleanup()

# %% [markdown]
# The header is by now the largest part: names are text. Shorter names, or no `extra` about the training, would be the
# next thousand bytes.
