"""A network that onnxruntime computes: what `engine="onnxruntime"` stands for."""

from typing import Any

import numpy as np

from ..models import VisionTransformer
from ..train import Trainer
from .onnx import onnx_bytes


def check_onnxruntime() -> None:
    """ImportError with the command that helps, where a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"engine='onnxruntime' needs the package {error.name}: pip install \"tinybitvit[onnx]\""
        ) from error


def onnx_session(network: VisionTransformer) -> Any:
    """An onnxruntime.InferenceSession for normalised float32 images, of the network's weights as they are now.

    It may be run by any number of threads at a time, each of which computes on its own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the threads are those of `Trainer.predict`
    options.log_severity_level = 3  # errors alone
    # In memory the width of a weight matters little, and any version of onnxruntime knows INT8.
    content = onnx_bytes(network, None, int8=True, float_images=True)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class OnnxTrainer(Trainer):
    """`Trainer.predict` with its batches, threads and checks, where a session of `onnx_session` computes."""

    def __init__(self, network: VisionTransformer, session: Any, workers: int | str = "auto"):
        super().__init__(network, workers=workers)
        self.session = session

    def _forward(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"images": x})[0]
