# %% [markdown]
# # 11 The same code on a GPU, and on several processes
#
# A GPU has its own memory, and a second process has its own everything. Yet nothing in `ops/` or `nn/` knows of either.
# This tutorial shows the two ideas that make it so: *the array decides* where an operation runs, and *gradients add
# up*, so that a batch may be cut into shards.
#
# Everything runs without a GPU and without MPI. Where one of them is missing, the cell says so and claims nothing.
#
# You need tutorials 01 and 04.

# %%
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tinybitvit as tb
from tinybitvit import backend
from tinybitvit.ops import Function, norm
from tinybitvit.tensor import apply
from tinybitvit.train import Trainer, cores
from tinybitvit.train.ranks import Group
from tinybitvit.viz.figure import PALETTE, new_figure

# %% [markdown]
# ## 1. What have we got?

# %%
chosen = backend.resolve_device("auto")
print("device='auto' is", chosen, "here")
if chosen == "cpu":
    print("the reason:", backend.cuda_problem())
devices = ["cpu"] if chosen == "cpu" else ["cpu", "cuda"]
print("so this tutorial runs on", " and ".join(devices))
assert chosen in ("cpu", "cuda")

# %% [markdown]
# `"auto"` takes a GPU that *works*: a kernel and a matrix product were tried. **Predict**: what should happen if you
# ask for `"cuda"` by name on a machine without? Should the library quietly take the CPU?

# %%
try:
    tb.Tensor([1.0, 2.0], device="cuda")
except RuntimeError as error:
    print("RuntimeError:", error)
    assert chosen == "cpu"
else:
    print("a GPU is here, and it was taken")
    assert chosen == "cuda"

# %% [markdown]
# It refuses. A run that should take an hour and quietly takes a week is the worst answer.
#
# ## 2. The array decides
#
# CuPy is NumPy's interface on a GPU: `cupy.exp`, `cupy.matmul`, `a.sum(axis=0)`. So an operation needs no second
# version. It needs to know *which module* to call, and its input tells:

# %%
print(inspect.getsource(backend.array_module))
print(inspect.getsource(norm.Softmax))
assert "numpy" not in inspect.getsource(norm.Softmax)

# %% [markdown]
# Where does `xp` come from? `apply` asks once for each operation and puts it into `ctx.xp`. **Predict** what this
# operation of ours prints. (It is a whole new differentiable operation, and it knows nothing of devices.)


