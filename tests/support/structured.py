"""Well-formed files with a wrong structure: names, shapes, dtypes and JSON values changed, the checksum right."""

import copy
import json

import numpy as np
import safetensors.numpy

from tinybitvit import files

EXTREMES = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 64, 5000, 10**9, -(10**9), 2**63, 10**40, 0.5, -1.5, 1e-300, 1e308),
    *(float("nan"), float("inf"), "", "x", "1", "mean", "cls", "float32", "<U1000000", "../x", "é", "\udce9", "\0"),
    *([], {}, [0], [-1, 4], [10**9, 10**9], ["a"], [None], [1] * 5000, {"": 1}, {"a": {"a": {}}}, [[[[1]]]]),
]


def deep(depth=200):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def places(value, path=()):
    """Every (container, key) of a JSON value, nested ones too."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key], (*path, key))


def change_json(value, rng):
    """A copy of a JSON value with one entry replaced, left out, renamed or doubled."""
    value = copy.deepcopy(value)
    found = list(places(value))
    container, key = found[rng.integers(len(found))]
    kind = rng.integers(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    elif kind == 2 and isinstance(container, list):
        container.insert(0, container[key])
    elif kind == 3:
        other, another = found[rng.integers(len(found))]
        container[key] = copy.deepcopy(other[another])
    elif kind == 4:
        container[key] = deep()
    else:
        container[key] = copy.deepcopy(EXTREMES[rng.integers(len(EXTREMES))])
    return value


def change_arrays(arrays, rng):
    """A copy of a dict of arrays with one of them changed in name, shape or dtype, left out or doubled."""
    arrays = dict(arrays)
    names = sorted(arrays)
    name = names[rng.integers(len(names))]
    a = arrays.pop(name)
    kind = rng.integers(8)
    if kind == 0:
        return arrays
    if kind == 1:
        name = [f"{name}x", "", name.replace("0", "900"), "model.head.weight", "é"][rng.integers(5)]
    elif kind == 2:
        a = a.astype(["float16", "float64", "int8", "uint64", "bool"][rng.integers(5)])
    elif kind == 3:
        a = np.zeros([(5000, 0), (0,), (), (0, *a.shape), (1, 1, 1, 1), (2**31, 0), (3000,)][rng.integers(7)], a.dtype)
    elif kind == 4:
        a = a.T
    elif kind == 5:
        a = a.reshape(-1)
    elif kind == 6:
        a = np.concatenate([a.reshape(-1)] * 2)
    else:
        arrays[names[rng.integers(len(names))]] = a
    arrays[name] = a
    return arrays


def write_ours(path, arrays, info):
    """A file of this library with any metadata, its sha256 right."""
    text = json.dumps(info)
    header = {files.FORMAT: f"{files.VERSION} {files.digest(arrays, text)} {text}"}
    path.write_bytes(files.tensor_bytes(arrays, header))


def write_foreign(folder, arrays, config):
    """A folder with model.safetensors, config.json and preprocessor_config.json (the config's entry "pixels")."""
    safetensors.numpy.save_file(
        {name: np.array(a, order="C") for name, a in arrays.items()}, folder / "model.safetensors"
    )
    for name in ("config", "preprocessor_config"):
        (folder / f"{name}.json").write_text(json.dumps(config.get(name)))
