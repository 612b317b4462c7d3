# %% [markdown]
# # 07 Solutions of the exercises
#
# The exercises of lesson 07, with a hint each; the code is folded. Try first: a solution that was read is forgotten.

# %%
import math

import numpy as np

import tinybitvit as tb
from tinybitvit.course import mine

pack_2bit, pack_base3 = mine("pack_2bit", "pack_base3")
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. By hand
#
# Hint: the digits are $0, 0, 1, 2, 1$, the lowest first.
#
# In base 3: $0 + 0 + 9 + 2 \cdot 27 + 81 = 144$. With two bits: $0 + 0 + 16 + 2 \cdot 64 = 144$ as well, by chance, and
# a second byte with the digit 1 and three times the padding, whose digit is 1, too: $1 + 4 + 16 + 64 = 85$.

# %% kind="solution"
trits = np.array([-1, -1, 0, 1, 0], "int8")
print("base 3:", pack_base3(trits), "  two bits:", pack_2bit(trits))
assert pack_base3(trits).tolist() == [144]
assert pack_2bit(trits).tolist() == [144, 85]

# %% [markdown]
# ## 2. The scale of a short row
#
# Hint: $\lceil K / 5 \rceil \le (K + 4) / 5$. So the bits are at most $8\, ((K + 4) / 5 + 4) / K$.
#
# The bound $1.6 + 38.4 / K$ is below 2 from $K = 97$ on, and below 1.7 from $K = 385$ on. Where $K$ is a multiple of 5
# the row is shorter than the bound says, so the rule sometimes holds a little earlier, but not always.


# %% kind="solution"
def bits(K):
    return 8 * (tb.quant.packed_nbytes((1, K), "base3") + 4) / K


for limit in (2, 1.7):
    first = max(K for K in range(1, 2000) if bits(K) >= limit) + 1
    print(f"always below {limit} bits from K = {first} on: there {bits(first):.4f}, one before {bits(first - 1):.4f}")
    assert all(bits(K) < limit for K in range(first, 2000))
    assert first <= 38.4 / (limit - 1.6) + 1

# %% [markdown]
# ## 3. Two's complement
#
# Hint: the digits 0 to 7 are themselves, 8 to 15 stand for $-8$ to $-1$: subtract 16. Or move the four bits to the top
# of an int8, and back: `>>` on a signed type repeats the sign.


# %% kind="solution"
def unpack_int4(packed):
    low, high = packed << 4, packed & 0xF0
    pairs = np.stack([low, high], axis=-1).view("int8") >> 4
    return pairs.reshape(*packed.shape[:-1], -1)


every = np.arange(256, dtype="uint8")[None]
assert np.array_equal(unpack_int4(every), tb.quant.unpack(every, "int4", (1, 512), "int8"))
print("all 256 bytes agree, for example", every[0, 200], "->", unpack_int4(every[:, 200:201])[0])

# %% [markdown]
# ## 4. What an arithmetic coder could save
#
# Hint: the rows of `describe` whose `bits` are 1.58 have the share of zeros in `zeros`.
#
# Little: the entropy is flat around its maximum at a third. Base 3 needs 1.6 bits; with 25 to 40 % of zeros the entropy
# lies between 1.55 and 1.585. A coder would save 1 to 3 %, and reading would no longer be a look-up.


# %% kind="solution"
def entropy(p):
    return -p * math.log2(p) - (1 - p) * math.log2((1 - p) / 2)


digits = tb.data.load_digits()
model = tb.ViT(bits=1.58, dim=32, depth=2, epochs=6, random_state=0, verbose=0).fit(digits.X_train, digits.y_train)
ternary = [info for info in tb.quant.describe(model.model_) if info.bits == 1.58]
weights = sum(math.prod(info.shape) for info in ternary)
coded = sum(math.prod(info.shape) * entropy(info.zeros) for info in ternary) / weights
print("zeros", [f"{info.zeros:.0%}" for info in ternary])
print(f"an ideal coder: {coded:.3f} bits a trit, base 3: 1.6, saved {1 - coded / 1.6:.1%}")
assert 1.4 < coded < 1.585

# %% [markdown]
# ## 5. Rows side by side
#
# Hint: `codes + 1` in four blocks of R rows, `reshape(4, R, K)`; block i is worth $4^i$.
#
# Threads of a GPU that stand side by side read bytes that lie side by side, along K, and each gets four *different
# outputs* from its byte, with the same input: no shuffling between threads, one load for four rows. And with `out` not
# a multiple of 4 the blocks would be of different lengths, or the padding would be a row of weights.


# %% kind="solution"
def pack_rows(codes):
    blocks = (codes + 1).reshape(4, len(codes) // 4, codes.shape[1])
    return (blocks * 4 ** np.arange(4)[:, None, None]).sum(axis=0).astype("uint8")


codes = rng.integers(-1, 2, (12, 7)).astype("int8")
assert np.array_equal(pack_rows(codes), tb.quant.pack(codes, "hf"))
print("as the library packs:", pack_rows(codes)[0])
