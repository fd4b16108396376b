"""Reads pickles without running their code; the result is numbers, strings, containers and records
alone.

A pickle is a program that may import and call whatever it names. Here a closed list has every name
that it may use, each with a substitute of ours that only stores data; any other name ends the
reading. Nothing is ever imported.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Tuples nested without bound would overflow the stack of the interpreter where they are hashed.
MAX_TUPLES = 100_000
MAX_DEPTH = 100
# An object that a pickle refers to many times is copied as often; the copies of a small pickle
# could exceed the memory.
MAX_VALUES = 10_000_000

NUMERIC = re.compile(r"[<>=|]?[biufc?][0-9]{0,2}")


class Refused(Exception):
    """The pickle names something outside of the closed list; the message is the dotted name."""


class Storage(NamedTuple):
    """A block of numbers outside of the pickle."""

    key: str
    dtype: str  # PyTorch's name of the type, such as "FloatStorage"
    size: int  # in elements


class Tensor(NamedTuple):
    """A view on a storage; offset and strides in elements, all of them at least 0."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Fixed:
    """An entry of the closed list, which a pickle may not change."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a state for something that has none")


class Name(Fixed, str):
    """A type or an object that a pickle only refers to, as its dotted name."""

    __slots__ = ()


class Call(Fixed):
    """One of our functions below, which a pickle may call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class Record:
    """An object of some class, as its saved state of plain data."""

    name = ""

    def __init__(self, *arguments: Any):
        self.state: Any = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PlainDict(dict):
    """Any kind of dict, without attributes such as PyTorch's version notes."""

    def __init__(self, *arguments: Any):
        super().__init__()
        if arguments and isinstance(arguments[0], list):
            self.update((key, value) for key, value in arguments[0])

    def __setstate__(self, state: Any) -> None:
        pass


class NumpyType(Record):
    """numpy.dtype(code, align, copy), of plain numbers only."""

    def __init__(self, code: Any = "", *_: Any):
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.order = state[1]

    def dtype(self) -> np.dtype:
        if not NUMERIC.fullmatch(self.code):
            raise ValueError(f"numpy type {self.code!r}")
        return np.dtype(self.code).newbyteorder(self.order)


class NumpyArray(Record):
    """numpy.ndarray: `_reconstruct` creates it, and its state (version, shape, type, Fortran order,
    bytes) fills it.
    """

    def array(self) -> np.ndarray:
        _, shape, kind, fortran, raw = self.state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(raw, kind.dtype()).reshape(shape, order="F" if fortran else "C")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    counts = (offset, *shape, *strides)
    if (
        not isinstance(storage, Storage)
        or len(shape) != len(strides)
        or not all(type(n) is int and n >= 0 for n in counts)
    ):
        raise ValueError("a tensor without a storage, or of impossible sizes")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


def _scalar(kind: Any, raw: Any = b"") -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, kind.dtype(), count=1)[0].item()


def _reconstructor(kind: Any, *_: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, Record)):
        raise ValueError(f"an object of type {kind!r}")
    return kind()


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    if codec not in ("latin1", "latin-1"):
        raise ValueError(f"text in {codec!r}")
    return text.encode("latin1")


def _size(entries: Any = ()) -> tuple:
    return tuple(entries)


def _record(name: str) -> type[Record]:
    return type("Record", (Record,), {"name": name})


