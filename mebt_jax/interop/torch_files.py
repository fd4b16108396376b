"""PyTorch checkpoint files without PyTorch: reads both of its formats as plain data and arrays, and
writes the newer one.

Arrays are views on the file, so a checkpoint takes no memory until its numbers are used. No code in
a file is executed, see `inert_pickle`.
"""

import mmap
import os
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mebt_jax.errors import UserError
from mebt_jax.interop.inert_pickle import Refused, Storage, Tensor, loads, plain, scan

DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
ZIP_MAGIC, LEGACY_MAGIC, LEGACY_VERSION = b"PK\x03\x04", 0x1950A86A20F9469CFC6C, 1001
# Lengths of the name and of the extra field of a file in a zip archive.
LOCAL_HEADER = struct.Struct("<26x2H")


def read_torch_file(path: Path) -> Any:
    """The content of a file of `torch.save`: dicts, lists, numbers, strings, and arrays that are
    read-only views on the file.

    Raises:
        UserError: there is no such file, it is damaged or of another kind, or its pickle names
            anything but data.
    """
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as probe,
        ):
            magic = probe[:4]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise UserError(
            f"Could not read {path} ({reason}); give the path of a checkpoint file."
        ) from error
    try:
        return _read_zip(path) if magic == ZIP_MAGIC else _read_legacy(path)
    except Refused as error:
        raise UserError(
            f"{path} was refused: its pickle asks for {error}, which checkpoints of weights have "
            "no need of; nothing in it was run. Save its state_dict alone, with the program it "
            "came from."
        ) from error
    # Damaged bytes can make a pickle fail with any error.
    except Exception as error:
        reason = (
            str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        )
        raise UserError(
            f"{path} is damaged or is no PyTorch checkpoint ({reason}); fetch it again."
        ) from error


def _read_zip(path: Path) -> Any:
    """Format since PyTorch 1.6: an archive with NAME/data.pkl and, for every storage, its
    uncompressed numbers in NAME/data/KEY.
    """
    whole = np.memmap(path, np.uint8, mode="r")
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError("it holds no data.pkl")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise ValueError("it is a TorchScript program, not weights")

    def content(name: str) -> np.ndarray:
        entry = entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which PyTorch never does")
        header = entry.header_offset
        name_length, extra_length = LOCAL_HEADER.unpack(
            whole[header : header + LOCAL_HEADER.size].tobytes()
        )
        start = header + LOCAL_HEADER.size + name_length + extra_length
        if start + entry.file_size > whole.size:
            raise ValueError(f"{name} is cut short")
        return whole[start : start + entry.file_size]

    order = (
        content(f"{prefix}byteorder").tobytes() if f"{prefix}byteorder" in entries else b"little"
    )

    def array_of(tensor: Tensor) -> np.ndarray:
        dtype = np.dtype(DTYPES[tensor.storage.dtype])
        raw = content(f"{prefix}data/{tensor.storage.key}")
        return _view(raw, dtype.newbyteorder(">") if order == b"big" else dtype, tensor)

    stream = _Bytes(content(pickles[0]))
    return plain(loads(scan(stream), _storage), array_of)


def _read_legacy(path: Path) -> Any:
    """Format before PyTorch 1.6: pickles of a magic number, a version, the machine, the object and
    the keys of its storages, then the numbers.
    """
    whole = np.memmap(path, np.uint8, mode="r")
    stream = _Bytes(whole)
    no_storages = {}.__getitem__  # only the fourth pickle may have any
    first = loads(scan(stream), no_storages)
    if first != LEGACY_MAGIC or loads(scan(stream), no_storages) != LEGACY_VERSION:
        raise ValueError("it does not begin as PyTorch's files do")
    machine = loads(scan(stream), no_storages)
    if not machine.get("little_endian", True):
        raise ValueError("it was written on a big-endian machine")
    used: dict[str, Storage] = {}

    def find_storage(pid: tuple) -> Storage:
        storage = _storage(pid)
        return used.setdefault(storage.key, storage)

    data = loads(scan(stream), find_storage)
    contents = {}
    for key in loads(scan(stream), no_storages):
        size = int.from_bytes(stream.read(8), "little")
        start, nbytes = stream.tell(), size * np.dtype(DTYPES[used[key].dtype]).itemsize
        if start + nbytes > whole.size:
            raise ValueError(f"storage {key} is cut short")
        contents[key] = whole[start : start + nbytes]
        stream.seek(start + nbytes)
    return plain(
        data,
        lambda tensor: _view(
            contents[tensor.storage.key], np.dtype(DTYPES[tensor.storage.dtype]), tensor
        ),
    )


