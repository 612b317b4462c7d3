# %% [markdown]
# # 07 Packing: bytes you can count
#
# A weight of one bit that lies in a `float32` array occupies 32 bits. Most papers about low-bit networks stop there:
# the arithmetic is *simulated*, and the memory is saved in a table. Here you save it. At the end you can say of every
# byte of a network what it is for, and fill that table yourself.
#
# You need tutorials 05 (one bit) and 06 (ternary weights).

# %%
import inspect
import itertools
import math
import time

import numpy as np

import tinybitvit as tb
from tinybitvit.course import answer, check, keep, mine, parts, predict, solution, unuse, use, yours
from tinybitvit.quant.pack import _code_table
from tinybitvit.viz.figure import PALETTE, new_figure

rng = np.random.default_rng(0)
binary_codes, ternary_codes = mine("binary_codes", "ternary_codes")

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
# Add up the worths below the ones. Which byte is it?

# %% kind="predict"
guess = predict("the byte of eight signs")


# %% kind="naive"
def pack_row(codes):
    """A row of signs to bytes, digit by digit."""
    packed = []
    for start in range(0, len(codes), 8):
        byte = 0
        for i, code in enumerate(codes[start : start + 8]):
            byte += (code > 0) * 2**i
        packed.append(byte)
    return np.array(packed, "uint8")


# %% kind="answer"
signs = np.array([+1, -1, -1, +1, +1, +1, -1, -1], "int8")
answer("the byte of eight signs", 57, measured=int(pack_row(signs)[0]))
print("as float32:", signs.astype("float32").nbytes, "bytes; packed: 1")

# %% [markdown]
# Now whole matrices at once. `groups` cuts the last axis into groups of n, and fills the last group up.


