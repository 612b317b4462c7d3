"""Trains the CIFAR-10 network of the zoo: `python zoo/cifar10.py TEACHER --out FOLDER`, two hours on two cores.

TEACHER: a model that `tinybitvit study cifar100 --init-from dinov2-small --image-size 56 ...` has trained at 32 bits.
A small network learns much faster from what a large one makes of an image than from its label alone, so:

1. The teacher's features of all training images are computed once. A linear classifier on them gives the probabilities
   of the ten classes, and their first principal components are what the small network predicts beside the classes.
2. A float network of six blocks learns both. It begins with whitened patches and with attention to neighbours, as
   trained networks have it (Trockman and Kolter 2023, arXiv 2305.09828); Muon updates its matrices. Most of the time
   it sees a random half of the tokens, at twice the speed (PatchDropout, Liu et al. 2022, arXiv 2208.07220).
3. `tb.quantize` rounds it to one bit, and it learns the same once more.

A run that was cut goes on from its checkpoints.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import tinybitvit as tb
from tinybitvit import functional as F
from tinybitvit.data import Loader, make_augment
from tinybitvit.models import VisionTransformer
from tinybitvit.nn import Linear
from tinybitvit.optim import AdamW, WarmupCosine, decay_groups
from tinybitvit.study.presets import stretch
from tinybitvit.train import Checkpoints, Run, Trainer

CLASSES, COMPONENTS = 10, 64
TRUST = 0.5  # in the teacher's probabilities; the rest is the label
BATCH = 128
AUGMENT = "flip,crop:4"


# --- 1. what the teacher says -----------------------------------------------------------------------------------------


def features(teacher: tb.ViT, X: np.ndarray, folder: Path) -> np.ndarray:
    """The teacher's pooled tokens (N, dim) for images X; kept in the folder."""
    side, found = teacher.image_shape_[0], []
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(X), 2000):
        file = folder / f"{start:05d}.npy"
        if not file.exists():
            np.save(file, teacher.features(stretch(X[start : start + 2000], side)))
            print(f"features: {min(start + 2000, len(X))} of {len(X)} images", flush=True)
        found.append(np.load(file))
    return np.concatenate(found)


