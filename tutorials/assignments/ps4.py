# %% [markdown]
# # Problem set 4: packing
#
# A weight of -1, 0 or +1 that lies in a `float32` array occupies 32 bits, however the paper calls it. In this set you
# save the bits for real: you pack weights into bytes, count every byte, multiply without multiplying, and put your
# bytes into a Vision Transformer. You need tutorial 07.
#
# **How it works.** Replace each `raise NotImplementedError()` by your answer. The line `tb.course.score(...)` below it
# checks it at once, shows an input for which something is wrong, and gives a point for each check that passes. Where
# another cell follows, it gives the last point, for inputs that you do not see. Leave these cells as they are. A
# mistake costs its own task and no other. Two tasks have no recipe: **find the method**. Hand in this notebook.

# %%
import numpy as np

import tinybitvit as tb

# %% [markdown]
# ## Task 1: four weights in a byte (4 points)
#
# A ternary code -1, 0 or +1 becomes a digit: $d = t + 1$, so 0, 1 or 2. A digit needs two bits, and a byte has eight:
#
# $$\text{byte} = d_0 + 4 d_1 + 16 d_2 + 64 d_3$$
#
# The codes $(+1, 0, -1, -1)$ have the digits $(2, 1, 0, 0)$, and the byte is $2 + 4 = 6$.
#
# What if a row does not fill its last byte? Fill up with weights that do nothing: code 0, digit 1. The row
# $(+1, -1, -1, -1, +1)$ becomes two bytes: digits $(2, 0, 0, 0)$ are 2, and $(2, 1, 1, 1)$ are $2 + 4 + 16 + 64 = 86$.
#
# Write it for codes (out, K), of any dtype; the result is `uint8` of shape (out, number of bytes in a row).


