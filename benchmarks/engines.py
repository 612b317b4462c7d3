"""One contestant per class, the same model, weights, batch and threads: `train()` is a step, `infer()` a forward."""

import os
from dataclasses import asdict, dataclass

import numpy as np


@dataclass
class Job:
    """What is measured. tokens = (image / patch)^2 + 1; threads: cores that each contestant may use."""

    image: int = 32
    patch: int = 4
    dim: int = 192
    depth: int = 6
    heads: int = 3
    bits: float = 32
    batch: int = 128
    threads: int = 2

    @property
    def workers(self):
        return 1 if self.threads == 1 else "auto"

    def tiny_model(self):
        import tinybitvit as tb

        net = {"dim": self.dim, "depth": self.depth, "heads": self.heads, "bits": self.bits, "pool": "cls"}
        return tb.models.VisionTransformer(self.image, self.patch, rng=np.random.default_rng(0), **net)

    def data(self):
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.batch, self.image, self.image, 3), dtype="float32")
        return x, rng.integers(0, 10, self.batch)


class TinyBitViT:
    """tb.train.Trainer: worker threads, each with a shard of the batch."""

    def __init__(self, job):
        import tinybitvit as tb

        self.model, (self.x, self.y) = job.tiny_model(), job.data()
        self.optimizer = tb.optim.AdamW(tb.optim.decay_groups(self.model, 0.05), lr=1e-3)
        self.trainer = tb.train.Trainer(self.model, self.optimizer, workers=job.workers)

    def train(self):
        return self.trainer.step(self.x, self.y)

    def infer(self):
        return self.trainer.predict(self.x, batch_size=len(self.x))


class PlainLoop(TinyBitViT):
    """zero_grad, backward, step on one Python thread; BLAS has the threads."""

    def train(self):
        import tinybitvit as tb

        self.optimizer.zero_grad()
        loss = tb.functional.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def infer(self):
        import tinybitvit as tb

        with tb.no_grad():
            return self.model(self.x).numpy()


class Packed(TinyBitViT):
    """Inference from packed bytes."""

    def __init__(self, job):
        super().__init__(job)
        import tinybitvit as tb

        self.trainer = tb.train.Trainer(self.model.pack(), workers=job.workers)


class Onnx:
    """The exported file in onnxruntime."""

    def __init__(self, job):
        import onnxruntime

        from tinybitvit.io.onnx import onnx_bytes

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        content = onnx_bytes(job.tiny_model(), None, float_images=True)
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.x, _ = job.data()

    def infer(self):
        return self.session.run(None, {"images": self.x})[0]


class Predict:
    """tb.ViT from bytes to logits, scaling of the pixels included."""

    engine = "numpy"

    def __init__(self, job):
        import tinybitvit as tb

        rng = np.random.default_rng(1)
        self.images, labels = rng.integers(0, 256, (32, job.image, job.image, 3), dtype="uint8"), np.arange(32) % 10
        size = {"patch_size": job.patch, "dim": job.dim, "depth": job.depth, "heads": job.heads, "mlp_ratio": 4}
        options = {"pool": "cls", "random_state": 0, "verbose": 0, "device": "cpu", "workers": job.workers}
        model = tb.ViT(bits=job.bits, epochs=0, **size, **options).fit(self.images, labels)
        self.model = model if self.engine == "numpy" and job.bits == 32 else model.pack(engine=self.engine)
        self.images = self.images[: job.batch]

    def infer(self):
        return self.model.decision_function(self.images)


class PredictOnnx(Predict):
    """The same with engine='onnxruntime'."""

    engine = "onnxruntime"


class Torch:
    """PyTorch eager."""

    def __init__(self, job):
        import torch

        from .torch_vit import VisionTransformer

        torch.set_num_threads(job.threads)
        self.torch = torch
        config = {k: v for k, v in asdict(job).items() if k not in ("batch", "threads")}
        self.model = VisionTransformer(**config)
        state = job.tiny_model().state_dict()
        self.model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
        x, y = job.data()
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        rest = [p for p in self.model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3)

    def train(self):
        self.optimizer.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def infer(self):
        with self.torch.inference_mode():
            return self.model(self.x).numpy()


class TorchCompile(Torch):
    """torch.compile of the model."""

    def __init__(self, job):
        super().__init__(job)
        self.model = self.torch.compile(self.model)


class TorchInt8(Torch):
    """PyTorch's dynamic quantisation of the 32-bit network: int8 weights, activations with one scale a tensor."""

    def __init__(self, job):
        import warnings

        super().__init__(job)
        torch = self.torch
        with warnings.catch_warnings(action="ignore"):
            self.model = torch.ao.quantization.quantize_dynamic(self.model.eval(), {torch.nn.Linear}, torch.qint8)


class Jax:
    """JAX, the whole step under jit (32 bits only)."""

    def __init__(self, job):
        if job.bits != 32:
            raise SystemExit("the JAX contestant has 32 bits only")
        from . import jax_vit

        shape = (job.patch, job.depth, job.heads)
        self.state = {name: jax_vit.jnp.asarray(a) for name, a in job.tiny_model().state_dict().items()}
        self.m = jax_vit.jax.tree.map(jax_vit.jnp.zeros_like, self.state)
        self.v, self.t = self.m, 0
        self.x, self.y = map(jax_vit.jnp.asarray, job.data())
        self.step = jax_vit.make_step(*shape)
        self.forward = jax_vit.jax.jit(lambda s, x: jax_vit.forward(s, x, *shape))

    def train(self):
        self.t += 1
        self.state, self.m, self.v, loss = self.step(self.state, self.m, self.v, self.t, self.x, self.y)
        return float(loss)

    def infer(self):
        return np.asarray(self.forward(self.state, self.x))


ENGINES = {
    "tinybitvit": TinyBitViT,
    "plain": PlainLoop,
    "packed": Packed,
    "torch": Torch,
    "compile": TorchCompile,
    "torch-int8": TorchInt8,
    "jax": Jax,
    "onnx": Onnx,
    "predict": Predict,
    "predict-onnx": PredictOnnx,
}


def limit_threads(name, threads):
    """Environment of a contestant's process, before its libraries are loaded."""
    env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    env["OPENBLAS_NUM_THREADS"] = env["OMP_NUM_THREADS"] = str(threads)
    if name == "jax" and threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return env
