"""The restricted reader of pickled records: both layouts of `Data` come out exactly, no payload gets through."""

from __future__ import annotations

import builtins
import io
import operator
import os
import pickle
import resource
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from old_pyg import old_record
from torch_geometric.data import Data

from jmp_ds.errors import UserError
from jmp_ds.pickle_scan import scan
from jmp_ds.record_pickle import read_record


def fields() -> dict[str, object]:
    return {
        "pos": torch.randn(5, 3),
        "y": -12.25,
        "cell": torch.eye(3, dtype=torch.float64)[None] * 7,
        "atomic_numbers": torch.tensor([6.0, 8, 1, 1, 29]),
        "fixed": torch.tensor([0, 0, 1, 1, 1]),
        "sid": torch.tensor([17]),
        "id": "29_27578",
        "natoms": 5,
        "flag": True,
        "view": torch.arange(24.0).reshape(4, 6)[1:3, ::2],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f8"),
        "number": np.float64(2.5),
        "empty": torch.empty(0, 3),
    }


def assert_same(read: dict[str, object], wanted: dict[str, object]) -> None:
    assert read.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
        np.testing.assert_array_equal(np.asarray(read[key]), np.asarray(value), err_msg=key)
        assert np.asarray(read[key]).dtype.kind == np.asarray(value).dtype.kind


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_records_of_today_come_back(protocol: int) -> None:
    wanted = fields()
    assert_same(read_record(pickle.dumps(Data(**wanted), protocol=protocol)), wanted)


def test_records_of_old_releases_come_back_without_their_absent_fields() -> None:
    wanted = fields()
    assert_same(read_record(old_record(**wanted)), wanted)


def test_lists_of_records_and_plain_values() -> None:
    one, two = fields(), fields()
    read = read_record(pickle.dumps([Data(**one), Data(**two)]))
    assert len(read) == 2
    assert_same(read[1], two)
    assert read_record(pickle.dumps(17)) == 17
    # records that share a tensor
    shared = torch.arange(3.0)
    read = read_record(pickle.dumps([Data(pos=shared), Data(pos=shared)]))
    np.testing.assert_array_equal(read[0]["pos"], read[1]["pos"])


def test_pytorch_geometric_is_not_imported() -> None:
    code = (
        "import sys; from jmp_ds.record_pickle import read_record; "
        "read_record(sys.stdin.buffer.read()); print('torch_geometric' in sys.modules)"
    )
    data = pickle.dumps(Data(pos=torch.ones(2, 3)))
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Builds:
    """Pickles as an object of some class with a state."""

    def __init__(self, kind, state):
        self.parts = kind, (), state

    def __reduce__(self):
        return self.parts


def touch(path: Path) -> str:
    return f"__import__('pathlib').Path({str(path)!r}).touch()"


