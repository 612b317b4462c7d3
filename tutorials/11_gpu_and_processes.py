# %% [markdown]
# # 11 The same code on a GPU, and on several processes
#
# A GPU has its own memory, and a second process has its own everything. Yet nothing in `ops/` or `nn/` knows of either.
# Two ideas make it so: *the array decides* where an operation runs, and *gradients add up*, so that a batch may be cut
# into shards. Here you write both, and the sum over a ring of processes.
#
# Everything runs without a GPU and without MPI. Where one of them is missing, the cell says so and claims nothing.
#
# You need lessons 01 and 04.

# %%
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import tinybitvit as tb
from tinybitvit import autograd, backend
from tinybitvit.course import answer, check, keep, parts, predict, solution, yours
from tinybitvit.course.lessons.lesson11 import FarArray, Wire, far
from tinybitvit.ops import norm
from tinybitvit.train import Trainer, cores
from tinybitvit.train.ranks import Group
from tinybitvit.viz.figure import PALETTE, new_figure

# %% [markdown]
# ## 1. What have we got?
#
# `device="auto"` takes a GPU that *works*: a kernel and a matrix product were tried. And if you ask for `"cuda"` by
# name on a machine without one? What should a library do that you leave alone overnight?

# %% kind="predict"
guess = predict('device="cuda" without a GPU', choices=["takes the CPU", "warns and takes the CPU", "refuses"])

# %%
chosen = backend.resolve_device("auto")
devices = ["cpu"] if chosen == "cpu" else ["cpu", "cuda"]
print("device='auto' is", chosen, "here, so this lesson runs on", " and ".join(devices))

# %% kind="answer"
answer('device="cuda" without a GPU', "refuses")
try:
    tb.Tensor([1.0, 2.0], device="cuda")
except RuntimeError as error:
    print("RuntimeError:", error)
    assert chosen == "cpu"
else:
    print("a GPU is here, and it was taken")
    assert chosen == "cuda"

# %% [markdown]
# A run that should take an hour and quietly takes a week is the worst answer.
#
# ## 2. The array decides
#
# CuPy is NumPy's interface on a GPU: `cupy.exp`, `cupy.matmul`, `a.sum(axis=0)`. Not everybody has one, so `far` is a
# pretended device with arrays of its own, which NumPy may not touch, as with a GPU's. What happens to the softmax of
# lesson 03 there?


