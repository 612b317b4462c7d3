# %% [markdown]
# # 07 Packing: bytes you can count
#
# A weight of one bit that lies in a `float32` array occupies 32 bits. Most papers about low-bit networks stop there:
# the arithmetic is *simulated*, and the memory is saved in a table. Here we save it. At the end you can say of every
# byte of a network what it is for, and you will have met the difference between 1.58 bits, 1.6 bits and 2.36 bits.
#
# You need tutorials 05 (one bit) and 06 (ternary weights).

# %%
import inspect
import math
import time

import numpy as np

import tinybitvit as tb
from tinybitvit.quant.pack import _code_table
from tinybitvit.viz.figure import PALETTE, new_figure

rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Eight signs in a byte
#
# A sign is a yes or a no. Write $+1$ as the digit 1 and $-1$ as the digit 0; eight of them, lowest first, are a number
# in base 2:
#
# | weight | +1 | -1 | -1 | +1 | +1 | +1 | -1 | -1 |
# |---|---|---|---|---|---|---|---|---|
# | digit $d_i$ | 1 | 0 | 0 | 1 | 1 | 1 | 0 | 0 |
# | worth $2^i$ | 1 | 2 | 4 | 8 | 16 | 32 | 64 | 128 |
#
# **Predict** the byte before you run the cell. (Add up the worths below the ones.)

# %%
signs = np.array([+1, -1, -1, +1, +1, +1, -1, -1], "int8")
byte = tb.quant.pack(signs, "1bit")
print("as float32:", signs.astype("float32").nbytes, "bytes;  packed:", byte.nbytes, "byte, the number", byte[0])
assert byte[0] == 1 + 8 + 16 + 32
assert byte.nbytes == 1

# %% [markdown]
# ## 2. Five trits in a byte
#
# A ternary weight, or *trit*, has three values, so it carries $\log_2 3 = 1.585$ bits: this is where the name "1.58
# bits" comes from. The digit is $d = t + 1$, one of 0, 1, 2. Two bits a digit are easy: four digits a byte,
#
# $$\text{byte} = d_0 + 4 d_1 + 16 d_2 + 64 d_3 .$$
#
# But the digit 3 never occurs: a quarter of the alphabet is wasted. A number in base 3 wastes nothing, and because
# $3^5 = 243 \le 256$, *five* trits fit into a byte:
#
# $$\text{byte} = d_0 + 3 d_1 + 9 d_2 + 27 d_3 + 81 d_4 .$$
#
# **Predict** both bytes of the trits below.

# %%
trits = np.array([+1, 0, -1, -1, +1], "int8")  # digits 2 1 0 0 2
print("2bit :", tb.quant.pack(trits[:4], "2bit"))
print("base3:", tb.quant.pack(trits, "base3"))
assert tb.quant.pack(trits[:4], "2bit")[0] == 2 + 4 * 1
assert tb.quant.pack(trits, "base3")[0] == 2 + 3 * 1 + 81 * 2

# %% [markdown]
# Could we do better with longer words? $n$ bytes have $256^n$ values and hold $\lfloor 8 n / \log_2 3 \rfloor$ trits.
# **Predict**: how many bits a trit with two bytes? With eight?

# %%
n_bytes = np.arange(1, 33)
held = np.array([math.floor(8 * n / math.log2(3)) for n in n_bytes.tolist()])
bits_per_trit = 8 * n_bytes / held

figure = new_figure(7, 3)
ax = figure.subplots()
ax.plot(n_bytes, bits_per_trit, "o-", color=PALETTE[0], label="as many trits as fit")
ax.axhline(2, color=PALETTE[1], label="two bits a trit")
ax.axhline(math.log2(3), color="black", linestyle="--", label="log2(3), no code of equally likely trits is shorter")
ax.set(xlabel="bytes in a word", ylabel="bits a trit", ylim=(1.55, 2.05))
ax.legend(fontsize=8)
assert (bits_per_trit[:21] == 1.6).all() and bits_per_trit[21] < 1.6
print(f"1 byte: {bits_per_trit[0]}, 2 bytes: {bits_per_trit[1]}, the bound: {math.log2(3):.4f}")
figure

