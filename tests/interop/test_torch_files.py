"""Checkpoint files are read as data: real layouts, hostile pickles of every protocol, damaged
files; and written.
"""

import argparse
import collections
import io
import os
import pickle
import random
import struct
import sys
import types
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mebt_jax.errors import UserError
from mebt_jax.interop import inert_pickle
from mebt_jax.interop.torch_files import (
    LEGACY_MAGIC,
    LEGACY_VERSION,
    read_torch_file,
    write_torch_file,
)


class Stored:
    """A tensor, pickled as `torch.save` does."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        return (
            sys.modules["torch._utils"]._rebuild_tensor_v2,
            (Block(self.array), 0, self.array.shape, strides, False, collections.OrderedDict()),
        )


class Block:
    def __init__(self, array):
        self.array = array


@pytest.fixture
def torch_pickle(monkeypatch):
    """Function from a value and a protocol to (its pickle, its storages): an empty stand-in for
    PyTorch lends the names.
    """
    torch, torch_utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils = torch_utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", torch_utils)
    exec("def _rebuild_tensor_v2(*_): pass", torch_utils.__dict__)
    for kind in KINDS.values():
        exec(f"class {kind}: pass", torch.__dict__)
        getattr(torch, kind).__module__ = "torch"
    torch_utils._rebuild_tensor_v2.__module__ = "torch._utils"

    def pickled(value, protocol=2):
        stored = []

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj):
                if not isinstance(obj, Block):
                    return None
                stored.append(obj.array)
                kind = getattr(torch, KINDS[obj.array.dtype.type])
                return "storage", kind, str(len(stored) - 1), "cpu", obj.array.size

        stream = io.BytesIO()
        Pickler(stream, protocol).dump(value)
        return stream.getvalue(), stored

    return pickled


KINDS = {
    np.float32: "FloatStorage",
    np.float16: "HalfStorage",
    ml_dtypes.bfloat16: "BFloat16Storage",
    np.int64: "LongStorage",
    np.bool_: "BoolStorage",
}


def write_zip(path, data, arrays=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", data)
        for key, array in enumerate(arrays):
            archive.writestr(f"model/data/{key}", array.tobytes("A"))
        archive.writestr("model/version", "3\n")


def write_legacy(path, data, arrays=()):
    head = [
        LEGACY_MAGIC,
        LEGACY_VERSION,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}},
    ]
    parts = [pickle.dumps(part, 2) for part in head] + [
        data,
        pickle.dumps([str(key) for key in range(len(arrays))], 2),
    ]
    path.write_bytes(
        b"".join(parts)
        + b"".join(struct.pack("<q", array.size) + array.tobytes("A") for array in arrays)
    )


ARRAYS = {
    "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.array([1.5, -2], np.float16),
    "short": np.array([[1, 2.5]], ml_dtypes.bfloat16),
    "steps": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_both_formats_give_the_arrays_and_plain_data(tmp_path, torch_pickle, write, protocol):
    values = {
        "state_dict": collections.OrderedDict(
            (name, Stored(array)) for name, array in ARRAYS.items()
        ),
        "hyper_parameters": {
            "args": argparse.Namespace(lr=3e-4, downsample=[4, 8, 8]),
            "rate": np.float64(0.5),
        },
        "counts": np.arange(3),
        "epoch": 3,
        "by_step": collections.defaultdict(list, {1: (None, True)}),
    }
    data, stored = torch_pickle(values, protocol)
    write(tmp_path / "file.ckpt", data, stored)
    content = read_torch_file(tmp_path / "file.ckpt")
    assert content["state_dict"].keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert content["state_dict"][name].dtype == array.dtype
        np.testing.assert_array_equal(content["state_dict"][name], array)
    assert content["hyper_parameters"] == {
        "args": {"lr": 3e-4, "downsample": [4, 8, 8]},
        "rate": 0.5,
    }
    np.testing.assert_array_equal(content.pop("counts"), [0, 1, 2])
    assert content["epoch"] == 3 and content["by_step"] == {1: (None, True)}


class Hostile:
    """What a pickle can ask for: any function with any arguments."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "function, argument, named",
    [
        (os.system, "touch {}", "posix.system"),
        (eval, "open('{}', 'w')", "builtins.eval"),
        (getattr, "x", "builtins.getattr"),
        (__import__, "os", "builtins.__import__"),
    ],
)
def test_code_in_a_file_is_named_and_not_run(tmp_path, write, protocol, function, argument, named):
    trap = tmp_path / "sprung"
    data = pickle.dumps({"state_dict": {}, "x": Hostile(function, argument.format(trap))}, protocol)
    write(tmp_path / "hostile.ckpt", data)
    with pytest.raises(UserError) as error:
        read_torch_file(tmp_path / "hostile.ckpt")
    assert f"asks for {named.replace('builtins', '__builtin__') if protocol < 3 else named}" in str(
        error.value
    )
    assert not trap.exists()