# %%
def groups(codes, n, padding):
    """(..., K) -> (..., ceil(K / n), n), the last group filled up with the padding."""
    missing = -codes.shape[-1] % n
    filled = np.concatenate([codes, np.full((*codes.shape[:-1], missing), padding, codes.dtype)], axis=-1)
    return filled.reshape(*codes.shape[:-1], filled.shape[-1] // n, n)


print(groups(np.arange(10), 4, padding=-1))

# %% [markdown]
# Packing is yours, with $-1$ as the padding; and the way back, which drops the padding again. `packed >> i` moves the
# bits of each byte down by i places, and `& 1` keeps the lowest. Mind the type: in `uint8`, $0 - 1$ is 255.


# %% kind="your-turn"
@yours("7.1")
def pack_1bit(codes):
    """Signs (..., K) to bytes, uint8 (..., ceil(K / 8)); the padding is -1."""
    # [1, -1, -1, 1, 1, 1, -1, -1, 1] gives two bytes; the second is 1
    ...


@yours("7.2")
def unpack_1bit(packed, K):
    """Bytes (..., ceil(K / 8)) to signs -1 and +1, int8 (..., K)."""
    ...


check(pack_1bit)
check(unpack_1bit)


# %% kind="solution"
@solution("7.1")
def pack_1bit(codes):
    """Signs (..., K) to bytes, uint8 (..., ceil(K / 8)); the padding is -1."""
    digits = groups(codes, 8, padding=-1) > 0
    return (digits * 2 ** np.arange(8)).sum(axis=-1).astype("uint8")


@solution("7.2")
def unpack_1bit(packed, K):
    """Bytes (..., ceil(K / 8)) to signs -1 and +1, int8 (..., K)."""
    digits = (packed[..., None] >> np.arange(8, dtype="uint8")) & 1
    codes = 2 * digits.astype("int8") - 1
    return codes.reshape(*packed.shape[:-1], -1)[..., :K]


# %%
codes = rng.choice([-1, 1], (256, 256)).astype("int8")
began = time.perf_counter()
slow = np.stack([pack_row(row) for row in codes])
middle = time.perf_counter()
fast = pack_1bit(codes)
ended = time.perf_counter()
print(f"256 x 256 signs: loops {1000 * (middle - began):.0f} ms, yours {1000 * (ended - middle):.1f} ms", end="; ")
print("the same bytes:", bool((slow == fast).all()), "and back:", bool((unpack_1bit(fast, 256) == codes).all()))

# %% [markdown]
# ## 2. Trits
#
# A ternary weight, or **trit**, has three values, so it carries $\log_2 3 = 1.585$ bits: the name of "1.58 bits". The
# digit is $d = t + 1$, one of 0, 1, 2. Two bits a digit are easy, four digits a byte:
#
# $$\text{byte} = d_0 + 4 d_1 + 16 d_2 + 64 d_3 .$$
#
# One trap: the padding. A row of 6 trits needs two bytes, with two digits to spare. They should be *weights* of 0, so
# that a reader who forgets to drop them computes no nonsense. The row $(1, 0, -1, -1, 1, 1)$: what is its second byte?

# %% kind="predict"
guess = predict("the second byte")


# %% kind="your-turn"
@yours("7.3")
def pack_2bit(codes):
    """Trits (..., K) to bytes, uint8 (..., ceil(K / 4)); the padding is the weight 0."""
    # [1, 0, -1, -1] gives [6]: 2 + 4 * 1
    ...


@yours("7.4")
def unpack_2bit(packed, K):
    """Bytes (..., ceil(K / 4)) to trits -1, 0, +1, int8 (..., K): shift by 0, 2, 4, 6, and keep two bits."""
    ...


check(pack_2bit)
check(unpack_2bit)


# %% kind="solution"
@solution("7.3")
def pack_2bit(codes):
    """Trits (..., K) to bytes, uint8 (..., ceil(K / 4)); the padding is the weight 0."""
    digits = groups(codes, 4, padding=0) + 1
    return (digits * 4 ** np.arange(4)).sum(axis=-1).astype("uint8")


@solution("7.4")
def unpack_2bit(packed, K):
    """Bytes (..., ceil(K / 4)) to trits -1, 0, +1, int8 (..., K): shift by 0, 2, 4, 6, and keep two bits."""
    digits = (packed[..., None] >> np.array([0, 2, 4, 6], "uint8")) & 3
    return (digits.astype("int8") - 1).reshape(*packed.shape[:-1], -1)[..., :K]


# %% kind="answer"
second = int(pack_2bit(np.array([1, 0, -1, -1, 1, 1]))[1])
answer("the second byte", 90, measured=second)
print("digits 2 and 2, and then twice the digit 1 of a weight 0: 2 + 4 * 2 + 16 + 64")

# %% [markdown]
# Padding with the *digit* 0 would append two weights of $-1$: an easy mistake, and one that has been made.
#
# ## 3. Five in a byte
#
# With two bits the digit 3 never occurs: a quarter of the alphabet is wasted. A number in base 3 wastes nothing, and
# because $3^5 = 243 \le 256$, *five* trits fit into a byte:
#
# $$\text{byte} = d_0 + 3 d_1 + 9 d_2 + 27 d_3 + 81 d_4 .$$
#
# Which byte are the trits $(1, 0, -1, -1, 1)$?

# %% kind="predict"
guess = predict("the byte of five trits")


# %% kind="your-turn"
@yours("7.5")
def pack_base3(codes):
    """Trits (..., K) to bytes, uint8 (..., ceil(K / 5)), five in each; the padding is the weight 0."""
    # [1, -1, -1, -1, -1] gives [2]
    ...


check(pack_base3)


# %% kind="solution"
@solution("7.5")
def pack_base3(codes):
    """Trits (..., K) to bytes, uint8 (..., ceil(K / 5)), five in each; the padding is the weight 0."""
    digits = groups(codes, 5, padding=0) + 1
    return (digits * 3 ** np.arange(5)).sum(axis=-1).astype("uint8")


# %% kind="answer"
answer("the byte of five trits", 167, measured=int(pack_base3(np.array([1, 0, -1, -1, 1]))[0]))

# %% [markdown]
# Could longer words do better? $n$ bytes have $256^n$ values and hold $\lfloor 8 n / \log_2 3 \rfloor$ trits. How many
# bytes has the first word that needs fewer bits a trit than a single byte does?

# %% kind="predict"
guess = predict("bytes of the first better word")

# %%
n_bytes = np.arange(1, 33)
held = np.array([math.floor(8 * n / math.log2(3)) for n in n_bytes.tolist()])
bits_per_trit = 8 * n_bytes / held

# %% kind="answer"
first = int(n_bytes[bits_per_trit < bits_per_trit[0]][0])
answer("bytes of the first better word", 22, measured=first)
print(f"one byte: {bits_per_trit[0]} bits a trit; no code of equally likely trits is shorter than {math.log2(3):.4f}")

# %% kind="see"
figure = new_figure(5, 3, formulas=True)
ax = figure.subplots()
ax.plot(n_bytes, bits_per_trit, "o-", color=PALETTE[0], label="as many trits as fit")
ax.axhline(2, color=PALETTE[1], label="two bits a trit")
ax.axhline(math.log2(3), color="black", linestyle="--", label="$\\log_2 3$")
ax.set(xlabel="bytes in a word", ylabel="bits a trit", ylim=(1.55, 2.05))
ax.legend(frameon=False)
figure

# %% [markdown]
# One byte comes within 1 % of the bound. That is luck ($3^5$ lies just below $2^8$), and the library takes it:
# `"base3"` is its layout for files.
#
# And back? The lowest digit is `byte % 3`, the next one `byte // 3 % 3`, and so on: five passes over all bytes, each
# with a division.


# %% kind="naive"
def divide(packed, K):
    """Bytes in base 3 to trits (..., K)."""
    digits = np.stack([packed // 3**i % 3 for i in range(5)], axis=-1)
    return (digits.astype("int8") - 1).reshape(*packed.shape[:-1], -1)[..., :K]


# %% [markdown]
# But a byte has only 256 values. Write down *once* what each of them means, as a table with a row of five trits for
# each byte, and unpacking is looking up: `table.take(packed, axis=0)` has shape (..., 5), as `table[packed]` has, but
# copies whole rows. (Bytes from 243 on cannot occur; their rows may hold anything.)


# %% kind="your-turn"
@yours("7.6")
def unpack_base3(packed, K):
    """Bytes (..., ceil(K / 5)) to trits -1, 0, +1, int8 (..., K), looked up in a table (256, 5)."""
    # unpack_base3(np.array([167], "uint8"), 4) gives [1, 0, -1, -1]
    ...


check(unpack_base3)


# %% kind="solution"
@solution("7.6")
def unpack_base3(packed, K):
    """Bytes (..., ceil(K / 5)) to trits -1, 0, +1, int8 (..., K), looked up in a table (256, 5)."""
    table = (np.arange(256)[:, None] // 3 ** np.arange(5) % 3 - 1).astype("int8")
    return table.take(packed, axis=0).reshape(*packed.shape[:-1], -1)[..., :K]


# %% [markdown]
# For a matrix of 3072 x 768 weights: how many times as fast is the table?

# %% kind="predict"
guess = predict(
    "the table against five divisions", choices=["slower", "up to 3 times as fast", "more than 3 times as fast"]
)

# %%
codes = rng.integers(-1, 2, (3072, 768)).astype("int8")
packed = pack_base3(codes)


def seconds(function, rounds=5):
    """The shortest of some rounds: what the machine can do when nothing disturbs it."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


slow, fast = seconds(lambda: divide(packed, 768)), seconds(lambda: unpack_base3(packed, 768))
theirs = seconds(lambda: tb.quant.unpack(packed, "base3", codes.shape, "int8"))

# %% kind="answer"
print(f"divisions {1e3 * slow:.1f} ms, your table {1e3 * fast:.1f} ms, the library's {1e3 * theirs:.1f} ms")
answer("the table against five divisions", "more than 3 times as fast")
assert fast < slow
assert (divide(packed, 768) == codes).all()
assert (unpack_base3(packed, 768) == codes).all()

# %% [markdown]
# The library has one table for every layout, built once and kept. Its `pack` is yours for all of them, by *Horner's
# rule*: from the highest digit down, $((d_4 \cdot 3 + d_3) \cdot 3 + d_2) \cdot 3 \ldots$

# %%
print(inspect.getsource(_code_table))
print(inspect.getsource(tb.quant.pack))

# %% [markdown]
# ## 4. The same result, to the last bit
#
# From here on the library packs and unpacks with what you wrote. Take a ternary layer, and the `PackedLinear` that is
# made of it: bytes in place of floats. How far apart may their outputs be?

# %% kind="predict"
guess = predict("largest difference", choices=["exactly zero", "the last digit", "about 1 %"])

# %%
mine_now = {"pack_1bit": pack_1bit, "pack_2bit": pack_2bit, "pack_base3": pack_base3}
mine_now |= {"unpack_1bit": unpack_1bit, "unpack_2bit": unpack_2bit, "unpack_base3": unpack_base3}
use(**mine_now, binary_codes=binary_codes, ternary_codes=ternary_codes)
layer = tb.quant.BitLinear(256, 256, bits=1.58, rng=rng)
small = tb.quant.PackedLinear.from_bitlinear(layer)
x = tb.Tensor(rng.standard_normal((10, 256)).astype("float32"))
with tb.no_grad():
    y, y_packed = layer(x), small(x)

# %% kind="answer"
answer("largest difference", "exactly zero")
assert (y.data == y_packed.data).all()
print("the sums are of whole numbers below 2^24, which float32 holds exactly, in any order (tutorial 06)")

# %% [markdown]
# So a packed layer gives *the same bits* as the layer it was made from, and the assert may be `==`. Three things have
# three names, because "my weights are still floats!" is the most asked question about low-bit networks:
#
# | name | what | where |
# |---|---|---|
# | `layer.weight` | latent float weight, which the optimiser moves | training |
# | `layer.quantized_weight()` | codes times scale, what the forward pass multiplies by | both |
# | `packed.packed` | the bytes | deployment |

# %%
print("latent:    ", layer.weight.data.nbytes, "bytes, for example", layer.weight.data[0, :3])
print("quantised: ", layer.quantized_weight()[0, :3])
print("packed:    ", small.packed.nbytes, "bytes, for example", small.packed[0, :3])
assert layer.weight.data.nbytes == 16 * small.packed.nbytes

# %% [markdown]
# Packed bytes come from files, and files are damaged. A reader must refuse what no codes pack to: in base 3 the bytes
# from 243 on, in `"2bit"` every byte with a digit 3, and a padding that holds weights.

# %%
damaged = {"base3": np.array([[250, 121]], "uint8"), "2bit": np.array([[6, 26]], "uint8")}
for name, data in damaged.items():
    try:
        tb.quant.validate(data, name, (1, 6))
    except ValueError as error:
        print(f"{name}, {data}: {error}")

# %% [markdown]
# ## 5. Multiplying without multiplying
#
# If the *inputs* are signs as well, a byte of eight weights meets a byte of eight inputs. Equal signs contribute $+1$,
# different ones $-1$. "Different" is what the machine calls XOR, `^` (XNOR-Net, Rastegari et al. 2016, arXiv
# 1603.05279, section 3.2). With $D$ places of $K$ that differ, what is the dot product? Try it on the eight signs of
# section 1 and the same with the first three reversed.

# %% kind="predict"
guess = predict("the dot product", choices=["-3", "2", "5"])

# %% [markdown]
# `np.bitwise_count` says how many bits of each byte are 1. Take all pairs: a row of `x_bits` with a row of `w_bits`.
# (The padding cancels: both have the same bits there.)


# %% kind="your-turn"
@yours("7.7")
def signs_dot(x_bits, w_bits, K):
    """Dot products (n, out) of signs: bytes x_bits (n, B) and w_bits (out, B) of pack_1bit, each of K signs."""
    # x_bits[:, None] has shape (n, 1, B)
    ...


check(signs_dot)


# %% kind="solution"
@solution("7.7")
def signs_dot(x_bits, w_bits, K):
    """Dot products (n, out) of signs: bytes x_bits (n, B) and w_bits (out, B) of pack_1bit, each of K signs."""
    different = np.bitwise_count(x_bits[:, None] ^ w_bits).sum(axis=-1, dtype=int)
    return K - 2 * different


# %% kind="answer"
other = signs * np.array([-1, -1, -1, 1, 1, 1, 1, 1])
found = signs_dot(pack_1bit(signs[None]), pack_1bit(other[None]), 8)[0, 0]
answer("the dot product", "2", measured=str(int(found)))
print("five are equal, three differ")

# %%
X, W = rng.choice([-1, 1], (65, 300)), rng.choice([-1, 1], (200, 300))  # 300 is no multiple of 8: padded
x_bits, w_bits = pack_1bit(X), pack_1bit(W)
x_floats, w_floats = X.astype("float32"), W.astype("float32")
for name, product in {
    "whole numbers, X @ W.T": lambda: X @ W.T,
    "float32": lambda: x_floats @ w_floats.T,
    "yours, by counting": lambda: signs_dot(x_bits, w_bits, 300),
    "the library, by counting": lambda: tb.quant.binary_dot(x_bits, w_bits, 300),
}.items():
    right = bool((product() == X @ W.T).all())
    print(f"{name:26} {1e3 * seconds(product):6.2f} ms, right: {right}")

# %% [markdown]
# The library counts 64 bits at a time, in tiles that stay in the cache. In a compiled loop that is where binary
# networks get their speed; NumPy makes a copy at every step. `docs/kernels.md` has the compiled one.
#
# ## 6. An honest count
#
# Not every number of a network is a weight of a low-bit layer. Scales, biases, norms, positions, the patch embedding
# and the head stay floats. `tb.quant.describe` lists everything.

# %%
model = tb.models.VisionTransformer(32, 4, 3, 10, dim=64, depth=2, heads=4, bits=1, rng=rng)
for info in tb.quant.describe(model.pack()):
    if info.name.startswith("blocks.0.mlp") or not info.name.startswith("blocks"):
        row = f"{info.name:16} {info.layout:8} {info.weights:7} numbers {info.bytes:7} bytes"
        print(f"{row}" if info.name == "total" else f"{row} {info.effective_bits:6.2f} bits each")

# %% [markdown]
# This is a "1-bit" network. All bytes times 8, divided by all numbers: how many bits a number does it really take?

# %% kind="predict"
guess = predict("bits a number, dim 64")

# %% kind="answer"
total = tb.quant.describe(model.pack())[-1]
answer("bits a number, dim 64", 4.3, measured=total.effective_bits, tolerance=0.05)

# %% kind="see"
dims, names = (32, 64, 128, 192, 384), {1.58: "1.58 bits", 1: "1 bit"}
figure = new_figure(5, 3.2)
ax = figure.subplots()
for i, (bits, name) in enumerate(names.items()):
    networks = [tb.models.VisionTransformer(32, 4, 3, 10, dim=d, depth=2, heads=4, bits=bits, rng=rng) for d in dims]
    values = [tb.quant.describe(network.pack())[-1].effective_bits for network in networks]
    ax.plot(dims, values, "o-", color=PALETTE[i], label=f"{name}, everything counted")
    in_memory = tb.quant.LAYOUTS[tb.quant.choose_layout(bits)].bits
    ax.axhline(in_memory, color=PALETTE[i], linestyle="--", label=f"{name}, a packed weight")
    assert all(a > b > 1 for a, b in itertools.pairwise(values))
ax.set(xscale="log", xlabel="dim", ylabel="bits a number", ylim=(0, None))
ax.set_xticks(dims, dims, minor=False)
ax.minorticks_off()
ax.legend(frameon=False)
figure

# %% [markdown]
# Matrices grow with the square of dim and everything else linearly, so the leftover fades; but it never disappears.
# When somebody tells you "one bit", ask for the size of the file. (Tutorial 12 does that to us.)
#
# ## 7. Your table
#
# The table that a paper should have, filled by you: the bytes of a whole network, as floats and in each layout. It has
# low-bit weights of some `shapes` (out, K), each with one float32 scale a row (four bytes; not needed for floats), and
# `others`: all its other numbers, as float32.


# %% kind="your-turn"
@yours("7.8")
def size_table(shapes, others):
    """{layout: bytes of the network}."""
    table = {}
    table["float32"] = ...  # no scales here
    table["1bit"] = ...  # in each row, ceil(K / 8) bytes and a scale
    table["2bit"] = ...
    table["base3"] = ...
    return table


check(size_table)


# %% kind="solution"
@solution("7.8")
def size_table(shapes, others):
    """{layout: bytes of the network}."""
    table = {"float32": 4 * (others + sum(out * K for out, K in shapes))}
    for layout, in_a_byte in (("1bit", 8), ("2bit", 4), ("base3", 5)):
        table[layout] = 4 * others + sum(out * (-(-K // in_a_byte) + 4) for out, K in shapes)
    return table


# %% [markdown]
# For a network of the size that one would ship (dim 192, nine blocks), by how much is the file of base 3 smaller than
# that of two bits?

# %% kind="predict"
guess = predict("base 3, smaller by", "%")

# %%
shipped = tb.models.VisionTransformer(32, 4, 3, 10, dim=192, depth=9, heads=3, bits=1, rng=rng)
layers = [m for m in shipped.modules() if isinstance(m, tb.quant.BitLinear)]
shapes = [layer.weight.data.shape for layer in layers]
numbers = sum(p.data.size for p in shipped.parameters())
others = numbers - sum(out * K for out, K in shapes)
table = size_table(shapes, others)

# %% kind="answer"
for layout, size in table.items():
    bits, less = 8 * size / numbers, table["float32"] / size
    print(f"{layout:8} {size:11,} bytes {bits:6.2f} bits a number {less:6.1f} times less than float32")
smaller = 100 * (1 - table["base3"] / table["2bit"])
answer("base 3, smaller by", 16, measured=smaller, tolerance=1.5, unit="%")
assert table["1bit"] == tb.quant.describe(shipped.pack())[-1].bytes
print("the row of 1 bit is what tb.quant.describe counts, to the byte")
unuse()

# %% kind="see"
figure = new_figure(5, 2.4)
ax = figure.subplots()
bars = ax.barh(list(table), [size / 1e6 for size in table.values()], color=PALETTE[:4])
ax.bar_label(bars, fmt="%.2f MB", padding=3)
ax.invert_yaxis()
ax.set(xlabel="megabytes", title=f"{numbers:,} numbers", xlim=(0, 1.2 * table["float32"] / 1e6))
figure

# %% [markdown]
# And what is *not* saved: activations are floats in this library, and while a layer is at work its codes are unpacked
# into a scratch array of floats, 16 MiB at most, which all layers share.
#
# ## What you take along
#
# A byte holds 8 signs, 4 trits of two bits, or 5 in base 3: 1, 2 and 1.6 bits a weight. Unpacking is looking up. A
# padding holds the weight 0. A packed layer computes the same bits as the one it was made from. And the rest of the
# network, floats, is counted too.
#
# **You can now**: store weights of any base in bytes, and read them back fast; multiply signs by counting; say for
# every byte of a network what it is for.

# %%
keep(pack_1bit, unpack_1bit, pack_2bit, unpack_2bit, pack_base3, unpack_base3, signs_dot, size_table)

# %% kind="see"
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/07](solutions/07_packing.ipynb).
#
# 1. (10 min) By hand: pack $-1, -1, 0, +1, 0$ in base 3 and with two bits. Check with your functions.
# 2. (15 min) With one float32 scale a row, a ternary row of $K$ weights in base 3 takes $\lceil K / 5 \rceil + 4$
#    bytes. From which $K$ on is that always below 2 bits a weight? Below 1.7? Hand in both, found by calculating, and a
#    check.
# 3. (30 min) Write `unpack_int4(packed)` with shifts and without a table. The layout `"int4"` is two's complement, from
#    $-8$ to 7. Test it on all 256 bytes against `tb.quant.unpack`.
# 4. (30 min) $\log_2 3$ bounds *equally likely* trits. With a share $p$ of zeros and the rest split evenly the entropy
#    is $-p \log_2 p - (1 - p) \log_2 \frac{1 - p}{2}$. Take the shares of a trained `tb.ViT(bits=1.58)` from
#    `tb.quant.describe(model.model_)`, and say how much an arithmetic coder could still save over base 3.
# 5. (an evening) The layout `"hf"` puts rows, not columns, side by side into a byte: row $r$ with $r + R$, $r + 2R$ and
#    $r + 3R$, $R$ a quarter of the rows. Write its `pack`, test it against `tb.quant.pack(codes, "hf")`, and say why
#    that is kind to a GPU, and why `out` must be a multiple of 4.
