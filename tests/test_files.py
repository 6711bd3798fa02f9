"""Files: written whole, found by one rule, addresses, texts."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import declip
from declip import files
from declip.errors import DeclipError
from declip.files import Skipped


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"new", "new", lambda path: path.write_bytes(b"new")])
def test_bytes_texts_and_writers(tmp_path: Path, content: files.Content) -> None:
    path = tmp_path / "sub" / "a.bin"
    files.write_atomic(path, b"old")
    files.write_atomic(path, content)
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["a.bin"]


def test_names_may_be_long_and_the_temporary_one_is_short_and_hidden(tmp_path: Path) -> None:
    seen: list[str] = []
    for name in ("a.png", "照" * 84 + "jpg"):  # the longest: 255 bytes
        files.write_atomic(tmp_path / name, lambda path: (seen.append(path.name), path.write_bytes(b"x")))
    files.write_together({tmp_path / f"{'n' * 254}{i}": b"x" for i in range(2)}, new=True)
    assert {len(name) for name in seen} == {29} and len(set(seen)) == 2
    assert all(name.startswith(".declip-") and name.endswith(".part") for name in seen)
    (tmp_path / seen[0]).write_bytes(b"left by a killed process")
    assert len(files.walk(tmp_path).files) == 4 and files.walk(tmp_path).skipped.hidden == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_mode_is_what_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    def for_its_owner_only(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does

    before = os.umask(umask)
    try:
        files.write_atomic(tmp_path / "a", b"x")
        files.write_atomic(tmp_path / "b", for_its_owner_only)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [mode, mode]


def test_what_fails_changes_nothing(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="full"):
        files.write_atomic(tmp_path / "a", half)
    with pytest.raises(OSError, match="full"):
        files.write_together({tmp_path / "a": b"new", tmp_path / "b": half})
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_new_files_take_no_place(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to("nowhere")
    for contents in ({tmp_path / "b": b"x"}, {tmp_path / "a": b"x", tmp_path / "b": b"x"}):
        with pytest.raises(FileExistsError) as caught:
            files.write_together(contents, new=True)
        assert caught.value.filename == str(tmp_path / "b")
    assert names(tmp_path) == ["b"]


def test_the_bytes_are_safe_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        assert not (tmp_path / "a").exists()

    monkeypatch.setattr(os, "fsync", sync)
    files.write_atomic(tmp_path / "a", b"four")
    files.write_atomic(tmp_path / "b", b"four", sync=False)
    assert synced == [4]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal\nfrom declip import files\n"
        "def half(path):\n path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomic(sys.argv[1], half)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(declip.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".declip-") and files.walk(tmp_path).files == []


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_texts_of_windows_tools(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list").write_bytes("写真.jpg\r\nb.jpg\r\n".encode(encoding))
    assert files.read_text(tmp_path / "list") == "写真.jpg\nb.jpg\n"


def test_names_that_are_no_text() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert files.encode(name) == rb"caf\udce9.jpg" and files.printable(name) == r"caf\udce9.jpg"
    assert json.loads(files.encode(json.dumps(name, ensure_ascii=False))) == name


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("file:///my%20photos/a%23.jpg", "/my photos/a#.jpg"),
        ("file://localhost/a.jpg", "/a.jpg"),
        ("FILE:///a.jpg", "/a.jpg"),
        ("file:/a.jpg", "/a.jpg"),
        ("file:///a?b#c.jpg", "/a?b#c.jpg"),
        (Path("/caf\udce9.jpg").as_uri(), "/caf\udce9.jpg"),
        (Path("/写真/100%.jpg").as_uri(), "/写真/100%.jpg"),
        ("/a%20b.jpg", "/a%20b.jpg"),
        ("file:notes.jpg", "file:notes.jpg"),
        ("s3://bucket/a%20b.jpg", "s3://bucket/a%20b.jpg"),
    ],
)
def test_addresses_of_this_machine(given: str, path: str) -> None:
    assert files.local_path(given) == path


def test_addresses_of_other_machines_are_refused() -> None:
    with pytest.raises(DeclipError, match="a file of the machine 'server'"):
        files.local_path("file://server/photos/a.jpg")
    with pytest.raises(DeclipError, match="expected file:///FOLDER/NAME"):
        files.local_path("file://photos")


def test_what_an_address_is() -> None:
    assert all(map(files.is_address, ("s3://a/b", "file:/a", "zip://a.jpg::/b.zip")))
    assert not any(map(files.is_address, ("/a.jpg", "C:\\a.jpg", "C:/a.jpg", "c://a.jpg", "a:b.jpg")))


# --- folders --------------------------------------------------------------------------------------------------------


def tree(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def found(root: Path) -> list[str]:
    return [path.as_posix() for path in files.walk(root).files]


def test_hidden_names_are_passed_over_and_counted(tmp_path: Path) -> None:
    tree(tmp_path, "b.jpg", "a/c.txt", "._b.jpg", ".thumbs/b.jpg")
    tree(tmp_path, "__MACOSX/a/._b.jpg", "a/@eaDir/c.jpg", "$Recycle.Bin/x")
    assert found(tmp_path) == ["a/c.txt", "b.jpg"]
    assert files.walk(tmp_path).skipped == Skipped(hidden=5)
    assert found(tmp_path / ".thumbs") == ["b.jpg"]  # given by name


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    tree(tmp_path, "store/s.jpg", "data/z/b.jpg", "data/y/a.jpg")
    (tmp_path / "data" / "train").symlink_to("../store")
    (tmp_path / "store" / "more").symlink_to("../data/y")
    (tmp_path / "data" / "y" / "up").symlink_to("..")
    (tmp_path / "data" / "a").symlink_to("z")  # sorts before the real name, which is the one that is taken
    (tmp_path / "data" / "self").symlink_to("self")
    assert found(tmp_path / "data") == ["self", "train/s.jpg", "y/a.jpg", "z/b.jpg"]
    assert files.walk(tmp_path / "data").skipped == Skipped(links=3)


def test_pipes_broken_links_and_folders_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to("gone")
    assert found(tmp_path) == ["broken.jpg"]
    assert files.walk(tmp_path).skipped == Skipped(others=1)
    walk = files.walk(tmp_path / "gone")
    assert walk.files == [] and walk.skipped == Skipped(folders=1)
    assert [type(error) for error in walk.unreadable] == [FileNotFoundError]


def test_what_was_skipped_in_words() -> None:
    assert str(Skipped()) == "0 other files"
    assert str(Skipped(others=1, hidden=2, outputs=3)) == "1 other file, 2 hidden names, 3 maps of declip's"
    both = Skipped(folders=1).plus(Skipped(links=2))
    assert str(both) == "0 other files, 1 unreadable folder, 2 links to folders read already"
    assert sum(both) == 3


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    with pytest.raises(NotADirectoryError, match="a file is where a folder has to be") as caught:
        files.write_atomic(tmp_path / "photo.jpg" / "page.html", "page")
    assert caught.value.filename == str(tmp_path / "photo.jpg")
    with pytest.raises(IsADirectoryError, match="expected the name of a file"):
        files.write_atomic(tmp_path, "page")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