# %%
class Square(Function):
    """y = x^2, dL/dx = 2 x g"""

    @staticmethod
    def forward(ctx, x):
        print("forward with", ctx.xp.__name__)
        ctx.save(x)
        return ctx.xp.square(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        return (2 * x * g,)


for device in devices:
    x = tb.Tensor([1.0, -3.0], requires_grad=True, device=device)
    y = apply(Square, x)
    y.sum().backward()
    print(device, "->", y.device, y.numpy(), "gradient", backend.to_numpy(x.grad))
    assert y.device == device
    assert y.numpy().tolist() == [1, 9] and backend.to_numpy(x.grad).tolist() == [2, -6]

# %% [markdown]
# The same for a whole network. All random numbers, the first weights included, are drawn on the host: on a GPU the run
# starts from the same bits. After that, sums are added up in another order, and the last digits differ.

# %%
digits = tb.data.load_digits()
for device in devices:
    model = tb.ViT(bits=1.58, epochs=2, device=device, verbose=0, random_state=0).fit(digits.X_train, digits.y_train)
    where = {p.device for p in model.model_.parameters()}
    print(device, "-> parameters on", where, "test accuracy", round(model.score(digits.X_test, digits.y_test), 3))
    assert where == {device}
    assert isinstance(model.predict(digits.X_test[:2]), np.ndarray)  # what comes back is NumPy, wherever it ran

# %% [markdown]
# Two rules keep this simple. An operation never mixes devices: it raises an error that says `.to("cpu")` or
# `.to("cuda")`. And nothing travels silently: CuPy refuses to become a NumPy array unless you ask.
#
# When does a GPU pay? Every operation costs the start of a kernel, some microseconds, however small the arrays are. For
# the digits, where a whole step takes a few milliseconds, do not expect much; the wide networks are what it is for.
#
# ## 3. Gradients add up: by hand
#
# The loss of a batch is a *mean* over its rows, so its gradient is the mean of the rows' gradients. Five rows,
# gradients 1, 2, 3, 4, 10: the mean is 4. Now two workers take three and two rows, and each computes the mean of its
# own. **Predict**: is the mean of the two means right?

# %%
rows = np.array([1.0, 2, 3, 4, 10])
shards = [slice(0, 3), slice(3, 5)]
means = [float(rows[s].mean()) for s in shards]
shares = [(s.stop - s.start) / len(rows) for s in shards]
print(f"means {means}, their mean {np.mean(means)}; weighted by {shares}: {np.dot(means, shares)}")
assert np.mean(means) == 4.5
assert np.isclose(np.dot(means, shares), rows.mean()) and rows.mean() == 4

# %% [markdown]
# A shard counts by its share of the rows:
#
# $$\frac{\partial L}{\partial w} = \sum_s \frac{n_s}{N}\, \frac{\partial L_s}{\partial w}, \qquad
# L_s = \frac1{n_s} \sum_{i \in s} \ell_i .$$
#
# The library does not divide afterwards; it *starts* the backward pass of a shard with $g = n_s / N$ instead of 1, and
# adds up.
#
# ## 4. Two shards of a Vision Transformer
#
# **Predict**: the sum of the two shards' gradients and the gradient of the whole batch. Equal in float64 to how many
# digits? In float32? Bit for bit?

# %%
normalize = tb.data.Normalize.fit(digits.X_train)
images, labels = normalize(digits.X_train[:13]), digits.y_train[:13]


def network(dtype="float32", **options):
    settings = {"dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 2, "bits": 32, **options}
    model = tb.models.VisionTransformer(8, 2, 1, 10, **settings, rng=np.random.default_rng(0))
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    return model


def gradients(model, rows):
    """The share of the rows in dL/dp, for every parameter."""
    dtype = model.parameters()[0].dtype
    loss = tb.functional.cross_entropy(model(tb.Tensor(images[rows].astype(dtype))), tb.Tensor(labels[rows]))
    share = (rows.stop - rows.start) / len(images)
    return tb.grad(loss, model.parameters(), np.asarray(share, dtype))


largest = {}
for dtype in ("float64", "float32"):
    model = network(dtype)
    whole = gradients(model, slice(0, 13))
    parts = [gradients(model, rows) for rows in (slice(0, 6), slice(6, 13))]
    total = [a + b for a, b in zip(*parts, strict=True)]
    size = max(np.abs(g).max() for g in whole)
    largest[dtype] = max(np.abs(a - b).max() for a, b in zip(whole, total, strict=True)) / size
    print(f"{dtype}: largest difference {largest[dtype]:.0e} of the largest gradient")
assert largest["float64"] < 1e-12 and largest["float32"] < 1e-4

# %% [markdown]
# Equal, up to rounding. Not bit for bit, because addition of floats is not associative:

# %%
a, b, c = np.float32(1e8), np.float32(-1e8), np.float32(1)
print("(a + b) + c =", (a + b) + c, "   a + (b + c) =", a + (b + c))
assert (a + b) + c == 1 and a + (b + c) == 0

# %% [markdown]
# What would *break* the sum? Anything through which the rows of a batch see each other, such as batch normalisation. A
# Vision Transformer has none: norms and the scales of activations belong to single tokens.
#
# ## 5. Worker threads
#
# `tb.train.Trainer` does what we did, with a thread for each shard: NumPy lets go of the interpreter lock inside its
# loops. The gradients are summed first to last, whichever thread is done first:

# %%
print(inspect.getsource(Trainer._sum))

# %% [markdown]
# **Predict**: same number of workers, run twice: the same bits? One worker against two: the same bits?


# %%
def losses(workers, steps=6, **options):
    model = network(**options)
    optimizer = tb.optim.SGD(model.parameters(), lr=0.05)
    trainer = Trainer(model, optimizer, workers=workers, rng=0)
    return np.array([trainer.step(images, labels) for _ in range(steps)])


one, two, again = losses(1), losses(2), losses(2)
print("one worker ", one)
print("two workers", two)
assert (two == again).all()
assert np.allclose(one, two, rtol=1e-4)

# %% [markdown]
# Does it pay? That depends on your cores and on what else they do, so here is a measurement, not a claim. A wider
# network, 64 images of 32 x 32 pixels:

# %%
rng = np.random.default_rng(0)
batch, targets = rng.standard_normal((64, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 64)


def seconds_a_step(workers, count, rounds=3):
    """The shortest of some steps on `count` images."""
    model = tb.models.VisionTransformer(32, 4, 3, 10, dim=96, depth=2, heads=3, bits=32, rng=np.random.default_rng(0))
    trainer = Trainer(model, tb.optim.AdamW(model.parameters(), lr=1e-3), workers=workers)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        trainer.step(batch[:count], targets[:count])
        times.append(time.perf_counter() - start)
    return min(times[1:])


print(cores(), "cores may be used")
for workers in (1, 2):
    print(f"{workers} worker{'s' * (workers > 1)}: {64 / seconds_a_step(workers, 64):.0f} images a second")

# %% [markdown]
# ## 6. Processes, and machines
#
# The same once more with *processes*: each holds the whole model, takes its rows of every batch, and the gradients are
# summed over all of them: one `Allreduce` a step. MPI brings the processes to life and does the sum.

# %%
print(inspect.getsource(Group.rows))
print(inspect.getsource(Group.sum))
ranks = [slice(13 * r // 3, 13 * (r + 1) // 3) for r in range(3)]  # what `rows(13)` gives to three ranks
assert [s.stop - s.start for s in ranks] == [4, 4, 5] and ranks[-1].stop == 13

# %% [markdown]
# A program for several processes is an ordinary one within `data_parallel()`. It is started with
#
#     mpiexec -n 2 python -m mpi4py program.py
#
# `mpiexec` starts two copies; `-m mpi4py` sees to it that a copy that fails ends the other, which would otherwise wait
# for it for ever. The cell below runs exactly that, if MPI is installed (`pip install "tinybitvit[mpi]"`), and compares
# with one process. **Predict**: two epochs on two processes against one process: how far apart are the losses?

# %%
PROGRAM = """
import tinybitvit as tb
from tinybitvit.train.ranks import data_parallel

digits = tb.data.load_digits()
with data_parallel() as group:
    model = tb.ViT(bits=32, epochs=2, random_state=0, verbose=0, workers=1, device="cpu")
    model.fit(digits.X_train[:400], digits.y_train[:400])
    print(group.size, *model.history_["loss"])
"""
mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
environment = {**os.environ, "PYTHONPATH": str(Path(tb.__file__).parent.parent)}
found = {}
if mpiexec is None or importlib.util.find_spec("mpi4py") is None:
    print('MPI is not installed here, so nothing was run: pip install "tinybitvit[mpi]"')
else:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "program.py").write_text(PROGRAM, encoding="utf-8")
        for n in (1, 2):
            command = [mpiexec, "-n", str(n), sys.executable, "-m", "mpi4py", "program.py"]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
            if done.returncode:
                print(f"mpiexec does not work here, so nothing is claimed: {done.stderr.strip()[-300:]}")
                break
            size, *found[n] = map(float, done.stdout.split())
            print(f"{size:g} process{'es' * (n > 1)}: losses {found[n]}")
            assert size == n
if len(found) == 2:
    assert np.allclose(found[1], found[2], rtol=1e-3)

# %% [markdown]
# What is learnt depends on the *batch size*, not on the number of processes: `batch_size` is that of the whole batch.
#
# ## 7. How far does it go?
#
# With $R$ ranks, a batch of $B$ images, $c$ seconds an image and $u$ seconds for the update, which every rank makes, a
# step takes
#
# $$t(R) = \frac{c\, B}{R} + u + a(R), \qquad a(R) = \frac{2 (R - 1)}{R} \cdot \frac{S}{w} ,$$
#
# where $S$ is the size of the gradients and $w$ the bandwidth: in a ring, each rank sends $2 (R - 1) / R$ of the array.
# The first term shrinks, the others do not (Amdahl's law). **Predict** where doubling the ranks stops helping. We
# *measure* $c$ and $u$ on this machine, with one worker; the bandwidths are *assumed*: 1 Gbit/s and 10 Gbit/s.

# %%
few, many = seconds_a_step(1, 16), seconds_a_step(1, 64)
c = max((many - few) / 48, 1e-6)
u = max(few - 16 * c, 0.0)
S = 4 * sum(p.size for p in tb.models.VisionTransformer(32, 4, 3, 10, dim=96, depth=2, heads=3, bits=32).parameters())
print(f"c = {1e3 * c:.2f} ms an image, u = {1e3 * u:.2f} ms, S = {S / 1e6:.2f} MB")
R = 2.0 ** np.arange(7)
figure = new_figure(6, 3)
ax = figure.subplots()
for i, (label, w) in enumerate({"10 Gbit/s": 1.25e9, "1 Gbit/s": 1.25e8}.items()):
    t = c * 64 / R + u + 2 * (R - 1) / R * S / w
    ax.plot(R, t[0] / t, "o-", color=PALETTE[i], label=label)
    assert 1 <= (t[0] / t).max() <= R[-1]
ax.plot(R, R, color="black", linestyle="--", label="ideal")
ax.set(xscale="log", yscale="log", xlabel="ranks", ylabel="times as fast as one", ylim=(0.7, 90))
ax.set_xticks(R, [f"{r:g}" for r in R])
ax.minorticks_off()
ax.legend(fontsize=8)
figure

# %% [markdown]
# A model, not a measurement: only $c$, $u$ and $S$ are from here. Its message is robust, though: a small batch of a
# small network is exhausted soon. More ranks want larger batches, or larger networks.
#
# ## Exercises
#
# 1. *(by hand)* Three ranks, a batch of 10. Which rows does `Group.rows` give to each, and with which $g$ does each
#    start its backward pass?
# 2. *(code)* With `sample_weight` the loss is a *weighted* mean. Write down the right share of a shard, and check it
#    with two shards and `F.cross_entropy(logits, labels, weight)` against the whole batch.
# 3. *(break it)* Give the activations one scale for the whole *batch* instead of one a token, and repeat section 4 with
#    `bits=1.58`. How large is the difference now, and why?
# 4. *(measure)* Plot images a second over the number of images for one worker and for two. From which size on do two
#    pay? Find the line in `train.shards.Threads` that guesses it.
# 5. *(GPU needed)* Time `Trainer.step` on "cpu" and "cuda" for `dim` 32, 96, 192, 384. Where do the lines cross?
#    `tb.ViT`'s default is `device="auto"`: would you choose otherwise for the digits?
