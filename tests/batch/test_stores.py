"""Files by path or URI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from declip.batch import stores
from declip.errors import DeclipError, ImageError


@pytest.fixture(params=["file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "file" else f"memory://{tmp_path.name}/out"


def test_what_was_written_is_read(folder: str) -> None:
    uri = stores.join(folder, "sub/a.bin")
    assert not stores.exists(uri) and stores.names(folder) == []
    stores.write(uri, b"one")
    stores.write(uri, b"two")
    assert stores.exists(uri) and stores.fetch(uri, 3) == b"two"
    assert stores.names(stores.join(folder, "sub")) == ["a.bin"]


def test_a_new_file_takes_no_place(folder: str) -> None:
    uri = stores.join(folder, "a.bin")
    stores.write(uri, b"one", new=True)
    with pytest.raises(FileExistsError):
        stores.write(uri, b"two", new=True)
    assert stores.fetch(uri, 3) == b"one" and stores.names(folder) == ["a.bin"]


def test_a_disk_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unable)
    test_a_new_file_takes_no_place(str(tmp_path))


def test_what_cannot_be_read_says_why(folder: str) -> None:
    stores.write(stores.join(folder, "a.bin"), b"four")
    for name, kind in {"gone.bin": "missing", "a.bin": "too-large", "": "input"}.items():
        with pytest.raises(ImageError) as caught:
            stores.fetch(stores.join(folder, name), 3)
        assert caught.value.kind == kind


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="expected a picture file"):
        stores.fetch(str(tmp_path / "a.jpg"), 9)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "a.bin")
    stores.write(uri, b"one")

    def full(_: int) -> None:
        assert stores.fetch(uri, 3) == b"one"  # the new bytes are not seen before they are safe
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        stores.write(uri, b"two")
    assert stores.fetch(uri, 3) == b"one" and stores.names(str(tmp_path)) == ["a.bin"]


def test_names_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("a::b.jpg", "a b#?%20.jpg", os.fsdecode(b"\xff.jpg")):
        (tmp_path / name).write_bytes(b"x")
        assert stores.fetch(str(tmp_path / name), 1) == b"x"


def test_only_stores_with_whole_files_are_written_to() -> None:
    for good in ("out", "memory://out"):
        stores.check_writable(good)
    with pytest.raises(DeclipError, match="expected a folder of this machine, or one of s3://"):
        stores.check_writable("sftp://host/out")
    with pytest.raises(DeclipError, match="a protocol that fsspec knows"):
        stores.locate("nothing://a")


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert stores.absolute("a/b.jpg") == str(tmp_path / "a" / "b.jpg")
    assert stores.absolute("file:///a/my%20b.jpg") == stores.absolute("file://localhost/a/my%20b.jpg") == "/a/my b.jpg"
    assert stores.absolute("file:/a/b.jpg") == "/a/b.jpg"
    assert stores.absolute("C://b.jpg") == str(tmp_path / "C:" / "b.jpg")
    assert stores.absolute("s3://a/b.jpg") == "s3://a/b.jpg"
