"""The restricted reader of torch.save files: tensors come out exactly, nothing that a file asks for is executed."""

from __future__ import annotations

import builtins
import os
import pathlib
import pickle
import subprocess
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from enum import Enum

import pytest
import torch

from jmp_ds.errors import UserError
from jmp_ds.legacy_pickle import Placeholder, read_torch_file

BOTH = pytest.mark.parametrize("zipped", [True, False])


def saved(value, path, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@BOTH
def test_tensors_of_every_kind_come_back_exactly(tmp_path, zipped) -> None:
    base = torch.randn(5, 6)
    tensors = {
        "view": base[1:4, ::2],
        "transposed": base.T,
        "base": base,
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
        "odd": torch.arange(7, dtype=torch.uint8)[1:],
    }
    tensors |= {
        str(dtype): torch.arange(4).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.int8)
    }
    read = read_torch_file(saved(tensors, tmp_path / "a.pt", zipped))
    assert read.keys() == tensors.keys()
    for key, value in tensors.items():
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], value), key
    read["base"][1, 0] = 100.0
    assert read["view"][0, 0] == 100.0  # shared memory stays shared
    assert torch.equal(read_torch_file(tmp_path / "a.pt")["base"], base)  # the file does not change


@BOTH
def test_containers_come_back(tmp_path, zipped) -> None:
    value = {
        "ordered": OrderedDict(b=1, a=(1.5, None, True)),
        "list": [1, "ö", b"bytes\xff", {3, 4}, frozenset({5})],
        "size": torch.Size([2, 3]),
        "default": defaultdict(list, x=[1]),
        "dtype": torch.float32,
        "complex": 1j,
    }
    read = read_torch_file(saved(value, tmp_path / "a.pt", zipped))
    assert read == {**value, "default": {"x": [1]}}
    assert list(read["ordered"]) == ["b", "a"]


@dataclass
class Config:
    width: int
    weight: torch.Tensor | None = None


class Kind(Enum):
    ONE = 1

    def __reduce_ex__(self, protocol):
        """As Python 3.11 pickles members by itself; other versions, and some libraries, do it by name."""
        return Kind, (self.value,)


class Outer:
    class Inner:
        def __init__(self) -> None:
            self.depth = 3


class ListLike(list):
    pass


class DictLike(dict):
    pass


class Loud:
    """Would be noticed if it were made."""

    made = 0

    def __new__(cls, *args):
        cls.made += 1
        return super().__new__(cls)

    def __setstate__(self, state):
        type(self).made += 100


@BOTH
def test_foreign_objects_become_placeholders_and_tensors_beside_them_are_read(tmp_path, zipped) -> None:
    foreign = {
        "config": Config(8, torch.ones(2)),
        "enum": Kind.ONE,
        "nested": Outer.Inner(),
        "path": pathlib.PurePosixPath("/a/b"),
        "list": ListLike([1, 2]),
        "dict": DictLike(a=1),
        "class": Config,
        "function": saved,
        "loud": Loud(),
        "type": int,
    }
    before = Loud.made
    read = read_torch_file(saved({"foreign": foreign, "weights": torch.arange(3)}, tmp_path / "a.pt", zipped))
    assert Loud.made == before
    assert torch.equal(read["weights"], torch.arange(3))
    got = read["foreign"]
    for key in ("config", "enum", "nested", "path", "list", "dict", "loud"):
        assert isinstance(got[key], Placeholder), key
    assert got["config"].name.endswith("Config")
    assert got["config"].state["width"] == 8
    assert torch.equal(got["config"].state["weight"], torch.ones(2))
    assert got["enum"].arguments == (1,)
    assert got["list"].items == [1, 2]
    assert got["dict"].items == [("a", 1)]
    assert issubclass(got["class"], Placeholder)
    assert issubclass(got["function"], Placeholder)


class Payload:
    """Pickles as a call of the given function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@BOTH
@pytest.mark.parametrize("function", [os.system, builtins.eval, builtins.exec, subprocess.Popen, builtins.__import__])
def test_payloads_are_refused_and_nothing_runs(tmp_path, zipped, function) -> None:
    witness = tmp_path / "witness"
    code = f"open({str(witness)!r}, 'w')"
    argument = {os.system: f"touch {witness}", subprocess.Popen: ["touch", str(witness)]}.get(function, code)
    path = saved({"state_dict": {}, "bad": Payload(function, argument)}, tmp_path / "a.pt", zipped)
    with pytest.raises(UserError, match=r"a\.pt: names .*runs code"):
        read_torch_file(path)
    assert not witness.exists()


def test_payloads_by_detours_do_nothing(tmp_path) -> None:
    witness = tmp_path / "witness"
    detours = [
        Payload(getattr, dict, "fromkeys"),
        Payload(pickle.loads, pickle.dumps(Payload(os.system, f"touch {witness}"))),
        Payload(torch.load, str(tmp_path / "other.pt")),
        Payload(pathlib.Path.touch, pathlib.PurePosixPath(witness)),
        Payload(OrderedDict, [("a", Payload(os.system, f"touch {witness}"))]),
    ]
    for k, detour in enumerate(detours):
        path = saved(detour, tmp_path / f"{k}.pt")
        try:
            read = read_torch_file(path)
        except UserError:
            continue
        assert isinstance(read, Placeholder) or issubclass(read, Placeholder)
    assert not witness.exists()


def test_a_file_cannot_change_the_reader(tmp_path) -> None:
    # GLOBAL torch._utils _rebuild_tensor_v2; state (None, {"_function": 1}); BUILD
    attack = b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'_function'\nI1\nstb."
    with __import__("zipfile").ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", attack)
    with pytest.raises(UserError, match="changes a function"):
        read_torch_file(tmp_path / "a.pt")


@BOTH
def test_views_beyond_the_storage_are_refused(tmp_path, zipped) -> None:
    class Beyond:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                torch.ones(3).untyped_storage(),
                0,
                (1000,),
                (1,),
                False,
                OrderedDict(),
            )

    with pytest.raises(UserError, match="damaged"):
        read_torch_file(saved(Beyond(), tmp_path / "a.pt", zipped))


@BOTH
def test_incomplete_files_say_so(tmp_path, zipped) -> None:
    path = saved({"a": torch.randn(1000)}, tmp_path / "a.pt", zipped)
    whole = path.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.pt"):
            read_torch_file(path)


def test_what_is_no_file_says_so(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        read_torch_file(tmp_path / "missing.pt")
    with pytest.raises(UserError, match="cannot be opened"):
        read_torch_file(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="not a PyTorch file"):
        read_torch_file(tmp_path / "text")
