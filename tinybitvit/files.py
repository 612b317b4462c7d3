"""Files of named arrays in the safetensors format: whole or absent when written, checked to the last bit when read.

safetensors stores a header (names, dtypes, shapes, text) and the bytes of the arrays, and nothing that could be run. It
has no checksum, so files of this library carry a sha256 over names, dtypes, shapes, values and metadata.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

FORMAT, VERSION = "tinybitvit", 1
# What PyTorch's files begin with, new (a zip archive) and old ones.
PICKLES = (b"PK\3\4", b"\x80\2\x8a")
AGAIN = "copy or download the file again, or save it again from the model"

# What to do about a fault of the disk, by its number, where it is neither space nor permission.
HINTS = {
    errno.ENOENT: "make the folder first",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "give the name of a file in it",
}

# dtypes of the format that NumPy knows too, by the format's name; BF16 is read as float32.
DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},
    **{f"I{n}": f"<i{n // 8}" for n in (8, 16, 32, 64)},
    **{f"U{n}": f"<u{n // 8}" for n in (8, 16, 32, 64)},
}


class CheckpointError(ValueError):
    """A model file is missing, damaged, foreign, too new, of another model, or not writable; the message says more."""


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to fill; it becomes `path` in one step when the block ends without an error.

    A reader sees the old file or the new one, also after a crash; an error leaves the old one, and nothing beside it.
    Symbolic links are followed, an old file's mode and owner are kept. A device or a pipe is written to and stays what
    it is. Raises OSError with a sentence that names the path.
    """
    path = Path(path)
    try:
        with open(path, "ab") if _is_stream(path) else replacement(Path(os.path.realpath(path))) as file:
            yield file
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "free space on the disk, or choose a folder you can write to")
        text = f"cannot write {path}: {error.strerror or error}; {hint}"
        raise (OSError(error.errno, text) if error.errno else OSError(text)) from error


def write_file(path: str | os.PathLike, data: bytes | str) -> None:
    """Put bytes, or a text as UTF-8, at `path` in one step; see `new_file`. Raises OSError."""
    with new_file(path) as file:
        # What is no text, from a file name in another encoding, becomes a question mark.
        file.write(data if isinstance(data, bytes) else data.encode("utf-8", "replace"))


def write_model(path: str | os.PathLike | BinaryIO, data: bytes) -> None:
    """`write_file` for the file of a model, or an open binary file. Raises CheckpointError."""
    try:
        if not isinstance(path, (str, os.PathLike)):
            path.write(data)
            return
        write_file(path, data)
    except OSError as error:
        raise CheckpointError(error.strerror or str(error)) from error


def file_problem(path: str | os.PathLike) -> str | None:
    """Why nothing can be read from `path`, known without opening it: a pipe would keep its reader waiting; or None."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no file {path}: check the name and the folder"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): check its name and permissions"
    if stat.S_ISDIR(mode):
        return f"{path} is a folder: give the name of the file in it"
    return None if stat.S_ISREG(mode) else f"{path} is a pipe or a device: save what comes out of it as a file first"


def _is_stream(path: Path) -> bool:
    """Whether there is something at `path` that cannot be replaced: a device, a pipe, or /dev/stdout whatever it is."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    while path.is_symlink():
        if path.parent.resolve().match("/proc/*/fd"):
            return True
        path = path.parent / os.readlink(path)
    return not stat.S_ISREG(mode)


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name beside `path` that takes its place when the block ends."""
    old = path.stat() if path.exists() else None
    if old and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # File systems allow names of 255 bytes.
    part = path.with_name(f"{os.fsdecode(os.fsencode(path.name)[:200])}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            if old:
                with contextlib.suppress(OSError, AttributeError):
                    os.chown(part, old.st_uid, old.st_gid)
                os.chmod(part, stat.S_IMODE(old.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def tensor_bytes(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of NumPy arrays and text."""
    import safetensors.numpy

    # safetensors 0.8.0 writes wrong values for arrays that are not C-contiguous; ascontiguousarray would add an axis
    # to 0-d.
    return safetensors.numpy.save({n: np.asarray(a, order="C") for n, a in arrays.items()}, dict(metadata))


def write_safetensors(
    path: str | os.PathLike | BinaryIO, arrays: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Save NumPy arrays and metadata (what JSON can hold); `read_safetensors` gives back the same or says it cannot.

    JSON holds finite numbers, text, bools, None, lists, and dicts whose keys are text. Raises CheckpointError where the
    file cannot be written, and ValueError for what the format cannot hold, by its name.
    """
    for name, array in arrays.items():
        if array.dtype.newbyteorder("=") not in map(np.dtype, DTYPES.values()):
            raise ValueError(
                f"{name} has dtype {array.dtype}: files hold floats, integers and bools of 64 bits at most"
            )
    if fault := _json_fault(metadata, "metadata"):
        raise ValueError(
            f"{fault}, which JSON would not give back: put it into finite numbers, text, bools, None, lists, and dicts"
            " with text as keys"
        )
    text = json.dumps(metadata)
    # One entry, because the format keeps several in no fixed order: equal models give equal files.
    write_model(path, tensor_bytes(arrays, {FORMAT: f"{VERSION} {digest(arrays, text)} {text}"}))


def _json_fault(value: Any, name: str) -> str | None:
    """The first entry of metadata that JSON would refuse or give back as something else; None: it keeps all of it."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} is {value}"
    if not isinstance(value, (dict, list, str, int, float, type(None))):
        return f"{name} is a {type(value).__module__}.{type(value).__name__}".replace(" builtins.", " ")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                return f"{name} has the key {key!r}"
    if isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            if fault := _json_fault(entry, f"{name}[{key!r}]"):
                return fault
    return None


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


def read_header(path: str | os.PathLike) -> dict[str, str]:
    """The text in the header of any safetensors file, without reading the arrays. Raises CheckpointError."""
    import safetensors

    if problem := file_problem(path):
        raise CheckpointError(problem)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(_not_safetensors(path, error)) from error


def read_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """The arrays of any safetensors file, their sizes checked against the file's first. Raises CheckpointError.

    The file is read, not mapped: a mapped file that another program cuts short would kill this one.
    """
    import safetensors

    if problem := file_problem(path):
        raise CheckpointError(problem)
    try:
        entries = safetensors.deserialize(Path(path).read_bytes())
        return {name: _array(**entry) for name, entry in entries}
    except KeyError as error:
        raise CheckpointError(f"{path} has arrays of dtype {error}: save them as float32 or float16") from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(_not_safetensors(path, error)) from error


def _not_safetensors(path: str | os.PathLike, error: Exception) -> str:
    """What to do about a file that safetensors cannot read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(4).startswith(PICKLES):
            return (
                f"{path} is a pickle or zip archive, such as PyTorch's .bin, which could run programs and is not read:"
                " download the model as model.safetensors"
            )
    return f"{path} is not a whole safetensors file ({error}): {AGAIN}"


def array_bytes(path: str | os.PathLike) -> int:
    """Bytes of the arrays in a safetensors file; what else it has is the header, whose length stands at its start."""
    with open(path, "rb") as file:
        return os.stat(path).st_size - 8 - int.from_bytes(file.read(8), "little")


def _array(dtype, shape, data):
    array = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    # BF16 is the upper half of a float32.
    return (array.astype("<u4") << 16).view("<f4") if dtype == "BF16" else array


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
