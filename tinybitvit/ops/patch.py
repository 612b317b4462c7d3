"""Images to rows of patches and back; Dosovitskiy et al. 2020 (arXiv 2010.11929), section 3.1."""

from .base import Function


def check_divides(height, width, patch):
    """ValueError unless patches of `patch` = (ph, pw) pixels tile the image."""
    if min(patch) < 1 or height % patch[0] or width % patch[1]:
        raise ValueError(
            f"patches of {patch[0]} x {patch[1]} pixels do not tile an image of {height} x {width}:"
            " choose a patch_size that divides both sides, or resize the images"
        )


def to_patches(x, patch):
    """(N, H, W, C) to (N, H/ph * W/pw, ph * pw * C): patches row by row, pixels in (ph, pw, C) order."""
    n, height, width, c = x.shape
    ph, pw = patch
    check_divides(height, width, patch)
    x = x.reshape(n, height // ph, ph, width // pw, pw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, (height // ph) * (width // pw), ph * pw * c)


def from_patches(x, patch, height, width):
    """The inverse of `to_patches`."""
    n, (ph, pw) = len(x), patch
    check_divides(height, width, patch)
    c = x.shape[-1] // (ph * pw)
    x = x.reshape(n, height // ph, width // pw, ph, pw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height, width, c)


class Patchify(Function, name="patchify"):
    """y = the patches of x: (N, H, W, C) -> (N, T, ph pw C), T = (H / ph) (W / pw)

    Every pixel lands in exactly one place, so g is laid back into the image.
    """

    @staticmethod
    def forward(ctx, x, *, patch_size):
        ctx.patch, ctx.size = patch_size, x.shape[1:3]
        return to_patches(x, patch_size)

    @staticmethod
    def backward(ctx, g):
        return (from_patches(g, ctx.patch, *ctx.size),)


class Unpatchify(Function, name="unpatchify"):
    """y = the image of which x are the patches: (N, T, ph pw C) -> (N, H, W, C)

    The inverse of Patchify, and a permutation of elements: g is cut into patches again.
    """

    @staticmethod
    def forward(ctx, x, *, patch_size, image_size):
        ctx.patch = patch_size
        return from_patches(x, patch_size, *image_size)

    @staticmethod
    def backward(ctx, g):
        return (to_patches(g, ctx.patch),)
