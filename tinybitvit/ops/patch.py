"""Images to rows of patches and back; Dosovitskiy et al. 2020 (arXiv 2010.11929), section 3.1."""

from typing import TypeAlias

from ..backend import Array
from .base import Context, Function, Gradients

Pair: TypeAlias = tuple[int, int]  # height and width


def check_divides(height: int, width: int, patch: Pair) -> None:
    """ValueError unless patches of `patch` = (ph, pw) pixels tile the image."""
    if len(patch) != 2:
        raise ValueError(f"patch_size and image_size are one number or (height, width), not {patch}")
    if min(patch) < 1 or height % patch[0] or width % patch[1]:
        raise ValueError(
            f"patches of {patch[0]} x {patch[1]} pixels do not tile an image of {height} x {width}:"
            " choose a patch_size that divides both sides, or resize the images"
        )


def to_patches(x: Array, patch: Pair) -> Array:
    """(N, H, W, C) to (N, H/ph * W/pw, ph * pw * C): patches row by row, pixels in (ph, pw, C) order."""
    if x.ndim != 4:
        raise ValueError(f"images must be (N, H, W, C), not {x.shape}: give gray ones a last axis of 1")
    n, height, width, c = x.shape
    check_divides(height, width, patch)
    ph, pw = patch
    x = x.reshape(n, height // ph, ph, width // pw, pw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, (height // ph) * (width // pw), ph * pw * c)


def from_patches(x: Array, patch: Pair, height: int, width: int) -> Array:
    """The inverse of `to_patches`."""
    check_divides(height, width, patch)
    (ph, pw), tokens = patch, height // patch[0] * (width // patch[1])
    if x.ndim != 3 or x.shape[1] != tokens or x.shape[2] % (ph * pw):
        raise ValueError(f"patches of these sizes must be (N, {tokens}, {ph} * {pw} * channels), not {x.shape}")
    n, c = len(x), x.shape[2] // (ph * pw)
    x = x.reshape(n, height // ph, width // pw, ph, pw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height, width, c)


class Patchify(Function, name="patchify"):
    """y = the patches of x: (N, H, W, C) -> (N, T, ph pw C), T = (H / ph) (W / pw)

    Every pixel lands in exactly one place, so g is laid back into the image.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, patch_size: Pair) -> Array:
        ctx.patch, ctx.size = patch_size, x.shape[1:3]
        return to_patches(x, patch_size)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (from_patches(g, ctx.patch, *ctx.size),)


class Unpatchify(Function, name="unpatchify"):
    """y = the image of which x are the patches: (N, T, ph pw C) -> (N, H, W, C)

    The inverse of Patchify, and a permutation of elements: g is cut into patches again.
    """

    @staticmethod
    def forward(ctx: Context, x: Array, *, patch_size: Pair, image_size: Pair) -> Array:
        ctx.patch = patch_size
        return from_patches(x, patch_size, *image_size)

    @staticmethod
    def backward(ctx: Context, g: Array) -> Gradients:
        return (to_patches(g, ctx.patch),)
