"""Checks of problem set 2: patches and attention."""

import numpy as np

from ..ops import Function
from ..ops.attention import attend, split_heads
from ..ops.patch import from_patches, to_patches
from .checker import Task, check_gradient, expect, expect_op

cut = Task("ps2.1", "patchify")
# (shape of the images, patch); the sides differ where they can, so that no mix-up goes unseen
PICTURES: list[tuple[tuple[int, ...], tuple[int, int]]] = [
    ((1, 2, 4, 1), (2, 2)),
    ((1, 4, 2, 1), (2, 1)),
    ((1, 2, 2, 2), (1, 2)),
    ((2, 4, 6, 3), (2, 3)),
]


def picture(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(float(np.prod(shape))).reshape(shape)


@cut.check("the worked example", "reshape to (N, H/ph, ph, W/pw, pw, C), then bring the two patch axes together")
def cut_example(answer):
    expect(answer, {"images": picture((1, 2, 4, 1)), "patch_size": (2, 2)}, np.array([[[0.0, 1, 4, 5], [2, 3, 6, 7]]]))


@cut.check("other patches, channels, several images", "ph belongs to the height and pw to the width; C stays last")
def cut_others(answer):
    for shape, patch in PICTURES[1:]:
        expect(answer, {"images": picture(shape), "patch_size": patch}, to_patches(picture(shape), patch))


glue = Task("ps2.2", "Patchify")


@glue.check("backward lays g back into the picture", "reshape to six axes, the same transpose, reshape to the picture")
def glue_backward(answer: type[Function]):
    for shape, patch in PICTURES:
        images = picture(shape)
        tokens = to_patches(images, patch)
        g = np.arange(10.0, 10 + tokens.size).reshape(tokens.shape)
        expect_op(answer, {"images": images}, tokens, g, (from_patches(g, patch, *shape[1:3]),), patch_size=patch)


look = Task("ps2.3", "attention")


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return attend(np, q, k, v, q.shape[-1] ** -0.5)


def triple(shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).integers(-6, 7, (3, *shape)) / 4
    return dict(zip("qkv", values, strict=True))


@look.check("the worked example", "scores q k^T / sqrt(d), softmax over the last axis, then times v")
def look_example(answer):
    keys = np.array([[2.0, 0.0], [0.0, 5.0]])
    inputs = {"q": np.array([[1.0, 0.0]]), "k": keys, "v": np.array([[10.0], [20.0]])}
    expect(answer, inputs, attention(**inputs), ("y", "p"))


@look.check("several tokens, heads and images", "softmax over the keys, axis=-1, with keepdims=True; d is q.shape[-1]")
def look_others(answer):
    for shape in ((2, 2), (3, 2), (2, 3, 4), (2, 2, 3, 2)):
        inputs = triple(shape, len(shape))
        expect(answer, inputs, attention(**inputs), ("y", "p"))


@look.check("large scores", "subtract each row's maximum before you take the exponential")
def look_large(answer):
    with np.errstate(all="ignore"):  # the overflow is what is being looked for
        inputs = triple((2, 2), 0)
        inputs["q"] = 1e4 * inputs["q"]
        expect(answer, inputs, attention(**inputs), ("y", "p"))


heads = Task("ps2.4", "split_heads, join_heads")
ROWS = [((1, 1, 6), 2), ((1, 2, 6), 1), ((2, 3, 12), 2)]


@heads.check("split_heads", "reshape to (N, T, 3, heads, d), then bring the 3 to the front and heads before T")
def heads_split(answer):
    for shape, h in ROWS:
        expect(answer[0], {"qkv": picture(shape), "heads": h}, split_heads(picture(shape), h), ("q", "k", "v"))


@heads.check("join_heads", "bring the heads next to d again, then reshape; a reshape alone mixes tokens and heads")
def heads_join(answer):
    for shape in ((1, 2, 1, 2), (1, 2, 3, 1), (2, 2, 3, 2)):
        y = picture(shape)
        expect(answer[1], {"y": y}, join(y))


back = Task("ps2.5", "MultiHeadAttention")


@back.check("backward: one head", "dv = p^T g; dp = g v^T; through the softmax; then dq and dk, both over sqrt(d)")
def back_one(answer: type[Function]):
    for shape in ((1, 1, 3), (1, 2, 3), (1, 3, 6)):
        check_gradient(answer, np.sin(picture(shape)), heads=1)


@back.check(
    "backward: several heads", "split g into heads first, and join each of dq, dk, dv before you put them together"
)
def back_several(answer: type[Function]):
    for shape, h in ((1, 2, 6), 2), ((2, 3, 12), 2):
        check_gradient(answer, np.sin(picture(shape)), heads=h)


rows = Task("ps2.6", "attention_in_rows")
QUESTIONS = [((4, 2), 2), ((5, 3), 2), ((2, 7, 4), 3), ((3, 2), 8), ((1, 2, 6, 2), 1)]


def in_rows(answer, shape: tuple[int, ...], most: int) -> list[int]:
    """Check the result for inputs of this shape; how many questions each call had."""
    asked = []

    def attend(q, k, v):
        asked.append(np.shape(q)[-2])
        return attention(q, k, v)[0]

    inputs = triple(shape, 7)
    expect(lambda q, k, v: answer(attend, q, k, v, most), inputs, attention(**inputs)[0])
    return asked


@rows.check("the answers of all questions", "which rows of q, k and v does one row of y depend on?")
def rows_answers(answer):
    for shape, most in QUESTIONS:
        in_rows(answer, shape, most)


@rows.check(
    "never more than `rows` questions at once", "slices of q along the axis of tokens, which is -2; all of k and v"
)
def rows_few(answer):
    for shape, most in QUESTIONS:
        asked = in_rows(answer, shape, most)
        assert asked and max(asked) <= most, f"it asked {max(asked, default=0)} questions at once, for rows = {most}"


@rows.check("no call too many", "as many calls as slices of `rows` questions; the last may be smaller")
def rows_calls(answer):
    for shape, most in QUESTIONS:
        calls, needed = len(in_rows(answer, shape, most)), -(-shape[-2] // most)
        assert calls == needed, f"it made {calls} calls for {shape[-2]} questions and rows = {most}; {needed} suffice"


pair = Task("ps2.7", "twins")
SIZES = [(4, 2), (6, 2), (6, 3), (8, 4)]


def two(answer, size: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
    found = answer(size, patch)
    assert isinstance(found, tuple) and len(found) == 2, "it must return a tuple of two pictures"
    one, other = map(np.asarray, found)
    for picture in (one, other):
        assert picture.shape == (size, size, 1), f"it gave a picture of shape {picture.shape}, not {(size, size, 1)}"
    return one, other


def tokens_of(picture: np.ndarray, patch: int) -> list[tuple[float, ...]]:
    return sorted(map(tuple, to_patches(picture[None].astype("float64"), (patch, patch))[0].tolist()))


@pair.check("two different pictures", "return a tuple of two arrays")
def pair_differs(answer):
    for size, patch in SIZES:
        one, other = two(answer, size, patch)
        assert not np.array_equal(one, other), f"the two pictures are equal, for size = {size} and patch = {patch}"


@pair.check("the same to the network", "a set of tokens does not know where they were")
def pair_same(answer):
    for size, patch in SIZES:
        one, other = two(answer, size, patch)
        same_tokens = tokens_of(one, patch) == tokens_of(other, patch)
        assert same_tokens, f"the pictures have different patches, for size = {size} and patch = {patch}"


@pair.check("no two patches are equal", "np.arange gives every pixel another value")
def pair_rich(answer):
    for size, patch in SIZES:
        for picture in two(answer, size, patch):
            kinds, patches = len(set(tokens_of(picture, patch))), (size // patch) ** 2
            assert kinds == patches, f"a picture has {kinds} kinds of patches, not {patches}, for size = {size}"


def join(y: np.ndarray) -> np.ndarray:
    n, h, t, d = y.shape
    return y.swapaxes(1, 2).reshape(n, t, h * d)


RIGHT = {"ps2.1": to_patches, "ps2.3": attention, "ps2.4": (split_heads, join)}