# %% [markdown]
# One byte already comes within 1 % of the bound, and only a word of 22 bytes is better. That is luck
# ($3^5$ lies just below $2^8$), and the library takes it: `"base3"` is its layout for files.
#
# ## 3. The library
#
# Every layout is a row of one table, and one rule packs them all: *Horner's rule*, from the highest digit down,
# $((d_4 \cdot 3 + d_3) \cdot 3 + d_2) \cdot 3 \ldots$, for all bytes at once.

# %%
for layout in tb.quant.LAYOUTS.values():
    print(f"{layout.name:6} {layout.weights_per_byte} a byte, {layout.bits:3g} bits a weight, base {layout.base}")
print()
print(inspect.getsource(tb.quant.pack))

# %% [markdown]
# And back? One would shift and mask: `(byte >> 2 i) & 3`, four passes over the matrix. But a byte has only 256 values,
# so write down *once* what each of them means. Unpacking is then looking up.

# %%
print(inspect.getsource(_code_table))
table = _code_table(tb.quant.LAYOUTS["base3"], np.dtype("float32"), np)
print("table:", table.shape, "- the row of byte 167:", table[167])
assert table[167].tolist() == trits.tolist()

# %% [markdown]
# **Predict**: which is faster for a matrix of 3072 x 768 weights, and by how much? (The figure is your machine's.)

# %%
codes = rng.integers(-1, 2, (3072, 768)).astype("int8")
packed = tb.quant.pack(codes, "2bit")


def shift_and_mask(packed):
    """(out, K / 4) bytes -> (out, K) float32 codes."""
    digits = (packed[..., None] >> np.array([0, 2, 4, 6], "uint8")) & 3
    return (digits.astype("float32") - 1).reshape(len(packed), -1)


