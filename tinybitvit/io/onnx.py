"""ONNX: a model as one file of standard operators, for onnxruntime and whatever else reads the format.

A low-bit layer keeps its bits: INT2 or INT4 weights are cast to INT8, by onnxruntime once when it loads the file, and
multiplied by MatMulInteger, so that a runtime sums the same whole numbers as `quant.integer` does. (DequantizeLinear +
MatMul would look simpler, but onnxruntime turns that pair into a kernel which quantises the activations once more, with
an error of some per cent.)

Activations are uint8, code + 128, with the zero point 128: the same sums, but x86 multiplies uint8 by int8 (VNNI) and
has no fast instruction for int8 by int8. Older processors add two products in 16 bits, where weights of up to 4 bits
cannot overflow: 2 x 255 x 8 = 4080. Of 8 bits they can (2 x 255 x 128), so there the activations stay int8.
"""

import os
from typing import Any

import numpy as np

from .. import backend
from ..files import write_model
from ..models import VisionTransformer
from ..nn import LayerNorm, Linear
from ..quant import BitLinear, PackedLinear, pack
from ..quant.integer import smallest_size
from .checkpoint import network_of

# Layouts of the weights, whose names are also ONNX types, smallest first, and the operator sets that have them.
STORED = {"int2": 25, "int4": 21, "int8": 20}
OLDEST = 20  # the operator set of Gelu


class Graph:
    """Nodes and constants in the order in which they are added; every method returns the name of a value."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Equal parts of a value along an axis."""
        first = self.add("Split", value, axis=axis, num_outputs=parts)
        self.nodes[-1].output.extend(f"{first}_{i}" for i in range(1, parts))
        return list(self.nodes[-1].output)

    def constant(self, value: Any, dtype: str = "float32", name: str | None = None) -> str:
        from onnx import numpy_helper

        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.array(backend.to_numpy(value), dtype, order="C"), name)
        return name

    def integers(self, codes: np.ndarray, layout: str, name: str) -> str:
        """Whole numbers as an INT2, INT4 or INT8 constant, packed as ONNX wants it: neighbours share a byte."""
        from onnx import TensorProto, helper

        raw = pack(codes.reshape(-1), layout).tobytes()
        kind = getattr(TensorProto, layout.upper())
        self.constants[name] = helper.make_tensor(name, kind, codes.shape, raw, raw=True)
        return name

    def cast(self, value: str, kind: str) -> str:
        from onnx import TensorProto

        return self.add("Cast", value, to=getattr(TensorProto, kind))

    def reshape(self, value: str, *shape: int) -> str:
        return self.add("Reshape", value, self.constant(shape, "int64"))


def export_onnx(
    model: Any,
    path: str | os.PathLike,
    preprocessing: dict[str, Any] | None = None,
    *,
    int8: bool = False,
    float_images: bool = False,
) -> None:
    """Write a model, full or packed, as ONNX: input `images` (N, H, W, C), output `logits` (N, classes), N free.

    model: a fitted tb.ViT or a VisionTransformer. images: uint8, divided by 255 and then normalised with
    `preprocessing` {"mean": ..., "std": ...} (None: the model's own, and where it has none, none); float_images=True:
    float32, normalised but not divided. int8: store the weights as INT8, four times as large, for runtimes that do not
    know operator set 25. Needs the package onnx. Raises CheckpointError where the file cannot be written.
    """
    model = network_of(model)
    write_model(path, onnx_bytes(model, preprocessing or model.preprocessing, int8, float_images))