def _storage(pid: tuple) -> Storage:
    """The storage of a persistent id ("storage", type, key, device, size); old files have a view
    behind it, which must be None.
    """
    kind, dtype, key, _, size, *view = pid
    dtype = str(dtype).removeprefix("torch.")
    if (
        kind != "storage"
        or dtype not in DTYPES
        or type(size) is not int
        or any(v is not None for v in view)
    ):
        raise ValueError(f"a storage of {dtype}")
    return Storage(str(key), dtype, size)


def _view(raw: np.ndarray, dtype: np.dtype, tensor: Tensor) -> np.ndarray:
    """The tensor as a view on the bytes of its storage."""
    count = raw.size // dtype.itemsize
    elements = raw[: count * dtype.itemsize].view(dtype)
    shape, strides = tensor.shape, tensor.strides
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides))
    # With a stride of 0 one number would become a tensor of any size.
    if 0 not in shape and (last >= count or int(np.prod(shape, dtype=object)) > count):
        raise ValueError(f"a tensor of shape {shape} in a storage of {count} elements")
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.lib.stride_tricks.as_strided(
        elements[tensor.offset :], shape, [s * dtype.itemsize for s in strides]
    )


class _Bytes:
    """The methods of a file that `scan` needs, on an array of bytes."""

    def __init__(self, content: np.ndarray):
        self._content, self._at = content, 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        self._at = position

    def read(self, size: int) -> bytes:
        data = self._content[self._at : self._at + max(size, 0)].tobytes()
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        line = b""
        while not line.endswith(b"\n") and (chunk := self.read(256)):
            end = chunk.find(b"\n") + 1
            self._at -= len(chunk) - end if end else 0
            line += chunk[:end] if end else chunk
        return line


# ---- writing -------------------------------------------------------------------------------------


def write_torch_file(path: Path, data: Mapping[str, Any]) -> None:
    """Writes nested dicts, lists, numbers, strings and arrays so that `torch.load` reads them, also
    with `weights_only`.

    The file appears whole or not at all.

    Raises:
        UserError: it could not be written.
    """
    arrays: list[np.ndarray] = []
    stream = b"\x80\x02" + _pickled(data, arrays) + b"."
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr("archive/data.pkl", stream)
            archive.writestr("archive/byteorder", sys.byteorder)
            for key, array in enumerate(arrays):
                with archive.open(
                    f"archive/data/{key}", "w", force_zip64=array.nbytes > 2**30
                ) as entry:
                    entry.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            archive.writestr("archive/version", "3\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"Could not write {path} ({error.strerror}); free some space or choose another --out."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Opcodes of pickle protocol 2 that leave `value` on the stack; arrays are appended to the
    list.
    """
    if isinstance(value, Mapping):
        entries = b"".join(_pickled(part, arrays) for item in value.items() for part in item)
        return b"ccollections\nOrderedDict\n)R(" + entries + b"u"
    if isinstance(value, (list, tuple)):
        return b"](" + b"".join(_pickled(entry, arrays) for entry in value) + b"e"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw
    return _pickled_tensor(np.asarray(value), arrays)


def _pickled_tensor(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    """_rebuild_tensor_v2(storage, offset 0, shape, strides, requires_grad False, no hooks)."""
    kind = next(name for name, dtype in DTYPES.items() if array.dtype == dtype)
    arrays.append(array)
    strides = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]

    def numbers(values: Any) -> bytes:
        return b"(" + b"".join(_pickled(int(value), arrays) for value in values) + b"t"

    storage = (
        b"("
        + _pickled("storage", arrays)
        + f"ctorch\n{kind}\n".encode()
        + b"".join(_pickled(part, arrays) for part in (str(len(arrays) - 1), "cpu", array.size))
        + b"tQ"
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + _pickled(0, arrays)
        + numbers(array.shape)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)Rt"
        + b"R"
    )