def targets(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, CLASSES + COMPONENTS): probabilities, and principal components, large ones with more variance."""
    z = (z - z.mean(0)) / z.std(0)
    p = LogisticRegression(C=0.01, max_iter=300).fit(z, y).predict_proba(z)
    print(f"the teacher's classifier: {(p.argmax(1) == y).mean():.2%} of its own training images")
    variances, directions = np.linalg.eigh(np.cov(z.T))
    components = z @ directions[:, -COMPONENTS:] / np.sqrt(variances[-COMPONENTS:].mean())
    return np.hstack([TRUST * p + (1 - TRUST) * np.eye(CLASSES)[y], components]).astype(np.float32)


# --- 2. how the small network learns it -------------------------------------------------------------------------------


def begin(net: VisionTransformer, X: np.ndarray, rng: np.random.Generator) -> None:
    """Initial weights that look at neighbours: X (N, H, W, C), normalised, shows what patches are like."""
    dim, heads = net.config["dim"], net.config["heads"]
    for block in net.blocks:
        qkv = block.attn.qkv.weight.data.reshape(3, heads, dim // heads, dim)
        noise = rng.normal(0, dim**-0.5, (heads + 1, dim, dim))
        for q, k, z in zip(qkv[0], qkv[1], noise[1:], strict=True):  # q^T k = 0.7 (I + noise), as far as its rank goes
            u, s, v = np.linalg.svd(0.7 * (np.eye(dim) + z))
            q[...], k[...] = np.sqrt(s[: len(q), None]) * u.T[: len(q)], np.sqrt(s[: len(q), None]) * v[: len(q)]
        u, s, v = np.linalg.svd(0.4 * (noise[0] - np.eye(dim)))  # proj v = 0.4 (noise - I)
        qkv[2] = (np.sqrt(s[:, None]) * v).reshape(qkv[2].shape)
        block.attn.proj.weight.data[...] = u * np.sqrt(s)
    patch = net.embed.patch
    patches = F.patchify(X, patch.patch_size).numpy().reshape(-1, patch.proj.in_features)
    variances, directions = np.linalg.eigh(np.cov(patches.T))
    spread = np.linalg.qr(rng.normal(size=(dim, len(variances))))[0]
    patch.proj.weight.data[...] = spread @ (directions / np.sqrt(variances + 0.01)).T
    patch.proj.bias.data[...] = -patch.proj.weight.data @ patches.mean(0)
    net.embed.pos_embed.data[...] = waves(patch.grid[0], dim)


def waves(side: int, dim: int) -> np.ndarray:
    """Sines and cosines of row and column (1, side^2, dim)."""
    angles = np.arange(side)[:, None] / 10000 ** (np.arange(dim // 4) * 4 / dim)
    line = np.hstack([np.sin(angles), np.cos(angles)])
    rows, columns = np.repeat(line, side, axis=0), np.tile(line, (side, 1))
    return np.hstack([rows, columns])[None]


class Muon(AdamW):
    """AdamW, but matrices of groups with "muon" move along the nearest orthogonal matrix to their mean gradient.

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the size of the step is that of Liu et al. 2025 (arXiv
    2502.16982, eq. 4), so that AdamW's learning rates fit.
    """

    def step(self, spread):
        self.steps += 1
        for group, buffer in zip(self.param_groups, self.buffers, strict=True):
            pieces = buffer.gather()
            if not group.get("muon"):
                spread(partial(self.update, np, group), list(buffer.stretches(pieces)))
                continue
            m = [buffer.slots[0][span].reshape(p.shape) for p, span in zip(buffer.params, buffer.spans, strict=True)]
            with threadpool_limits(1, "blas"):
                spread(partial(self.turn, group), list(zip(buffer.params, m, strict=True)))

    def turn(self, group, p, m):
        """One update of the Parameter p with the mean gradient m."""
        m *= 0.95
        m += p.grad
        mean = p.grad + 0.95 * m
        rows, columns = mean.shape
        parts = 3 if rows == 3 * columns else 1  # q, k and v are three matrices
        direction = np.concatenate([orthogonal(part) for part in np.split(mean, parts)])
        p.data *= 1 - group["lr"] * group["weight_decay"]
        p.data -= group["lr"] * 0.2 * max(rows / parts, columns) ** 0.5 * direction


def orthogonal(a: np.ndarray, rounds: int = 5) -> np.ndarray:
    """About U V^T of the singular value decomposition of a, by Newton and Schulz's iteration with Jordan's factors."""
    x = a / (np.linalg.norm(a) + 1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(rounds):
        s = x @ x.T
        x = 3.4445 * x + (2.0315 * (s @ s) - 4.775 * s) @ x
    return x.T if tall else x


class Schedule(WarmupCosine):
    """The learning rate, and in `kept` the tokens that the network sees: half of them before the update `all_from`."""

    def __init__(self, optimizer, total: int, all_from: int, tokens: int, seed: int):
        self.all_from, self.tokens, self.seed = all_from, tokens, seed
        super().__init__(optimizer, total, total // 20)

    def resume(self, last: int) -> None:
        super().resume(last)
        rng = np.random.default_rng([self.seed, last])
        half = np.sort(rng.permutation(self.tokens)[: self.tokens // 2])
        self.kept = half if last < self.all_from else np.arange(self.tokens)


def learn(model: tb.ViT, data, goals: np.ndarray, epochs: int, half: float, lr: float, decay: float, out: Path) -> None:
    """Train the network of a fitted model on the teacher's targets; half: the share of updates with half the tokens."""
    net, seed = model.model_, int(model.bits)  # each network has batches of its own
    rng = np.random.default_rng(seed)
    head = net.head
    net.head = Linear(net.config["dim"], CLASSES + COMPONENTS, rng=rng)
    net.head.weight.data[:CLASSES], net.head.bias.data[:CLASSES] = head.weight.data, head.bias.data
    optimizer = Muon(groups(net, decay), lr=lr, betas=(0.9, 0.98))
    images = data.X_train, np.arange(len(goals))
    augment = make_augment(AUGMENT, model.image_shape_)
    loader = Loader(*images, BATCH, rng=rng, augment=augment, transform=model.normalize_)
    total = epochs * len(loader)
    schedule = Schedule(optimizer, total, round(half * total), net.embed.tokens, seed)

    def objective(net, x, y):
        h = net.tokens(x)[:, schedule.kept]
        for block in net.blocks:
            h = block(h)
        z = net.classify(net.norm(h))
        loss = F.cross_entropy(z[:, :CLASSES], y[:, :CLASSES])
        return z[:, :CLASSES], loss + ((z[:, CLASSES:] - y[:, CLASSES:]) ** 2).mean()

    checkpoints = Checkpoints(out, 300, resume=True)
    trainer = Trainer(net, optimizer, objective=objective, rng=rng)
    run = Run(trainer, loader, schedule, targets=lambda x, i: goals[i], checkpoints=checkpoints)
    model.history_ = run.history
    while len(run.history["loss"]) < epochs:
        run.train(1)
        print(f"epoch {len(run.history['loss'])}/{epochs}  loss {run.history['loss'][-1]:.4f}", flush=True)
    head.weight.data[...], head.bias.data[...] = net.head.weight.data[:CLASSES], net.head.bias.data[:CLASSES]
    net.head = head