def _allowed() -> dict[str, Any]:
    names: dict[str, Any] = {
        "torch._utils._rebuild_tensor": Call(_rebuild_tensor),
        "torch._utils._rebuild_tensor_v2": Call(_rebuild_tensor),
        "torch._utils._rebuild_parameter": Call(_rebuild_parameter),
        "torch.Size": Call(_size),
        "collections.OrderedDict": PlainDict,
        "collections.defaultdict": PlainDict,
        "pytorch_lightning.utilities.parsing.AttributeDict": PlainDict,
        "copyreg._reconstructor": Call(_reconstructor),
        "copy_reg._reconstructor": Call(_reconstructor),
        "_codecs.encode": Call(_encode),
        "numpy.dtype": NumpyType,
        "numpy.ndarray": Name("numpy.ndarray"),
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names |= {f"{module}.scalar": Call(_scalar), f"{module}._reconstruct": NumpyArray}
    records = [
        "argparse.Namespace",
        "torch.device",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
    ]
    records += [
        f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Integer", "Float", "String", "Boolean")
    ]
    names |= {name: _record(name) for name in records}
    names_only = ["typing.Any", "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"]
    names_only += [
        f"{module}.{kind}"
        for module in ("builtins", "__builtin__")
        for kind in (
            "object",
            "dict",
            "list",
            "tuple",
            "int",
            "long",
            "float",
            "str",
            "unicode",
            "bool",
            "bytes",
        )
    ]
    names_only += [
        f"torch.{kind}"
        for kind in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
    ]
    names_only += [
        f"torch.{kind}Storage"
        for kind in (
            "Float",
            "Double",
            "Half",
            "BFloat16",
            "Long",
            "Int",
            "Short",
            "Char",
            "Byte",
            "Bool",
        )
    ]
    return names | {name: Name(name) for name in names_only}


ALLOWED = _allowed()


def scan(stream: Any) -> bytes:
    """The next pickle of a stream (with `read`, `readline`, `tell`, `seek`), checked opcode by
    opcode. The stream is then at its end.

    Raises:
        ValueError: it is cut short, is no pickle, or nests too many tuples.
    """
    start = stream.tell()
    tuples = 0
    for opcode, _, _ in pickletools.genops(stream):
        tuples += opcode.name.startswith("TUPLE")
        if tuples > MAX_TUPLES:
            raise ValueError(f"more than {MAX_TUPLES} tuples")
    end = stream.tell()
    stream.seek(start)
    return stream.read(end - start)


def loads(data: bytes, find_storage: Callable[[tuple], Storage]) -> Any:
    """The object of one pickle: plain data and the classes above.

    Args:
        data: one whole pickle, as `scan` returns it.
        find_storage: persistent id, which is a tuple of plain data -> Storage.

    Raises:
        Refused: it names something that is not in ALLOWED.
        Exception: almost any, for data that is damaged.
    """
    return _Unpickler(io.BytesIO(data), find_storage).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, find_storage: Callable[[tuple], Storage]):
        super().__init__(stream, encoding="latin1")
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        dotted = f"{module}.{name}"
        if dotted not in ALLOWED:
            raise Refused(dotted)
        return ALLOWED[dotted]

    def persistent_load(self, pid: Any) -> Storage:
        return self._find_storage(pid)


def plain(value: Any, array_of: Callable[[Tensor], np.ndarray]) -> Any:
    """Turns records into dicts, lists and values, and tensors into arrays; a Namespace becomes the
    dict of its fields.

    Raises:
        ValueError: something contains itself, or too much.
    """
    seen = 0

    def inner(value: Any, depth: int) -> Any:
        nonlocal seen
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise ValueError(f"more than {MAX_DEPTH} levels or {MAX_VALUES} values")
        if isinstance(value, Tensor):
            return array_of(value)
        if isinstance(value, dict):
            return {
                key if isinstance(key, (str, int)) else str(key): inner(entry, depth + 1)
                for key, entry in value.items()
            }
        if isinstance(value, (list, tuple)):
            return (tuple if isinstance(value, tuple) else list)(
                inner(entry, depth + 1) for entry in value
            )
        if isinstance(value, NumpyArray):
            return value.array()
        if isinstance(value, Record) and isinstance(value.state, dict):
            # OmegaConf has the value of a node in `_val`, the entries of a container in `_content`.
            for field in ("_content", "_val"):
                if value.name.startswith("omegaconf.") and field in value.state:
                    return inner(value.state[field], depth + 1)
            return {
                key: inner(entry, depth + 1)
                for key, entry in value.state.items()
                if key not in ("_parent", "_metadata")
            }
        if isinstance(value, Record):
            return None
        return value

    return inner(value, 0)