# %% nbgrader={"grade_id": "ps4-1", "solution": true}
def pack_2bit(codes):
    ### BEGIN SOLUTION
    out, width = codes.shape
    digits = np.ones((out, -(-width // 4) * 4), "uint8")
    digits[:, :width] = codes + 1
    return (digits.reshape(out, -1, 4) * np.array([1, 4, 16, 64])).sum(axis=-1).astype("uint8")
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps4-1-checks", "grade": true, "points": 3}
tb.course.score("ps4.1", pack_2bit)

# %% nbgrader={"grade_id": "ps4-1-more", "grade": true, "points": 1}
packed = pack_2bit(np.array([[1, 0, -1, -1]]))
assert packed.dtype == "uint8", f"bytes are uint8, not {packed.dtype}"
assert np.array_equal(packed, [[6]]), f"it gives {packed}"
packed = pack_2bit(np.array([[1, -1, -1, -1, 1]]))
assert np.array_equal(packed, [[2, 86]]), f"it gives {packed}"
### BEGIN HIDDEN TESTS
for width in (1, 2, 3, 4, 7, 8, 33):
    codes = np.random.default_rng(width).integers(-1, 2, (5, width)).astype("float32")
    packed = pack_2bit(codes)
    assert packed.dtype == "uint8", "uint8 for float codes"
    assert np.array_equal(packed, tb.quant.pack(codes, "2bit")), f"rows of {width} weights"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2: and back (4 points)
#
# The byte 6 is $2 + 4 \cdot 1$. Its digits come back one after the other: 6 modulo 4 is 2, then 6 // 4 = 1, modulo 4 is
# 1, then 0 and 0. (Programmers write `packed >> 2 & 3` for `packed // 4 % 4`.) The codes are the digits minus 1:
# $(+1, 0, -1, -1)$. Beware: `uint8` has no negative numbers, 0 - 1 is 255; convert before you subtract.
#
# `width` is the number of weights in a row, so that the filling can be dropped. Return `int8` of shape (out, width).


# %% nbgrader={"grade_id": "ps4-2", "solution": true}
def unpack_2bit(packed, width):
    ### BEGIN SOLUTION
    digits = packed[:, :, None] // np.array([1, 4, 16, 64]) % 4
    return (digits.reshape(len(packed), -1)[:, :width] - 1).astype("int8")
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps4-2-checks", "grade": true, "points": 3}
tb.course.score("ps4.2", unpack_2bit)

# %% nbgrader={"grade_id": "ps4-2-more", "grade": true, "points": 1}
codes = unpack_2bit(np.array([[6]], "uint8"), 4)
assert np.array_equal(codes, [[1, 0, -1, -1]]), f"it gives {codes}"
codes = unpack_2bit(np.array([[2, 86]], "uint8"), 5)
assert codes.shape == (1, 5), "the filling is dropped"
### BEGIN HIDDEN TESTS
for width in (1, 3, 4, 6, 21):
    expected = np.random.default_rng(width).integers(-1, 2, (4, width)).astype("int8")
    codes = unpack_2bit(tb.quant.pack(expected, "2bit"), width)
    assert codes.dtype == "int8", f"codes are int8, not {codes.dtype}"
    assert np.array_equal(codes, expected), f"rows of {width} weights"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3: count (3 points)
#
# Two bits a weight? Not quite. A layer with 3 outputs and 5 inputs has 15 weights. Its rows take 2 bytes each, and
# every row needs its scale, a `float32` of 4 bytes: $3 \cdot 2 + 3 \cdot 4 = 18$ bytes, or $18 \cdot 8 / 15 = 9.6$
# bits a weight! With 192 inputs it is 2.17.
#
# Write `effective_bits`: the bits that a weight really costs in a layer (out, width) whose bytes hold
# `weights_per_byte` weights each, with one `float32` scale for each row.


# %% nbgrader={"grade_id": "ps4-3", "solution": true}
def effective_bits(out, width, weights_per_byte):
    ### BEGIN SOLUTION
    bytes_in_row = -(-width // weights_per_byte) + 4
    return 8 * bytes_in_row / width
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps4-3-checks", "grade": true, "points": 2}
tb.course.score("ps4.3", effective_bits)

# %% nbgrader={"grade_id": "ps4-3-more", "grade": true, "points": 1}
assert np.isclose(effective_bits(3, 5, 4), 9.6), f"it gives {effective_bits(3, 5, 4)}"
assert np.isclose(effective_bits(192, 192, 5), 1.7917, atol=1e-4), "five weights a byte, base 3"
### BEGIN HIDDEN TESTS
for out, width, layout, per_byte in ((7, 30, "1bit", 8), (64, 100, "base3", 5), (10, 16, "2bit", 4)):
    expected = 8 * (tb.quant.packed_nbytes((out, width), layout) + 4 * out) / (out * width)
    assert np.isclose(effective_bits(out, width, per_byte), expected), f"{out} x {width}, layout {layout}"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4: multiply without multiplying (4 points)
#
# If weights and inputs are both signs, a dot product only counts: where two signs are equal their product is +1, else
# -1. For
#
# $$x = (+1, +1, -1, -1, +1), \qquad w = (+1, -1, -1, +1, +1)$$
#
# three places are equal and two differ: $x \cdot w = 3 - 2 = 1$. With $K$ places, $n$ of them different,
# $x \cdot w = K - 2 n$. Write the signs as bits (1 for +1), and *different* is what XOR says, eight places at a time:
#
# $$x \cdot w = K - 2\, \text{popcount}(x \oplus w)$$
#
# `np.packbits(x > 0, axis=-1)` makes bytes of signs and fills up the last byte with zeros, `^` is XOR, and
# `np.bitwise_count` counts the ones in each byte. Take `x` (N, K) and `w` (out, K) of signs, and return the whole
# numbers (N, out), computed with these three; each row of `x` meets each row of `w`.


# %% nbgrader={"grade_id": "ps4-4", "solution": true}
def sign_dot(x, w):
    ### BEGIN SOLUTION
    x_bits, w_bits = np.packbits(x > 0, axis=-1), np.packbits(w > 0, axis=-1)
    different = np.bitwise_count(x_bits[:, None] ^ w_bits).sum(axis=-1, dtype="int64")
    return x.shape[-1] - 2 * different
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps4-4-checks", "grade": true, "points": 3}
tb.course.score("ps4.4", sign_dot)

# %% nbgrader={"grade_id": "ps4-4-more", "grade": true, "points": 1}
y = sign_dot(np.array([[1, 1, -1, -1, 1]]), np.array([[1, -1, -1, 1, 1]]))
assert np.array_equal(y, [[1]]), f"it gives {y}"
assert sign_dot(np.ones((2, 9)), np.ones((3, 9))).shape == (2, 3), "every row with every row"
### BEGIN HIDDEN TESTS
for width in (1, 8, 9, 100, 2000):
    random = np.random.default_rng(width)
    x, w = random.choice([-1, 1], (4, width)), random.choice([-1, 1], (6, width))
    assert np.array_equal(sign_dot(x, w), x @ w.T), f"{width} signs"
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5: tighter (3 points)
#
# Two bits have four values, and a weight needs three. A byte has 256, and that is more than $3^5$.
#
# **Find the method.** Write `pack_tight` and `unpack_tight`, with the arguments of tasks 1 and 2, for which a row of K
# codes takes $\lceil K / 5 \rceil$ bytes. What a byte means is up to you: what counts is that the codes come back, and
# that no byte is wasted.


# %% nbgrader={"grade_id": "ps4-5-pack", "solution": true}
def pack_tight(codes):
    ### BEGIN SOLUTION
    out, width = codes.shape
    digits = np.ones((out, -(-width // 5) * 5), "uint8")
    digits[:, :width] = codes + 1
    return (digits.reshape(out, -1, 5) * 3 ** np.arange(5)).sum(axis=-1).astype("uint8")
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps4-5-unpack", "solution": true}
def unpack_tight(packed, width):
    ### BEGIN SOLUTION
    digits = packed[:, :, None] // 3 ** np.arange(5) % 3
    return (digits.reshape(len(packed), -1)[:, :width] - 1).astype("int8")
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps4-5-checks", "grade": true, "points": 3}
tb.course.score("ps4.5", (pack_tight, unpack_tight))

# %% [markdown]
# ## Task 6: when the counter is full (3 points)
#
# A chip that adds signs has a counter of a few bits, and a counter that is full starts again at the other end: 127 + 1
# is -128 with 8 bits. Somebody says: "8 bits suffice, for a dot product of signs is small nearly always."
#
# **Find the method.** Write `shortest_overflow`: two rows of signs `x` and `w`, as short as possible, whose dot product
# a signed counter of `bits` bits gets wrong. Return both, (K,) each.


# %% nbgrader={"grade_id": "ps4-6", "solution": true}
def shortest_overflow(bits):
    ### BEGIN SOLUTION
    # -2^(bits - 1) still fits, the same number with a plus does not.
    x = np.ones(2 ** (bits - 1))
    return x, x
    ### END SOLUTION


# %% nbgrader={"grade_id": "ps4-6-checks", "grade": true, "points": 3}
tb.course.score("ps4.6", shortest_overflow)

# %% [markdown]
# ## Task 7: your bytes in a Vision Transformer (2 points)
#
# Nothing to write: this is what the work was for. A ternary Vision Transformer is trained and packed. Then the bytes of
# every packed layer are thrown away, and yours take their place. The library computes with them: the answers must be
# the same, bit for bit. And it must be able to read its own bytes with your `unpack_2bit`. (Where one of the two does
# not pass its checks, the library's is taken.)

# %%
digits = tb.data.load_digits()
size = {"dim": 32, "depth": 1, "heads": 4, "epochs": 4}
model = tb.ViT(bits=1.58, **size, augment=None, workers=1, random_state=0, verbose=0)
model.fit(digits.X_train[:300], digits.y_train[:300])


def low_bit_layers(model):
    """name -> layer, of a trained or a packed model."""
    kinds = tb.quant.BitLinear, tb.quant.PackedLinear
    return {name: layer for name, layer in model.model_.named_modules() if isinstance(layer, kinds)}


# %% nbgrader={"grade_id": "ps4-7-vit", "grade": true, "points": 2}
assert tb.course.own(globals(), "ps4.1", "ps4.2"), "neither packing nor unpacking passes its checks yet"
pack, unpack = (tb.course.settled(task, globals()) for task in ("ps4.1", "ps4.2"))
packed = model.pack("2bit")
before = packed.decision_function(digits.X_test)
saved = 0
for name, layer in low_bit_layers(packed).items():
    codes, scale = low_bit_layers(model)[name].codes()
    layer.packed[...] = 0
    layer.packed = pack(codes)
    saved += 4 * codes.size - layer.packed.nbytes
print(f"{saved:,} bytes saved")
assert np.array_equal(packed.decision_function(digits.X_test), before), "the packed network gives other answers"
for name, layer in low_bit_layers(model.pack("2bit")).items():
    assert np.array_equal(unpack(layer.packed, layer.in_features), low_bit_layers(model)[name].codes()[0]), name

# %% [markdown]
# ## In your own words (4 points)
#
# A friend reads that a model has "1.58 bits" and expects its file to be 32 / 1.58 = 20 times smaller than in `float32`.
# It is 13 times smaller. Name the reasons, and say for which of them a larger network helps. Four or five sentences.

# %% [markdown] nbgrader={"grade_id": "ps4-why", "grade": true, "solution": true, "points": 4}
# ### BEGIN SOLUTION
# 1.58 is the logarithm of 3: the information in a ternary weight. Bytes cannot hold it exactly: five weights in a byte
# cost 1.6 bits, four cost 2, and a row that does not fill its last byte wastes the rest. Every row needs a scale of its
# own. And not every number is a ternary weight: patch embedding, norms, biases, positions and head stay in floats.
# Scales and filling are shared by all weights of a row, so wider layers make them small; the float parts grow with the
# width, the packed ones with its square, so their share falls as well. The 1.6 or 2 bits stay.
#
# Full points: whole digits in a byte; scales and filling; parts in full precision; width helps for the last two.
# ### END SOLUTION
