"""Files of named arrays in the safetensors format: whole or absent when written, checked to the last bit when read.

safetensors stores a header (names, dtypes, shapes, text) and the bytes of the arrays, and nothing that could be run. It
has no checksum, so files of this library carry a sha256 over names, dtypes, shapes, values and metadata.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .backend import host as np

FORMAT, VERSION = "tinybitvit", 1
AGAIN = "copy or download the file again, or save it again from the model"

# dtypes of the format that NumPy knows too, by the format's name; BF16 is read as float32.
DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},
    **{f"I{n}": f"<i{n // 8}" for n in (8, 16, 32, 64)},
    **{f"U{n}": f"<u{n // 8}" for n in (8, 16, 32, 64)},
}


class CheckpointError(ValueError):
    """A model file is missing, damaged, foreign, too new, or of another model; the message says what to do."""


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Put `data` at `path` in one step: a reader sees the old file or the new one, also after a crash.

    A failure leaves the old file as it was and nothing beside it. Raises CheckpointError.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"cannot write {path}: {reason}; free space on the disk, or choose a folder you can write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def tensor_bytes(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of NumPy arrays and text."""
    import safetensors.numpy

    # safetensors 0.8.0 writes wrong values for arrays that are not C-contiguous; ascontiguousarray would add an axis
    # to 0-d.
    return safetensors.numpy.save({n: np.asarray(a, order="C") for n, a in arrays.items()}, dict(metadata))


def write_safetensors(path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Save NumPy arrays and metadata (what JSON can hold); `read_safetensors` gives back the same or says it cannot.

    Raises CheckpointError where the file cannot be written, and ValueError for what the format cannot hold.
    """
    for name, array in arrays.items():
        if array.dtype.newbyteorder("=") not in map(np.dtype, DTYPES.values()):
            raise ValueError(
                f"{name} has dtype {array.dtype}: files hold floats, integers and bools of 64 bits at most"
            )
    text = json.dumps(metadata, allow_nan=False)
    # One entry, because the format keeps several in no fixed order: equal models give equal files.
    write_file(path, tensor_bytes(arrays, {FORMAT: f"{VERSION} {digest(arrays, text)} {text}"}))


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, metadata) of a file that `write_safetensors` wrote. Raises CheckpointError for everything else."""
    header = read_header(path)
    if FORMAT not in header:
        raise CheckpointError(
            f"{path} was not written by TinyBitViT; for other ViT files use tb.models.from_pretrained"
        )
    version, sha256, text = [*header[FORMAT].split(" ", 2), "", ""][:3]
    if version != str(VERSION):
        raise CheckpointError(
            f"{path} has format version {version[:20]}, and this TinyBitViT reads version {VERSION}: "
            "install the version of TinyBitViT that wrote the file, or a newer one"
        )
    arrays = read_arrays(path)
    if digest(arrays, text) != sha256:
        raise CheckpointError(f"{path} is damaged (its sha256 is not the one it was saved with): {AGAIN}")
    try:
        return arrays, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has metadata that cannot be read ({error}): {AGAIN}") from error


def _missing(path: str | os.PathLike) -> CheckpointError:
    return CheckpointError(f"there is no file {path}: check the name and the folder")


def read_header(path: str | os.PathLike) -> dict[str, str]:
    """The text in the header of any safetensors file, without reading the arrays. Raises CheckpointError."""
    import safetensors

    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the name of the .safetensors file in it")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): {AGAIN}") from error


def read_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """The arrays of any safetensors file, their sizes checked against the file's first. Raises CheckpointError.

    The file is read, not mapped: a mapped file that another program cuts short would kill this one.
    """
    import safetensors

    try:
        entries = safetensors.deserialize(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): {AGAIN}") from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}; save it as float32, float16 or bfloat16")
        array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype("<u4") << 16).view("<f4")
        arrays[name] = array
    return arrays


def digest(arrays: Mapping[str, Any], text: str) -> str:
    """sha256 over the metadata and every array's name, dtype, shape and values."""
    total = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        total.update(f"\n{name} {array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
        total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return total.hexdigest()


def printable(text: object) -> str:
    """A file name, or a text that may hold one, to be shown: line ends, escape codes and bytes that were in another
    encoding become visible, as in Python's own notation.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