def groups(net: VisionTransformer, decay: float) -> list[dict]:
    """Those of `decay_groups`, with the matrices of the blocks in a group for Muon."""
    matrices = [p for block in net.blocks for p in block.parameters() if p.ndim == 2]
    others = decay_groups(net, decay)
    for group in others:
        group["params"] = [p for p in group["params"] if all(p is not m for m in matrices)]
    return [*others, {"params": matrices, "weight_decay": decay, "muon": True}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="file of a fitted 32-bit model, of CIFAR-100")
    parser.add_argument("--out", type=Path, default=Path("zoo-cifar10"), help="folder for the files and checkpoints")
    parser.add_argument("--epochs", type=int, nargs=2, default=(10, 3), help="of the float network and at one bit")
    parser.add_argument("--half", type=float, nargs=2, default=(0.8, 0.5), help="shares of them with half the tokens")
    parser.add_argument("--lr", type=float, nargs=2, default=(2e-3, 2e-3), help="peaks of the learning rate")
    args = parser.parse_args()
    data = tb.data.load_cifar10().named()
    y = np.unique(data.y_train, return_inverse=True)[1]
    goals = targets(features(tb.load(args.teacher), data.X_train, args.out / "features"), y)
    shape = {"patch_size": 4, "dim": 192, "depth": 6, "heads": 3, "mlp_ratio": 4}
    trained, rounded = args.out / "cifar10-32bit.safetensors", args.out / "cifar10-rounded.safetensors"
    if not trained.exists():
        full = tb.ViT(bits=32, **shape, augment=AUGMENT, epochs=0, random_state=0, verbose=0)
        full.fit(data.X_train, data.y_train)
        begin(full.model_, full.normalize_(data.X_train[:5000]), np.random.default_rng(0))
        learn(full, data, goals, args.epochs[0], args.half[0], args.lr[0], 0.05, args.out / "float")
        full.save(trained)
    print(f"32 bits: {tb.load(trained).score(data.X_test, data.y_test):.2%} of the test images", flush=True)
    if not rounded.exists():
        tb.quantize(tb.load(trained), data.X_train, bits=1).save(rounded)
    model = tb.load(rounded)
    print(f"rounded to 1 bit: {model.score(data.X_test, data.y_test):.2%}", flush=True)
    learn(model, data, goals, args.epochs[1], args.half[1], args.lr[1], 0.0, args.out / "1-bit")
    file = args.out / "cifar10-1bit.safetensors"
    model.save(file, packed=True, half=True)
    print(f"{file}: {file.stat().st_size:,} bytes, {tb.load(file).score(data.X_test, data.y_test):.2%}", flush=True)


if __name__ == "__main__":
    main()