def attacks(witness: Path) -> dict[str, bytes]:
    """Payloads that would create the file `witness`, each by another way."""
    code = touch(witness)
    inner = pickle.dumps(Calls(builtins.exec, code))
    file = io.BytesIO()
    torch.save(Calls(builtins.exec, code), file, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    torch.save(Calls(builtins.exec, code), zipped)
    text = code.encode()
    exec_by_stack = b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c" + bytes([len(text)]) + text + b"\x85R."
    return {
        "os.system": pickle.dumps(Calls(os.system, f"touch {witness}")),
        "posix.system": f"cposix\nsystem\n(S'touch {witness}'\ntR.".encode(),
        "eval": pickle.dumps(Calls(builtins.eval, code)),
        "exec within a record": pickle.dumps(Data(pos=torch.ones(1, 3), y=Calls(builtins.exec, code))),
        "subprocess": pickle.dumps(Calls(subprocess.Popen, ["touch", str(witness)])),
        "getattr chain": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c"
        + bytes([len(f"touch {witness}")])
        + f"touch {witness}".encode()
        + b"\x85R.",
        "name behind an admitted module": b"\x80\x04\x8c\x0dtorch.storage\x8c\x0cio.open_code\x93.",
        "STACK_GLOBAL": exec_by_stack,
        "STACK_GLOBAL from memo": b"\x80\x04\x8c\x08builtins\x94\x8c\x04exec\x94h\x00h\x01\x93\x8c"
        + bytes([len(text)])
        + text
        + b"\x85R.",
        "INST": b"(S'" + text.replace(b"'", b'"') + b"'\nibuiltins\nexec\n.",
        "OBJ": b"(cbuiltins\nexec\nS'" + text.replace(b"'", b'"') + b"'\no.",
        "NEWOBJ": b"\x80\x02cbuiltins\nexec\nU" + bytes([len(text)]) + text + b"\x85\x81.",
        "BUILD with a class of builtins": pickle.dumps(Builds(ValueError, {"a": 1})),
        "nested pickle": pickle.dumps(Calls(pickle.loads, inner)),
        "torch.load": pickle.dumps(Calls(torch.load, str(witness))),
        "file within the file": pickle.dumps(Calls(torch.storage._load_from_bytes, file.getvalue())),
        "zip within the file": pickle.dumps(Calls(torch.storage._load_from_bytes, zipped.getvalue())),
        "storage that is another file within": pickle.dumps(
            Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(torch.storage._load_from_bytes, inner)))
        ),
        "tensor hooks": pickle.dumps(
            Calls(torch._utils._rebuild_parameter_with_state, torch.ones(2), False, OrderedDict(), {"hook": 1})
        ),
        "attrgetter": pickle.dumps(Calls(operator.attrgetter, "system")),
        "methodcaller": pickle.dumps(Calls(operator.methodcaller, "system", "true")),
        "map": pickle.dumps(Calls(list, Calls(map, exec, [code]))),
        "object array": pickle.dumps(np.array([Calls(builtins.exec, code)], dtype=object)),
        "numpy load": pickle.dumps(Calls(np.load, str(witness))),
        "admitted function as class": b"\x80\x02ccollections\nOrderedDict\n)\x81ccollections\nOrderedDict\n"
        b"}X\x09\x00\x00\x00_function" + b"cbuiltins\nexec\nsb.",
        "state of an admitted function": b"ccollections\nOrderedDict\n(N}S'_function'\nI1\nstb.",
        "reference outside": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "reference as text": b"Pabc\n.",
        "class from another package": pickle.dumps(Calls(__import__("torch_geometric").data.Batch)),
    }


@pytest.mark.parametrize("name", attacks(Path("/x")))
def test_attacks_are_refused_and_nothing_runs(tmp_path: Path, name: str) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(UserError):
        read_record(attacks(witness)[name])
    assert not witness.exists()


def test_the_refusal_names_what_was_asked_for() -> None:
    with pytest.raises(UserError, match=r"names posix\.system, which no record"):
        read_record(pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(UserError, match=r"names builtins\.getattr"):
        read_record(pickle.dumps(Calls(getattr, dict, "fromkeys")))


def test_registered_extensions_do_not_bypass_the_list() -> None:
    import copyreg

    copyreg.add_extension("builtins", "exec", 240)
    try:
        data = pickle.dumps(exec, protocol=2)
        assert b"\x82\xf0" in data
        pickle.loads(data)  # now in the cache that unpicklers look into without asking
        with pytest.raises(UserError, match="EXT1"):
            read_record(data)
    finally:
        copyreg.remove_extension("builtins", "exec", 240)


def tensor_of(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    storage = torch.ones(3)._typed_storage()
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict()))


CLAIMS = {
    "memo": b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".",
    "memo as text": b"(lp999999999999\n.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "negative": b"\x80\x02T" + struct.pack("<i", -5) + b"x.",
    "long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "expanded tensor": tensor_of((10**6, 10**6), (0, 0)),
    "tensor beyond its storage": tensor_of((4,), (1,)),
    "tensor before its storage": tensor_of((2,), (1,), -1),
    "lists of lists": b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 40)) + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "array larger than its bytes": pickle.dumps(np.arange(4.0)).replace(b"K\x04\x85", b"K\x7f\x85"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_beyond_the_bytes_are_refused_without_taking_memory(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        read_record(CLAIMS[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_damaged_records_say_so() -> None:
    whole = pickle.dumps(Data(**fields()))
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        with pytest.raises(UserError):
            read_record(whole[:length])
    rng = np.random.default_rng(0)
    for _ in range(300):  # whatever bits flip, it is read or refused, never anything else
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        try:
            read_record(bytes(damaged))
        except UserError:
            continue


def test_the_scan_finds_the_end() -> None:
    for protocol in range(6):
        data = pickle.dumps([1, "a", b"b" * 300, 2**70, {"k": (1.5, None)}, [True] * 300], protocol=protocol)
        assert scan(data) == len(data)
        assert scan(b"xx" + data + b"rest", 2) == len(data) + 2