def onnx_bytes(
    model: VisionTransformer, preprocessing: dict[str, Any] | None, int8: bool = False, float_images: bool = False
) -> bytes:
    """What `export_onnx` writes. preprocessing None: none."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError('exporting to ONNX needs the package onnx: pip install "tinybitvit[onnx]"') from error
    graph = Graph()
    _model(graph, model, preprocessing, int8, float_images)
    graph.nodes[-1].output[0] = "logits"
    pixels = onnx.TensorProto.FLOAT if float_images else onnx.TensorProto.UINT8
    (height, width), channels = model.embed.patch.image_size, model.embed.patch.in_channels
    images = onnx.helper.make_tensor_value_info("images", pixels, ["N", height, width, channels])
    width = model.config["num_classes"] or model.config["dim"] * len(model.config["pool"].split("+"))
    output = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", width])
    body = onnx.helper.make_graph(graph.nodes, "tinybitvit", [images], [output], [*graph.constants.values()])
    low = [_stored(m, int8) for m in model.modules() if isinstance(m, (BitLinear, PackedLinear))]
    opset = onnx.helper.make_opsetid("", max([OLDEST, *(STORED[layout] for layout in low)]))
    version = onnx.helper.find_min_ir_version_for([opset])
    proto = onnx.helper.make_model(body, opset_imports=[opset], ir_version=version, producer_name="tinybitvit")
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def _model(graph, model, preprocessing, int8, float_images):
    """The blocks see the tokens of all images as rows (N T, dim): few operators in between that only change a shape."""
    tokens, dim = model.embed.tokens, model.config["dim"]
    x = graph.reshape(_tokens(graph, model, _pixels(graph, preprocessing, float_images)), -1, dim)
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}"
        y = _attention(graph, block.attn, _layer_norm(graph, block.norm1, x), tokens, f"{name}.attn", int8)
        x = graph.add("Add", x, y if block.ls1 is None else graph.add("Mul", y, graph.constant(block.ls1.gamma.data)))
        y = _linear(graph, block.mlp.fc1, _layer_norm(graph, block.norm2, x), f"{name}.mlp.fc1", int8)
        y = _linear(graph, block.mlp.fc2, _gelu(graph, block.mlp.act, y), f"{name}.mlp.fc2", int8)
        x = graph.add("Add", x, y if block.ls2 is None else graph.add("Mul", y, graph.constant(block.ls2.gamma.data)))
    x = graph.reshape(_layer_norm(graph, model.norm, x), -1, tokens, dim)
    parts = [_pooled(graph, x, part, model.embed.prefix) for part in model.config["pool"].split("+")]
    x = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
    return x if model.head is None else _linear(graph, model.head, x, "head", int8)


def _pixels(graph, preprocessing, float_images):
    """The same float32 operations as `data.Normalize`."""
    if float_images and preprocessing is None:
        return "images"
    stated = preprocessing or {"mean": [0.0], "std": [1.0]}
    mean, std = np.float32(stated["mean"]), np.float32(stated["std"])
    unit = np.float32(1 if float_images else 255)
    x = "images" if float_images else graph.cast("images", "FLOAT")
    return graph.add("Mul", graph.add("Sub", x, graph.constant(mean * unit)), graph.constant(1 / (std * unit)))


def _tokens(graph, model, x):
    """Patches, projected, with positions, behind the class token and the registers."""
    embed, patch = model.embed, model.embed.patch
    (rows, columns), (height, width), dim = patch.grid, patch.patch_size, model.config["dim"]
    x = graph.reshape(x, -1, rows, height, columns, width, patch.in_channels)
    x = graph.add("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
    x = graph.reshape(x, -1, rows * columns, height * width * patch.in_channels)
    x = _linear(graph, patch.proj, x, "embed.patch.proj", False)
    position, tokens = embed.pos_embed.data, []
    if embed.cls_token is not None:
        tokens.append(embed.cls_token.data + position[:, :1])
        position = position[:, 1:]
    if embed.reg_token is not None:
        tokens.append(embed.reg_token.data)
    x = graph.add("Add", x, graph.constant(position))
    if not tokens:
        return x
    before = graph.constant(np.concatenate([backend.to_numpy(t) for t in tokens], axis=1))
    batch = graph.add("Shape", x, start=0, end=1)
    shape = graph.add("Concat", batch, graph.constant([embed.prefix, dim], "int64"), axis=0)
    return graph.add("Concat", graph.add("Expand", before, shape), x, axis=1)


def _layer_norm(graph, norm: LayerNorm, x):
    weight, bias = graph.constant(norm.weight.data), graph.constant(norm.bias.data)
    return graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)


def _gelu(graph, act, x):
    return graph.add("Gelu", x, approximate=act.approximate)


def _attention(graph, attention, x, tokens, name, int8):
    """softmax(q k^T / sqrt d) v of every head, and the projection: rows (N T, dim) to rows."""
    dim, heads = attention.proj.in_features, attention.heads
    qkv = _linear(graph, attention.qkv, x, f"{name}.qkv", int8)
    qkv = graph.add("Transpose", graph.reshape(qkv, -1, tokens, 3 * heads, dim // heads), perm=[0, 2, 1, 3])
    q, k, v = graph.split(qkv, 3, axis=1)
    scores = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = graph.add("Mul", scores, graph.constant(np.float32((dim // heads) ** -0.5)))
    p = graph.add("Softmax", scores, axis=-1)
    y = graph.add("Transpose", graph.add("MatMul", p, v), perm=[0, 2, 1, 3])
    return _linear(graph, attention.proj, graph.reshape(y, -1, dim), f"{name}.proj", int8)


def _linear(graph, layer, x, name, int8):
    """x W^T + b of a Linear; of a low-bit layer with its integer codes."""
    if isinstance(layer, Linear) and not isinstance(layer, BitLinear):
        y = graph.add("MatMul", x, graph.constant(layer.weight.data.T, name=f"{name}.weight"))
    else:
        y = _bit_linear(graph, layer, x, name, int8)
    return y if layer.bias is None else graph.add("Add", y, graph.constant(layer.bias.data, name=f"{name}.bias"))


def _stored(layer, int8):
    """The layout that the codes of a low-bit layer are stored in."""
    return "int8" if int8 else layer.quantizer.smallest(STORED)


def _bit_linear(graph, layer, x, name, int8):
    """s_x s_w (c Q^T) of rows x (T, K), see `quant.integer`; s_x = size / top, of which 1 / top is made part of s_w."""
    codes, scale = (backend.to_numpy(a) for a in layer.codes())
    scale = scale[:, 0] if len(scale) > 1 else scale[0]
    layout = _stored(layer, int8)
    weight = graph.integers(codes.T.astype("int8"), layout, f"{name}.codes")
    if layer.activation_bits is None:
        x = x if layer.norm is None else _rms_norm(graph, layer.norm, x)
        y = graph.add("MatMul", x, graph.cast(weight, "FLOAT"))
        return graph.add("Mul", y, graph.constant(scale, name=f"{name}.scale"))
    # See above why weights of 8 bits, whose `smallest` layout is int8, get signed activations.
    kind, zero = ("int8", 0) if layer.quantizer.smallest(STORED) == "int8" else ("uint8", 128)
    x, size, top = _quantize(graph, x, layer, kind, zero)
    weight = weight if layout == "int8" else graph.cast(weight, "INT8")
    y = graph.add("MatMulInteger", x, weight, *([graph.constant(zero, kind)] if zero else []))
    # One pass for the cast to float and the product with each token's own number
    y = graph.add("DequantizeLinear", y, size, axis=0)
    return graph.add("Mul", y, graph.constant(scale / np.float32(top), name=f"{name}.scale"))


def _quantize(graph, x, layer, kind, zero):
    """Codes of rows x (T, K) with a zero point; sizes (T,); and by what these are divided to be the tokens' steps.

    `quant.integer.input_codes`, operation by operation: the root of a norm cancels in the codes.
    """
    v = x if layer.norm is None else graph.add("Mul", x, graph.constant(layer.norm.weight.data))
    top, magnitude, last = 1, graph.add("Abs", v), graph.constant([-1], "int64")
    size = graph.add("ReduceMean" if layer.activation_bits == 1 else "ReduceMax", magnitude, last, keepdims=0)
    size = graph.add("Max", size, graph.constant(np.float32(smallest_size(layer.norm))))
    if layer.activation_bits == 1:
        negative = graph.add("Less", v, graph.constant(np.float32(0)))
        v = graph.add("Where", negative, graph.constant(np.float32(-1)), graph.constant(np.float32(1)))
    else:
        top = 2 ** (layer.activation_bits - 1) - 1
        factor = graph.add("Div", graph.constant(np.float32(top)), size)
        v = graph.add("Mul", v, graph.reshape(factor, -1, 1))
    # With a scale of 1 this rounds half to even, adds the zero point and casts, in one pass.
    codes = graph.add("QuantizeLinear", v, graph.constant(np.float32(1)), graph.constant(zero, kind))
    if layer.norm is not None:
        mean = graph.add("ReduceMean", graph.add("Mul", x, x), last, keepdims=0)
        mean = graph.add("Add", mean, graph.constant(np.float32(layer.norm.eps)))
        size = graph.add("Div", size, graph.add("Sqrt", mean))
    return codes, size, top


def _rms_norm(graph, norm, x):
    """In the operators that onnxruntime fuses to one."""
    mean = graph.add("ReduceMean", graph.add("Pow", x, graph.constant(np.float32(2))), graph.constant([-1], "int64"))
    root = graph.add("Sqrt", graph.add("Add", mean, graph.constant(np.float32(norm.eps))))
    return graph.add("Mul", graph.add("Div", x, root), graph.constant(norm.weight.data))


def _pooled(graph, x, part, prefix):
    if part != "mean":
        return graph.add("Gather", x, graph.constant(("cls", "dist").index(part), "int64"), axis=1)
    start, end, axis = (graph.constant([i], "int64") for i in (prefix, 2**31 - 1, 1))
    return graph.add("ReduceMean", graph.add("Slice", x, start, end, axis), axis, keepdims=0)