@pytest.mark.parametrize(
    "opcodes, words",
    [
        (b"(S'touch x'\nios\nsystem\n.", "asks for os.system"),  # INST, protocol 0
        (
            b"\x80\x04\x8c\x05torch\x8c\x0enn.Module.load\x93.",
            "asks for torch.nn.Module.load",
        ),  # a dotted attribute
        (b"\x80\x02\x82\x01.", "damaged"),  # the extension registry
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x0c__defaults__K\x01s\x86b.",
            "damaged",
        ),  # a change to our functions
        (b"\x80\x02carr\n", "damaged"),
        (b"\x80\x02N" + b"\x85" * 200_000 + b".", "more than 100000 tuples"),
        (b"\x80\x02]q\x00h\x00a.", "more than 100 levels"),  # a list that contains itself
        (
            b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(40)) + b".",
            "10000 values",
        ),  # 2^40 lists
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00"
            b"\x00\x00cpuK\x04tQK\x00K\x09\x85K\x01\x85\x89}tR.",
            "damaged",
        ),
    ],
)
def test_hostile_opcodes_end_in_one_sentence(tmp_path, opcodes, words, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_VALUES", 10_000)
    write_zip(tmp_path / "hostile.ckpt", opcodes)
    with pytest.raises(UserError) as error:
        read_torch_file(tmp_path / "hostile.ckpt")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert inert_pickle.ALLOWED["torch._utils._rebuild_tensor_v2"]._function.__defaults__ is None


@pytest.mark.parametrize(
    "offset, shape, strides, fits",
    [
        (0, (4,), (1,), True),
        (1, (1, 3), (3, 1), True),
        (0, (9,), (1,), False),
        (4, (1,), (1,), False),
        (-1, (2,), (1,), False),
        (2, (2,), (-1,), False),
        (0, (2, 2), (1,), False),
        (0, (10**6, 10**6), (0, 0), False),
    ],
)
def test_tensors_that_reach_beyond_their_storage_are_refused(
    tmp_path, offset, shape, strides, fits
):
    def number(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
    rebuilt = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89}tR"
    )
    write_zip(
        tmp_path / "file.ckpt", b"\x80\x02" + rebuilt + b".", [np.arange(4, dtype=np.float32)]
    )
    if fits:
        assert read_torch_file(tmp_path / "file.ckpt").ravel().tolist() == list(range(offset, 4))
    else:
        with pytest.raises(UserError, match="damaged"):
            read_torch_file(tmp_path / "file.ckpt")


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_damaged_files_end_in_one_sentence(tmp_path, torch_pickle, write):
    """Cut at every length, and with bytes changed at random: never another exception than ours."""
    data, stored = torch_pickle(
        {
            "state_dict": {"w": Stored(np.arange(5, dtype=np.float32))},
            "args": argparse.Namespace(n=1),
        }
    )
    path = tmp_path / "whole.ckpt"
    write(path, data, stored)
    whole = path.read_bytes()
    rng = random.Random(0)
    variants = [whole[:length] for length in range(0, len(whole), 7)]
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        variants.append(bytes(changed))
    refused = 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_torch_file(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(variants) / 3


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="Could not read .*absent.ckpt"):
        read_torch_file(tmp_path / "absent.ckpt")
    (tmp_path / "text").write_text("not a checkpoint\n" * 100)
    with pytest.raises(UserError, match="damaged or is no PyTorch checkpoint"):
        read_torch_file(tmp_path / "text")
    write_zip(tmp_path / "squeezed", pickle.dumps({}, 2), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed"):
        read_torch_file(tmp_path / "squeezed")


def test_what_is_written_is_read_again_bit_for_bit(tmp_path):
    arrays = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()} | {
        "steps": ARRAYS["steps"]
    }
    data = {
        "state_dict": arrays,
        "hyper_parameters": {
            "downsample": [4, 8, 8],
            "lr": 3e-4,
            "n": -300,
            "text": "é",
            "no": None,
        },
        "on": True,
    }
    write_torch_file(tmp_path / "out" / "back.pt", data)
    content = read_torch_file(tmp_path / "out" / "back.pt")
    for name, array in arrays.items():
        assert (
            content["state_dict"][name].dtype == array.dtype
            and content["state_dict"][name].shape == array.shape
        )
        assert content["state_dict"][name].tobytes() == array.tobytes()
    assert content["hyper_parameters"] == data["hyper_parameters"] and content["on"] is True
