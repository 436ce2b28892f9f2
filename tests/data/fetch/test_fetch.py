"""Fetching from a server on this machine: broken connections, changed files, wrong checksums, archives."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import Server
from typer.testing import CliRunner

from jmp_ds.cli.app import app
from jmp_ds.data.fetch.download import Patience, download
from jmp_ds.data.fetch.fetch import RECORD, fetch
from jmp_ds.data.fetch.sources import RemoteFile, Source, source, sources
from jmp_ds.data.readers import READERS
from jmp_ds.errors import UserError

CONTENT = bytes(range(256)) * 20_000
QUICK = Patience(tries=3, pause=0.01, timeout=5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server(CONTENT)
    yield made
    made.close()


def of(server: Server, **more: object) -> Source:
    return Source("set", "a set", "CC0", "nobody (2020)", (RemoteFile(f"{server.url}/a.bin", "a.bin", **more),))


def test_a_file_arrives(server: Server, tmp_path: Path) -> None:
    told = []
    path = download(of(server).files[0], tmp_path, patience=QUICK, seen=lambda have, total: told.append((have, total)))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_broken_connection_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.cut = [1_000_000, 500_000]
    assert download(of(server).files[0], tmp_path, patience=QUICK).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_another_run_goes_on_where_the_first_broke_off(server: Server, tmp_path: Path) -> None:
    server.cut = [2_000_000]
    with pytest.raises(UserError, match=r"2000000 bytes are kept in .*a\.bin\.part"):
        download(of(server).files[0], tmp_path, patience=Patience(tries=1, pause=0.01, timeout=5))
    assert not (tmp_path / "a.bin").exists()
    assert download(of(server).files[0], tmp_path, patience=QUICK).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=2000000-"]


def test_a_file_that_changed_meanwhile_is_begun_anew(server: Server, tmp_path: Path) -> None:
    server.cut = [2_000_000]
    with pytest.raises(UserError):
        download(of(server).files[0], tmp_path, patience=Patience(tries=1, pause=0.01, timeout=5))
    server.content, server.tag = bytes(reversed(CONTENT)), '"two"'
    assert download(of(server).files[0], tmp_path, patience=QUICK).read_bytes() == server.content


@pytest.mark.parametrize("tag", ['"one"', "", 'W/"weak"'])
def test_a_server_without_ranges(server: Server, tmp_path: Path, tag: str) -> None:
    server.ranges, server.tag, server.cut = False, tag, [2_000_000]
    assert download(of(server).files[0], tmp_path, patience=QUICK).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_part_that_is_whole_or_too_long(server: Server, tmp_path: Path) -> None:
    note = {"validator": '"one"', "total": len(CONTENT), "url": ""}
    for content in (CONTENT, CONTENT + b"more"):
        (tmp_path / "a.bin.part").write_bytes(content)
        (tmp_path / "a.bin.part.json").write_text(json.dumps(note))
        assert download(of(server).files[0], tmp_path, patience=QUICK).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_missing_file_is_told(server: Server, tmp_path: Path) -> None:
    server.errors = [503, 429]
    assert download(of(server).files[0], tmp_path, patience=QUICK).read_bytes() == CONTENT
    server.errors = [404]
    with pytest.raises(UserError, match=r"404 .*has the publisher moved"):
        download(RemoteFile(f"{server.url}/b", "b"), tmp_path, patience=QUICK)
    server.errors = [500] * 3
    with pytest.raises(UserError, match="answers 500"):
        download(RemoteFile(f"{server.url}/b", "b"), tmp_path, patience=QUICK)


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"no connection .*is there a network.*the same command goes on"):
        download(RemoteFile(f"http://127.0.0.1:{port}/a", "a"), tmp_path, patience=Patience(2, 0.01, 2))


def test_published_checksums(server: Server, tmp_path: Path) -> None:
    md5 = hashlib.md5(CONTENT).hexdigest()
    (one,) = fetch(of(server, kind="md5", checksum=md5, stated="the publishers"), tmp_path, patience=QUICK)
    assert one.how == "md5 as stated by the publishers"
    assert one.sha256 == hashlib.sha256(CONTENT).hexdigest()
    asked = len(server.asked)
    fetch(of(server, kind="md5", checksum=md5, stated="the publishers"), tmp_path, patience=QUICK)
    assert len(server.asked) == asked  # what is there is checked, not fetched again


def test_a_wrong_checksum_is_refused_and_moved_aside(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"md5 is .* the publishers states 0{32}.*a\.bin\.wrong"):
        fetch(of(server, kind="md5", checksum="0" * 32, stated="the publishers"), tmp_path, patience=QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin.wrong"]
    with pytest.raises(UserError, match="has 5120000 bytes, the publishers states 7"):
        fetch(of(server, bytes=7, stated="the publishers"), tmp_path, patience=QUICK)


def test_the_first_download_is_remembered(server: Server, tmp_path: Path) -> None:
    (one,) = fetch(of(server), tmp_path, patience=QUICK)
    assert "remembered" in one.how
    kept = json.loads((tmp_path / RECORD).read_text())["a.bin"]
    assert kept["sha256"] == one.sha256
    assert kept["url"] == f"{server.url}/a.bin"
    (again,) = fetch(of(server), tmp_path, patience=QUICK)
    assert again.how == "as at its first download"
    (tmp_path / "a.bin").write_bytes(b"something else")
    with pytest.raises(UserError, match="at its first download it was"):
        fetch(of(server), tmp_path, patience=QUICK)
    (tmp_path / "a.bin.wrong").unlink()
    server.content = b"the publishers changed it"
    with pytest.raises(UserError, match="at its first download it was"):
        fetch(of(server), tmp_path, patience=QUICK)


def archive(kind: str, members: dict[str, bytes], link: str = "") -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as made:
            for name, data in members.items():
                made.writestr(name, data)
    else:
        with tarfile.open(fileobj=file, mode=f"w:{kind}") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            if link:
                info = tarfile.TarInfo("link")
                info.type, info.linkname = tarfile.SYMTYPE, link
                tar.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", ""])
def test_archives_are_unpacked(server: Server, tmp_path: Path, kind: str) -> None:
    server.content = archive(kind, {"deep/a.txt": b"one", "b.txt": b"two"})
    remote = RemoteFile(f"{server.url}/d.x", f"data.{kind}", unpack=True)
    chosen = Source("set", "t", "l", "c", (remote,))
    for _ in range(2):
        (one,) = fetch(chosen, tmp_path, patience=QUICK)
        assert one.unpacked == tmp_path / "data"
        assert (tmp_path / "data/deep/a.txt").read_bytes() == b"one"
    assert len(server.asked) == 1


def test_an_archive_of_archives(server: Server, tmp_path: Path) -> None:
    server.content = archive("zip", {"inner.zip": archive("zip", {"a.json": b"[]"})})
    remote = RemoteFile(f"{server.url}/d", "data.zip", unpack=True)
    fetch(Source("set", "t", "l", "c", (remote,)), tmp_path, patience=QUICK)
    assert (tmp_path / "data/a.json").read_bytes() == b"[]"


@pytest.mark.parametrize(
    ("kind", "members", "link"),
    [
        ("zip", {"../evil": b"x"}, ""),
        ("gz", {"../evil": b"x"}, ""),
        ("zip", {"/tmp/evil": b"x"}, ""),
        ("gz", {}, "/etc"),
    ],
)
def test_archives_that_lead_elsewhere_are_refused(
    server: Server, tmp_path: Path, kind: str, members: dict[str, bytes], link: str
) -> None:
    server.content = archive(kind, members, link)
    remote = RemoteFile(f"{server.url}/d", "data.arc", unpack=True)
    with pytest.raises(UserError, match="nothing was unpacked"):
        fetch(Source("set", "t", "l", "c", (remote,)), tmp_path / "in", patience=QUICK)
    assert not (tmp_path / "evil").exists()
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["data.arc", RECORD]


def test_a_damaged_archive_is_told(server: Server, tmp_path: Path) -> None:
    server.content = archive("gz", {"a": b"x" * 100_000})[:-50]
    remote = RemoteFile(f"{server.url}/d", "data.tar.gz", unpack=True)
    with pytest.raises(UserError, match="data"):
        fetch(Source("set", "t", "l", "c", (remote,)), tmp_path, patience=QUICK)
    assert not (tmp_path / "data").exists()


def test_the_command_line(server: Server, tmp_path: Path) -> None:
    listed = tmp_path / "sources.yaml"
    listed.write_text(
        f"mine:\n  title: My set\n  licence: CC BY 4.0\n  citation: Me (2024)\n"
        f"  files: [{{url: '{server.url}/x.npz'}}]\n  convert: --format md17\n"
    )
    run = CliRunner().invoke(app, ["data", "fetch", "mine", "--sources", str(listed), "--out", str(tmp_path / "o")])
    assert run.exit_code == 0, run.output
    for text in ("licence: CC BY 4.0", "cite: Me (2024)", "no published checksum", "--format md17"):
        assert text in run.output
    assert run.output.index("licence") < run.output.index("next: jmp-ds")
    assert (tmp_path / "o/mine/x.npz").read_bytes() == CONTENT
    shown = CliRunner().invoke(app, ["data", "fetch", "mine", "--show", "--sources", str(listed)])
    assert shown.exit_code == 0
    assert len(server.asked) == 1
    wrong = CliRunner().invoke(app, ["data", "fetch", "mone", "--sources", str(listed)])
    assert wrong.exit_code == 2
    assert "did you mean mine" in wrong.output


def test_a_list_of_what_to_leave_out_is_no_source(server: Server, tmp_path: Path) -> None:
    listed = tmp_path / "sources.yaml"
    listed.write_text(
        f"mine: {{title: t, licence: l, citation: c, convert: '--format qm9', files: ["
        f"{{url: '{server.url}/x.zip'}}, {{url: '{server.url}/bad.txt', exclude: true}}]}}"
    )
    run = CliRunner().invoke(app, ["data", "fetch", "mine", "--sources", str(listed), "--out", str(tmp_path / "o")])
    assert run.exit_code == 0, run.output
    folder = tmp_path / "o" / "mine"
    expected = f"next: jmp-ds data convert {folder / 'x.zip'} STORE --format qm9 --exclude {folder / 'bad.txt'}"
    assert expected in run.output


def test_the_list_of_sources_makes_sense() -> None:
    known = sources()
    assert len(known) >= 20
    for one in known.values():
        assert one.licence
        assert one.citation
        assert one.convert.split()[:1] == ["--format"]
        assert one.convert.split()[1] in READERS
        for remote in one.files:
            assert bool(remote.kind) == bool(remote.stated)
            assert remote.name.count(".") >= 1
    families = ("oc20", "oc22", "ani1x", "transition1x", "qm9", "rmd17", "md22", "spice", "matbench", "qmof", "pdbbind")
    assert all(any(name.startswith(family) for name in known) for family in families)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1",
        "a: {title: t, licence: l, citation: c, files: []}",
        "a: {title: t, licence: l, files: [{url: 'http://x/y'}]}",
        "a: {title: t, licence: l, citation: c, files: [{url: 'ftp://x/y'}]}",
        "a: {title: t, licence: l, citation: c, files: [{url: 'http://x/y', name: ../z}]}",
        "a: {title: t, licence: l, citation: c, files: [{url: 'http://x/y', md5: abc, from: me}]}",
        f"a: {{title: t, licence: l, citation: c, files: [{{url: 'http://x/y', md5: {'a' * 32}}}]}}",
        "a: {title: t, licence: l, citation: c, colour: red, files: [{url: 'http://x/y'}]}",
        "- a",
        "a: [",
    ],
)
def test_lists_that_make_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=r"s\.yaml"):
        source("a", tmp_path / "s.yaml")