def seconds(function, rounds=5):
    """The shortest of some rounds: what the machine can do when nothing disturbs it."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


out = np.empty(codes.shape, "float32")
slow = seconds(lambda: shift_and_mask(packed))
fast = seconds(lambda: tb.quant.unpack(packed, "2bit", codes.shape, out=out))
print(f"shift and mask {1e3 * slow:.2f} ms, table {1e3 * fast:.2f} ms: {slow / fast:.1f} times as fast")
assert (shift_and_mask(packed) == codes).all() and (out == codes).all()

# %% [markdown]
# ## 4. What a reader must check
#
# Packed bytes come from files, and files are damaged. Which bytes are impossible?
#
# - `"base3"`: 243 to 255. `"2bit"`: every byte with a digit 3.
# - The padding. A row of 6 trits needs two bytes, with two digits to spare; they must hold the *weight* 0, digit 1.
#   (Padding with the *digit* 0 would append two weights of $-1$: an easy mistake, and one that has been made.)
#
# **Predict** the second byte of the row below.

# %%
six = np.array([[+1, 0, -1, -1, +1, +1]], "int8")  # digits 2 1 0 0 | 2 2 and the padding 1 1
two_bytes = tb.quant.pack(six, "2bit")
print(two_bytes)
assert two_bytes[0, 1] == 2 + 4 * 2 + 16 * 1 + 64 * 1

damaged = {"base3": np.array([[250, 121]], "uint8"), "2bit": two_bytes - np.array([0, 64], "uint8")}
for name, data in damaged.items():
    try:
        tb.quant.validate(data, name, (1, 6))
    except ValueError as error:
        print(f"{name}, {data}: {error}")
    else:
        raise AssertionError("a damaged byte got through")

# %% [markdown]
# ## 5. The same result, to the last bit
#
# How do we know that the packed layer computes what the trained one computed? Usually by "the difference is small".
# Here we can ask for more. The layer's product is a sum of whole numbers,
#
# $$y = s_x\, s_w \sum_k c_k\, t_k + b, \qquad c_k \in \{-127, \ldots, 127\},\ t_k \in \{-1, 0, 1\},$$
#
# (BitNet b1.58, Ma et al. 2024, arXiv 2402.17764, with the scales taken out of the sum). Whole numbers have no rounding
# errors *as long as they fit*. A `float32` has 24 bits of mantissa: it holds every whole number up to
# $2^{24} = 16\,777\,216$. The sum is at most $127 K$ in size, so up to $K = 132\,104$ inputs it is exact, in any order.
#
# **Predict**: what does `float32` make of $2^{24} + 1$?

# %%
print("2^24 + 1 in float32:", int(np.float32(2**24) + np.float32(1)), " exact:", 2**24 + 1)
assert np.float32(2**24) + np.float32(1) == 2**24
assert 127 * 132_104 < 2**24 < 127 * 132_105

x_codes = rng.integers(-127, 128, (65, 768))
w_codes = codes[:, :768]
as_floats = x_codes.astype("float32") @ w_codes.T.astype("float32")
assert (as_floats == x_codes @ w_codes.T.astype("int64")).all()
print("65 x 3072 sums of 768 products: every one exact in float32")

# %% [markdown]
# So a layer from packed bytes must give *the same bits* as the layer it was made from, and the assert may be `==`.
#
# Three things have three names, and it is worth getting them straight, because "my weights are still floats!" is the
# most asked question about low-bit networks:
#
# | name | what | where |
# |---|---|---|
# | `layer.weight` | latent float weight, which the optimiser moves | training |
# | `layer.quantized_weight()` | codes times scale, what the forward pass multiplies by | both |
# | `packed.packed` | the bytes | deployment |

# %%
layer = tb.quant.BitLinear(256, 256, bits=1.58, rng=rng)
small = tb.quant.PackedLinear.from_bitlinear(layer)
x = rng.standard_normal((10, 256)).astype("float32")
with tb.no_grad():
    y, y_packed = layer(tb.Tensor(x)), small(tb.Tensor(x))
print("latent weight: ", layer.weight.data.nbytes, "bytes, for example", layer.weight.data[0, :3])
print("deployed weight:", layer.quantized_weight()[0, :3])
print("packed:        ", small.packed.nbytes, "bytes, for example", small.packed[0, :3])
assert (y.data == y_packed.data).all()
assert (layer.quantized_weight() == small.quantized_weight()).all()
assert layer.weight.data.nbytes == 16 * small.packed.nbytes

# %% [markdown]
# ## 6. Multiplying without multiplying
#
# If the *inputs* are signs as well, a byte of eight weights meets a byte of eight inputs. Equal signs contribute $+1$,
# different ones $-1$, and "different" is what the machine calls XOR (XNOR-Net, Rastegari et al. 2016, arXiv 1603.05279,
# section 3.2):
#
# $$x \cdot w = K - 2\, \mathrm{popcount}(x \oplus w).$$
#
# By hand, $K = 8$: let `x` be the eight signs from above, and `w` the same with the first three reversed. Three differ.
# **Predict** the dot product.

# %%
other = signs.copy()
other[:3] *= -1
x_bits, w_bits = tb.quant.sign_bits(signs[None]), tb.quant.sign_bits(other[None])
print(f"x {x_bits[0, 0]:08b}\nw {w_bits[0, 0]:08b}\n^ {x_bits[0, 0] ^ w_bits[0, 0]:08b}, three ones")
assert tb.quant.binary_dot(x_bits, w_bits, 8)[0, 0] == 8 - 2 * 3 == signs @ other

X, W = rng.standard_normal((65, 300)), rng.standard_normal((200, 300))  # 300 is no multiple of 8: padded
dots = tb.quant.binary_dot(tb.quant.sign_bits(X), tb.quant.sign_bits(W), 300)
assert (dots == np.where(X >= 0, 1, -1) @ np.where(W >= 0, 1, -1).T).all()
print(inspect.getsource(tb.quant.binary_dot))

# %% [markdown]
# The padding cancels: both operands have the same bits there, and XOR of equal bits is 0.
#
# ## 7. An honest count
#
# Not every number of a network is a weight of a low-bit layer. Scales, biases, norms, positions, the patch embedding
# and the head stay floats. `tb.quant.describe` lists everything.

# %%
model = tb.models.VisionTransformer(32, 4, 3, 10, dim=64, depth=2, heads=4, bits=1, rng=rng).pack()
for info in tb.quant.describe(model):
    if info.name.startswith("blocks.0.mlp") or not info.name.startswith("blocks"):
        row = f"{info.name:20} {info.layout:8} {info.weights:7} numbers {info.bytes:7} bytes"
        print(f"{row} {info.effective_bits:6.2f} bits each")

# %% [markdown]
# **Predict**: the last line is a "1-bit" network with dim 64. How many bits a number does it really take? And with dim
# 192, or 384?

# %%
dims, nominal = (32, 64, 128, 192, 384), {"1.58 bits": 1.58, "1 bit": 1}
effective = {name: [] for name in nominal}
for name, bits in nominal.items():
    for dim in dims:
        network = tb.models.VisionTransformer(32, 4, 3, 10, dim=dim, depth=2, heads=4, bits=bits, rng=rng)
        effective[name].append(tb.quant.describe(network.pack())[-1].effective_bits)

figure = new_figure(7, 3.2)
ax = figure.subplots()
for i, (name, values) in enumerate(effective.items()):
    ax.plot(dims, values, "o-", color=PALETTE[i], label=f"{name}, everything counted")
    in_memory = tb.quant.LAYOUTS[tb.quant.choose_layout(nominal[name])].bits
    ax.axhline(in_memory, color=PALETTE[i], linestyle="--", label=f"{name}, bits of a packed weight")
    print(name, [f"{dim}: {bits:.2f}" for dim, bits in zip(dims, values, strict=True)])
ax.set(xscale="log", xlabel="dim", ylabel="bits a number", ylim=(0, None))
ax.set_xticks(dims, dims, minor=False)
ax.minorticks_off()
ax.legend(fontsize=8)
assert 2 < effective["1 bit"][1] < 6
assert all(a > b > 1 for a, b in zip(effective["1 bit"], effective["1 bit"][1:], strict=False))
figure

# %% [markdown]
# Matrices grow with the square of dim and everything else linearly, so the leftover fades; but it never disappears.
# When somebody tells you "one bit", ask for the size of the file. (Tutorial 12 does that to us.)
#
# And what is *not* saved: activations are floats in this library, and while a layer is at work its codes are unpacked
# into a scratch array of floats, 16 MiB at most, which all layers share.
#
# ## Exercises
#
# 1. *(by hand)* Pack $-1, -1, 0, +1, 0$ in `"base3"` and in `"2bit"`. Check with `tb.quant.pack`.
# 2. *(arithmetic)* With one `float32` scale a row, a ternary row of $K$ weights takes $\lceil K / 5 \rceil + 4$ bytes.
#    From which $K$ on is that below 2 bits a weight? Below 1.7? Confirm with `tb.quant.packed_nbytes`.
# 3. *(code)* Write `unpack_int4(packed)` with shifts and without a table; remember that `"int4"` is two's complement
#    ($-8 \ldots 7$). Test it against `tb.quant.unpack` on all 256 bytes.
# 4. *(information)* $\log_2 3$ is the bound for *equally likely* trits. With a share $p$ of zeros and the rest split
#    evenly the entropy is $-p \log_2 p - (1 - p) \log_2 \frac{1 - p}{2}$. Plot it. Train `tb.ViT(bits=1.58)` on the
#    digits, take the shares from `tb.quant.describe(model.model_)`, and say how much an arithmetic coder could still
#    save.
# 5. *(design)* The layout `"hf"` puts rows, not columns, side by side into a byte. Read its branch in
#    `tb.quant.unpack`. Why is that kind to a GPU, and why does it need `out` to be a multiple of 4?