# %% kind="naive"
def softmax_here(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


x = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
print(softmax_here(x))
try:
    softmax_here(FarArray(x))
except TypeError as error:
    print("TypeError:", error)

# %% [markdown]
# One name is wrong in it: `np`. An operation needs no second version for a second device. It needs to know *which
# module* to call, and its input tells. Arrays of two devices at once are a mistake of the caller's: nothing should
# travel silently, for that is slow.


# %% kind="your-turn"
@yours("11.1")
def module_of(arrays, modules):
    """The one of the modules (np, far) of whose kind, module.ndarray, all of the arrays are; else TypeError."""
    # module_of((np.zeros(2),), (np, far)) is np; of an array of each kind it raises TypeError
    ...


check(module_of)


# %% kind="solution"
@solution("11.1")
def module_of(arrays, modules):
    """The one of the modules (np, far) of whose kind, module.ndarray, all of the arrays are; else TypeError."""
    for module in modules:
        if all(isinstance(a, module.ndarray) for a in arrays):
            return module
    raise TypeError("the arrays are not all on one device: move one of them first")


# %% [markdown]
# Now softmax runs anywhere. On a GPU each line starts a **kernel**, or several: a function that runs there, on all
# numbers at once. `far` keeps a list of those that it started. How many is it for one softmax?

# %% kind="predict"
guess = predict("kernels of a softmax", "kernels")


# %%
def softmax(x):
    xp = module_of((x,), (np, far))
    e = xp.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


FarArray.started.clear()
there = softmax(FarArray(x))

# %% kind="answer"
print(", ".join(FarArray.started))
answer("kernels of a softmax", 5, measured=len(FarArray.started))
assert (there.held == softmax(x)).all() and (softmax(x) == softmax_here(x)).all()

# %% [markdown]
# The library does the same. `apply` asks for the module once for each operation, and puts it into `ctx.xp`:

# %%
print(inspect.getsource(backend.array_module))
print(inspect.getsource(norm.Softmax))

# %% kind="see"
assert "numpy" not in inspect.getsource(norm.Softmax)
for device in devices:
    t = tb.Tensor([1.0, -3.0], requires_grad=True, device=device)
    (t * t).sum().backward()
    print(device, "-> gradient", backend.to_numpy(t.grad), "on", backend.device_of(t.grad))
    assert backend.device_of(t.grad) == device and backend.to_numpy(t.grad).tolist() == [2, -6]

# %% [markdown]
# ## 3. Small kernels
#
# To start a kernel takes a GPU some 5 microseconds, whether it works on ten numbers or ten million. Then it is fast:
# say 10 million operations a *micro*second. A training step on 64 digits, with a network of `dim` 32 and two blocks:
# what takes longer, starting the kernels, or the arithmetic of its products? By how much?

# %% kind="predict"
guess = predict("starting the kernels takes", choices=["a tenth of the arithmetic", "as long", "fifty times as long"])

# %%
digits = tb.data.load_digits()
normalize = tb.data.Normalize.fit(digits.X_train)
images, labels = normalize(digits.X_train[:64]), digits.y_train[:64]


def network(dtype="float32", **options):
    settings = {"dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 2, "bits": 32, **options}
    model = tb.models.VisionTransformer(8, 2, 1, 10, **settings, rng=np.random.default_rng(0))
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    return model


def operations(loss):
    """The number of operations that a loss was computed with: the nodes of its graph."""
    seen, stack = set(), [loss.node]
    while stack:
        node = stack.pop()
        if isinstance(node, autograd.Node) and node not in seen:
            seen.add(node)
            stack.extend(node.inputs)
    return len(seen)


# %% kind="answer"
model = network()
count = operations(tb.functional.cross_entropy(model(tb.Tensor(images)), tb.Tensor(labels)))
kernels = 2 * 2 * count  # a pass forth and one back, at least two kernels each
arithmetic = 3 * 2 * 64 * 16 * sum(p.size for p in model.parameters() if p.ndim == 2)  # 16 tokens; back twice as much
starting, computing = 5 * kernels, arithmetic / 10e6
print(f"{count} operations, so {kernels} kernels at least: {starting} microseconds")
print(f"{arithmetic / 1e6:.0f} million operations in products: {computing:.0f} microseconds")
answer("starting the kernels takes", "fifty times as long")
assert 25 < starting / computing < 100

# %% [markdown]
# A count, not a measurement. But it tells what to expect: for the digits a GPU mostly waits for its next kernel. Each
# doubling of `dim` makes the arithmetic four times as much, and the kernels stay as many. Wide networks are what a GPU
# is for. (Fusing operations into one kernel is what compilers like `torch.compile` do about it.)
#
# All random numbers, the first weights included, are drawn on the host: on a GPU a run starts from the same bits. Then
# sums are added up in another order there, and the last digits differ.

# %%
for device in devices:
    model = tb.ViT(bits=1.58, epochs=2, device=device, verbose=0, random_state=0).fit(digits.X_train, digits.y_train)
    where = {p.device for p in model.model_.parameters()}
    print(device, "-> parameters on", where, "test accuracy", round(model.score(digits.X_test, digits.y_test), 3))

# %% kind="see"
assert where == {devices[-1]}
assert isinstance(model.predict(digits.X_test[:2]), np.ndarray)  # what comes back is NumPy, wherever it ran

# %% [markdown]
# ## 4. Gradients add up
#
# The loss of a batch is a *mean* over its rows, so its gradient is the mean of the rows' gradients. Five rows with
# gradients 1, 2, 3, 4, 10. Two workers take three rows and two, and each gives the mean of its own. Is the mean of the
# two means the mean of all?

# %% kind="predict"
guess = predict("the mean of the means is", choices=["too small", "right", "too large"])

# %% kind="naive"
rows = np.array([1.0, 2, 3, 4, 10])
means = [float(rows[:3].mean()), float(rows[3:].mean())]

# %% kind="answer"
print(f"means {means}, their mean {np.mean(means)}; the mean of all is {rows.mean()}")
answer("the mean of the means is", "too large")
assert np.mean(means) > rows.mean()

# %% [markdown]
# A row of the smaller **shard** counts more than one of the larger. So each shard gets its share of the rows as weight:
#
# $$\frac{\partial L}{\partial w} = \sum_s \frac{n_s}{N}\, \frac{\partial L_s}{\partial w}, \qquad
# L_s = \frac1{n_s} \sum_{i \in s} \ell_i .$$


# %% kind="your-turn"
@yours("11.2")
def sharded_gradient(gradient, n, workers):
    """The gradient of n rows from shards: gradient(slice) is the mean gradient of some rows, at least one."""
    # of rows 1, 2, 3, 4, 10 and 2 workers: worker r takes slice(n * r // workers, n * (r + 1) // workers); 4.0
    ...


check(sharded_gradient)


# %% kind="solution"
@solution("11.2")
def sharded_gradient(gradient, n, workers):
    """The gradient of n rows from shards: gradient(slice) is the mean gradient of some rows, at least one."""
    total = 0.0
    for r in range(workers):
        rows = slice(n * r // workers, n * (r + 1) // workers)
        if rows.stop > rows.start:
            total = total + (rows.stop - rows.start) / n * gradient(rows)
    return total


# %% [markdown]
# Now a Vision Transformer, 13 images in two shards, all its gradients in one long array. How equal are they to the
# gradients of the whole batch?

# %% kind="predict"
guess = predict("two shards and the whole batch", choices=["equal to a few digits", "up to rounding", "bit for bit"])


# %%
def flat_gradient(model):
    """The function that gives the gradient of all parameters, as one array, for a slice of the images."""

    def gradient(rows):
        x = tb.Tensor(images[rows].astype(model.parameters()[0].dtype))
        loss = tb.functional.cross_entropy(model(x), tb.Tensor(labels[rows]))
        return np.concatenate([g.ravel() for g in tb.grad(loss, model.parameters())])

    return gradient


off, equal = {}, {}
for dtype in ("float64", "float32"):
    gradient = flat_gradient(network(dtype))
    whole, sharded = gradient(slice(0, 13)), sharded_gradient(gradient, 13, 2)
    off[dtype] = float(np.abs(whole - sharded).max() / np.abs(whole).max())
    equal[dtype] = bool((whole == sharded).all())

# %% kind="answer"
for dtype, largest in off.items():
    print(f"{dtype}: largest difference {largest:.0e} of the largest gradient")
answer("two shards and the whole batch", "up to rounding")
assert off["float64"] < 1e-12 and off["float32"] < 1e-4
assert not any(equal.values())
a, b, c = np.float32(1e8), np.float32(-1e8), np.float32(1)
print("why not bit for bit: (a + b) + c =", (a + b) + c, "   a + (b + c) =", a + (b + c))
assert (a + b) + c == 1 and a + (b + c) == 0

# %% [markdown]
# What would *break* the sum? Anything through which the rows of a batch see each other, such as batch normalisation. A
# Vision Transformer has none: norms and the scales of activations belong to single tokens.
#
# The library does not weigh afterwards: it *starts* the backward pass of a shard with $g = n_s / N$ instead of 1, and
# adds up. With a thread for each shard that is `tb.train.Trainer`, for NumPy lets go of the interpreter lock inside its
# loops. Sums are taken first to last, whichever thread is done first:

# %%
print(inspect.getsource(Trainer._sum))


def losses(workers, steps=6):
    model = network()
    trainer = Trainer(model, tb.optim.SGD(model.parameters(), lr=0.05), workers=workers, rng=0)
    return np.array([trainer.step(images[:13], labels[:13]) for _ in range(steps)])


one, two, again = losses(1), losses(2), losses(2)
print("two workers twice: the same bits?", (two == again).all())

# %% kind="see"
print("one worker ", one)
print("two workers", two)
assert (two == again).all() and np.allclose(one, two, rtol=1e-4)

# %% [markdown]
# ## 5. A ring
#
# Processes share no memory. Each of R **ranks** has computed the gradients of its rows, an array of S bytes, and all of
# them need the sum, an **all-reduce**. One would first think of a chief: everybody sends to rank 0, which adds up and
# sends the sum to everybody. With 8 ranks the chief receives 7 arrays and sends 7, while the others wait.

# %% kind="naive"
arrays = np.random.default_rng(0).integers(-9, 10, (8, 16)).astype(float)
wire = Wire(8)  # wire(r, chunk): what arrives when rank r sends a chunk; it counts the numbers
total = arrays[0].copy()
for r in range(1, 8):
    total += wire(r, arrays[r])
for _ in range(1, 8):
    wire(0, total)
print("arrays sent by each rank:", [sent / 16 for sent in wire.sent])

# %% [markdown]
# In a **ring** each rank talks to its right neighbour only, and cuts its array into R chunks. Each chunk travels once
# around and is added up on its way; then the sums travel around once more. All ranks send at the same time, so the
# largest number in such a list decides. What is it in the ring?

# %% kind="predict"
guess = predict("most arrays sent by one of 8 ranks, in a ring", "arrays")

# %% [markdown]
# With three ranks, and c the chunk that is sent (all in one step at the same time):
#
# | step | rank 0 sends | rank 1 sends | rank 2 sends | the neighbour |
# |---|---|---|---|---|
# | s = 0 | chunk 0 | chunk 1 | chunk 2 | adds it to its own |
# | s = 1 | chunk 2 | chunk 0 | chunk 1 | adds it to its own |
# | s = 0 | chunk 1 | chunk 2 | chunk 0 | takes it instead of its own |
# | s = 1 | chunk 0 | chunk 1 | chunk 2 | takes it instead of its own |
#
# So in the first round rank r sends chunk (r - s) mod R. After it, who holds the whole sum of chunk 1?


# %% kind="your-turn"
@yours("11.3")
def ring_sum(chunks, send):
    """Change chunks[r][c], chunk c of rank r, into the sum over all ranks; send(r, chunk) is what rank r + 1 gets."""
    # chunks = [[a0, a1], [b0, b1]] becomes [[a0 + b0, a1 + b1], [a0 + b0, a1 + b1]]
    R = len(chunks)
    ...  # R - 1 steps that add, R - 1 steps that replace; (r + 1) % R is the neighbour


check(ring_sum)


# %% kind="solution"
@solution("11.3")
def ring_sum(chunks, send):
    """Change chunks[r][c], chunk c of rank r, into the sum over all ranks; send(r, chunk) is what rank r + 1 gets."""
    R = len(chunks)
    for s in range(R - 1):
        for r in range(R):
            c = (r - s) % R
            chunks[(r + 1) % R][c] = chunks[(r + 1) % R][c] + send(r, chunks[r][c])
    for s in range(R - 1):
        for r in range(R):
            c = (r + 1 - s) % R
            chunks[(r + 1) % R][c] = send(r, chunks[r][c])


# %% [markdown]
# Run it on real gradients: eight threads play the ranks, each computes the gradient of its eight digits, and your ring
# adds up.

# %%
gradient = flat_gradient(network("float64"))
with ThreadPoolExecutor(2) as pool:
    found = list(pool.map(lambda r: gradient(slice(8 * r, 8 * r + 8)) / 8, range(8)))
wire = Wire(8)
chunks = [np.array_split(g, 8) for g in found]
ring_sum(chunks, wire)

# %% kind="answer"
sent = [numbers / found[0].size for numbers in wire.sent]
print("arrays sent by each rank:", np.round(sent, 3))
answer("most arrays sent by one of 8 ranks, in a ring", 1.75, measured=max(sent), tolerance=0.01)
whole = gradient(slice(0, 64))
for rank in chunks:
    assert np.abs(np.concatenate(rank) - whole).max() < 1e-12 * np.abs(whole).max()

# %% [markdown]
# $2 (R - 1) / R$ arrays: nearly two, however many ranks there are. (Patarasuk and Yuan 2009; a *tree* sends more, but
# needs fewer steps, so small arrays go by tree.) The library leaves it to MPI, whose `Allreduce` chooses:

# %%
print(inspect.getsource(Group.rows))
print(inspect.getsource(Group.sum))

# %% [markdown]
# ## 6. Random numbers
#
# Some random numbers must be equal on all ranks: the order of the batches, or they would train on the same image twice.
# Others must *not*: with dropout each rank should drop other units. A colleague writes `default_rng(seed + rank)`, and
# repeats the experiment with seeds 0 to 4, on 4 ranks. How many different streams of numbers are these 20?

# %% kind="predict"
guess = predict("different streams", "streams")

# %% kind="naive"
streams = {(seed, rank): np.random.default_rng(seed + rank).random() for seed in range(5) for rank in range(4)}

# %% kind="answer"
answer("different streams", 8, measured=len(set(streams.values())))

# %% [markdown]
# Seed 3 on rank 1 is seed 4 on rank 0. So the five runs are no independent ones, and their spread is too small. Better:
# all ranks draw from one generator, which keeps them in step, a seed for *each* rank; each takes its own.


# %% kind="your-turn"
@yours("11.4")
def rank_rng(seed, ranks, rank):
    """The generator of one of the ranks: decided by the seed, and shared with no other rank or seed."""
    # np.random.default_rng(seed).integers(2**63, size=2) are two numbers that could be seeds
    ...


check(rank_rng)


# %% kind="solution"
@solution("11.4")
def rank_rng(seed, ranks, rank):
    """The generator of one of the ranks: decided by the seed, and shared with no other rank or seed."""
    seeds = np.random.default_rng(seed).integers(2**63, size=ranks)
    return np.random.default_rng(seeds[rank])


# %% [markdown]
# The library's dropout starts so, rank by rank and then shard by shard:

# %%
print(inspect.getsource(Trainer._seeds))

# %% [markdown]
# ## 7. Processes, and machines
#
# A program for several processes is an ordinary one within `data_parallel()`. It is started with
#
#     mpiexec -n 2 python -m mpi4py program.py
#
# `mpiexec` starts two copies; `-m mpi4py` sees to it that a copy that fails ends the other, which would otherwise wait
# for it for ever. Two epochs on two processes and on one, with the same `batch_size`: how far apart are the losses?

# %% kind="predict"
guess = predict("losses of two processes", choices=["half as large", "equal to three digits", "unrelated"])

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


# %%
def run_processes(n, folder):
    """What PROGRAM prints on n processes; None, and a line, where MPI does not work."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mpiexec = shutil.which("mpiexec", path=places)
    if mpiexec is None or importlib.util.find_spec("mpi4py") is None:
        return print('MPI is not installed here, so nothing was run: pip install "tinybitvit[mpi]"')
    (Path(folder) / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(tb.__file__).parent.parent)}
    command = [mpiexec, "-n", str(n), sys.executable, "-m", "mpi4py", "program.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        return print(f"mpiexec does not work here, so nothing is claimed: {done.stderr.strip()[-300:]}")
    size, *losses = map(float, done.stdout.split())
    assert size == n
    return losses


# %%
with tempfile.TemporaryDirectory() as folder:
    by_processes = {n: run_processes(n, folder) for n in (1, 2)}

# %% kind="answer"
answer("losses of two processes", "equal to three digits")
for n, found_losses in by_processes.items():
    print(f"{n} process{'es' * (n > 1)}: losses {found_losses}")
if all(by_processes.values()):
    assert np.allclose(*by_processes.values(), rtol=1e-3)

# %% [markdown]
# What is learnt depends on the *batch size*, not on the number of processes: `batch_size` is that of the whole batch.
#
# ## 8. How far does it go?
#
# With R ranks, a batch of B images, c seconds an image and u seconds for the update, which every rank makes, a step
# takes
#
# $$t(R) = \frac{c\, B}{R} + u + a(R), \qquad a(R) = \frac{2 (R - 1)}{R} \cdot \frac{S}{w} ,$$
#
# with S the bytes of the gradients, w the bandwidth, and your ring's factor. We *measure* c and u here, with one
# worker. A batch of 64 and a network of 1 MB, 64 ranks, one image each, a network of 1 Gbit/s (*assumed*): are 64 ranks
# about 64 times as fast as one?

# %% kind="predict"
guess = predict("64 ranks at 1 Gbit/s are", choices=["about 64 times as fast", "far less"])

# %%
rng = np.random.default_rng(0)
batch, targets = rng.standard_normal((64, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 64)
wide = tb.models.VisionTransformer(32, 4, 3, 10, dim=96, depth=2, heads=3, bits=32, rng=np.random.default_rng(0))


def seconds_a_step(workers, count, rounds=3):
    """The shortest of some steps on `count` images."""
    trainer = Trainer(wide, tb.optim.AdamW(wide.parameters(), lr=1e-3), workers=workers)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        trainer.step(batch[:count], targets[:count])
        times.append(time.perf_counter() - start)
    return min(times[1:])


print(cores(), "cores may be used")
for workers in (1, 2):
    print(f"{workers} worker{'s' * (workers > 1)}: {64 / seconds_a_step(workers, 64):.0f} images a second")
few, many = seconds_a_step(1, 16), seconds_a_step(1, 64)
c = max((many - few) / 48, 1e-6)
u = max(few - 16 * c, 0.0)
S = 4 * sum(p.size for p in wide.parameters())

# %% kind="answer"
R = 2.0 ** np.arange(7)
speedup = {}
for label, w in {"10 Gbit/s": 1.25e9, "1 Gbit/s": 1.25e8}.items():
    t = c * 64 / R + u + 2 * (R - 1) / R * S / w
    speedup[label] = t[0] / t
    print(f"{label:9} times as fast with {R.astype(int).tolist()} ranks: {np.round(speedup[label], 1).tolist()}")
print(f"c = {1e3 * c:.2f} ms an image, u = {1e3 * u:.2f} ms, S = {S / 1e6:.2f} MB")
answer("64 ranks at 1 Gbit/s are", "far less")
assert 1 <= speedup["1 Gbit/s"].max() < R[-1]

# %% kind="see"
figure = new_figure(5, 3.4)
ax = figure.subplots()
for i, (label, times_as_fast) in enumerate(speedup.items()):
    ax.plot(R, times_as_fast, "o-", color=PALETTE[i], label=label)
ax.plot(R, R, color="black", linestyle="--", label="ideal")
ax.set(xscale="log", yscale="log", xlabel="ranks", ylabel="times as fast as one", ylim=(0.7, 90))
ax.set_xticks(R, [f"{r:g}" for r in R])
ax.set_yticks(R, [f"{r:g}" for r in R])
ax.minorticks_off()
ax.legend(fontsize=9)
figure

# %% [markdown]
# A model, not a measurement: only c, u and S are from here. The part that shrinks is soon smaller than the parts that
# do not (**Amdahl's law**): a small batch of a small network is exhausted soon. More ranks want larger batches, or
# larger networks.
#
# ## What you take along
#
# The array decides where an operation runs, and a small kernel costs as much as a large one. Gradients are means, so
# shards add up by their shares, up to rounding. A ring sums over any number of ranks for the price of two arrays. Ranks
# share some random numbers and must not share others.
#
# **You can now**: write code that runs on NumPy and CuPy alike; cut a batch for any number of workers without changing
# what is learnt; estimate from counts whether a GPU or more processes would pay.

# %%
keep(module_of, sharded_gradient, ring_sum, rank_rng)
parts()

# %% [markdown]
# ## Exercises
#
# Hints and worked solutions are in [solutions/11](solutions/11_gpu_and_processes.ipynb).
#
# 1. (10 min, by hand) Three ranks, a batch of 10. Which rows does `Group.rows` give to each, and with which g does each
#    start its backward pass?
# 2. (20 min, code) With `sample_weight` the loss is a *weighted* mean. Write down the right share of a shard, and check
#    it with two shards and `F.cross_entropy(logits, labels, weight)` against the whole batch.
# 3. (20 min, break it) Give the activations one scale for the whole *batch* instead of one a token, and repeat section
#    4 on a single low-bit layer. How large is the difference now, and why?
# 4. (30 min, code) Write `tree_sum(arrays, send)`: pairs of ranks add up, then pairs of pairs; then the sum goes back
#    down. Count steps and numbers sent for 8 ranks, against the ring. Which one for 100 numbers, which for 100 million?
# 5. (30 min, measure) Count the operations of a training step for `dim` 32 to 384 and its arithmetic, as in section 3.
#    From which `dim` on is a GPU of 5 microseconds a kernel busy computing? With a GPU: time it.
