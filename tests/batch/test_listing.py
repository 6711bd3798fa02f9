"""Which pictures a source stands for."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from declip.batch import stores
from declip.batch.listing import find
from declip.datasets import write_manifest
from declip.errors import DatasetError, DeclipError, ImageError
from declip.files import Skipped
from declip.results import Sample

NAMES = ("b.png", "a.JPG", "sub/c.webp", "notes.txt", "a.JPG.mask.png", "x.mask.png", "sub/README")
HIDDEN = ("._b.png", "__MACOSX/b.png", "sub/.thumbs/c.webp")


@pytest.mark.parametrize("scheme", ["path", "file", "memory"])
def test_folders_and_uris_are_read_by_one_rule(scheme: str, tmp_path: Path) -> None:
    root = {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}[scheme]
    for name in (*NAMES, *HIDDEN):
        stores.write(stores.join(root, name), b"x")
    found = find(root)
    expected = [f"{tmp_path}/{name}" for name in ("a.JPG", "b.png", "sub/c.webp", "x.mask.png")]
    if scheme == "memory":
        expected = [f"memory:///{tmp_path.name}/{name}" for name in ("a.JPG", "b.png", "sub/c.webp", "x.mask.png")]
    assert found == (expected, Skipped(others=2, hidden=3, outputs=1), 0)
    assert all(stores.fetch(uri, 1) == b"x" for uri in found.uris)


def test_lists_name_files_whatever_their_extension(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.dat\n\n s3://bucket/b c.jpg \n/abs/d.jpg\nsub/../a.jpg\na.dat\n")
    found = find(str(tmp_path / "list.txt"))
    assert found == (
        [f"{tmp_path}/a.dat", "s3://bucket/b c.jpg", "/abs/d.jpg", f"{tmp_path}/sub/../a.jpg"],
        Skipped(),
        1,
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_people_and_windows_write_them(encoding: str, tmp_path: Path) -> None:
    text = (
        "# my photos\r\n写真.jpg\r\n\r\n#\r\n\"b c.jpg\"\r\n'd.jpg'\r\n#1.jpg\r\n# 2.jpg\r\n#note\r\na.jpg.mask.png\r\n"
    )
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    found = find(str(tmp_path / "list.txt"))
    assert [Path(uri).name for uri in found.uris] == ["写真.jpg", "b c.jpg", "d.jpg", "#1.jpg"]
    assert found.skipped == Skipped(outputs=1)
    (tmp_path / "list.jsonl").write_bytes('{"image": "写真.jpg"}\r\n'.encode(encoding))
    assert find(str(tmp_path / "list.jsonl")).uris == [f"{tmp_path}/写真.jpg"]


def test_lists_name_addresses_and_windows_paths(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "file:///my%20photos/a.jpg\nfile://localhost/b.jpg\nC:\\photos\\a.jpg\nC:/b.jpg\n"
    )
    # Here a Windows path is a relative one like any other; its drive is no scheme.
    windows = [f"{tmp_path}/C:\\photos\\a.jpg", f"{tmp_path}/C:/b.jpg"]
    assert find(str(tmp_path / "list.txt")).uris == ["/my photos/a.jpg", "/b.jpg", *windows]


def test_names_in_lists_need_not_be_text(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg\n")
    (tmp_path / "list.jsonl").write_bytes(rb'{"image": "caf\udce9.jpg"}')
    expected = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    for name in ("list.txt", "list.jsonl"):
        assert find(str(tmp_path / name)).uris == [str(expected)]


def test_a_manifest_is_a_list(tmp_path: Path) -> None:
    samples = [Sample(image=tmp_path / "x" / name, label="real") for name in ("b.jpg", "a.jpg")]
    write_manifest(tmp_path / "samples.jsonl", samples)
    assert find(str(tmp_path / "samples.jsonl")).uris == [str(sample.image) for sample in samples]


@pytest.mark.parametrize("column", ["image", "uri"])
def test_a_list_in_parquet_and_elsewhere(column: str, tmp_path: Path) -> None:
    table = pa.table({"other": [1, 2], column: ["s3://bucket/a.jpg", "b.jpg"]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    uri = f"memory://{tmp_path.name}/list.parquet"
    stores.write(uri, sink.getvalue().to_pybytes())
    assert find(uri).uris == ["s3://bucket/a.jpg", f"memory://{tmp_path.name}/b.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"image": "a.jpg"}\n{"img": "b.jpg"}\n', r'line 2: expected an object with "image"'),
        ("a.jsonl", b'{"image": "a.jpg"}\n\nnothing\n', "line 3: not JSON"),
        ("a.jsonl", b'{"image": 3}\n', r'line 1: expected an object with "image"'),
        ("a.txt", b"\x89PNG\r\n\0\0", "is no text"),
        ("a.txt", b"\xff\xfea", "is no text"),
        ("a.jsonl", b'{"image": "\xff.jpg"}', "is no text"),
        ("a.parquet", b"PAR?", "cannot be read as Parquet"),
    ],
)
def test_lists_that_are_none_are_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=said):
        find(str(tmp_path / name))


def test_a_parquet_file_without_the_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg"]}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="neither of the columns image and uri"):
        find(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"uri": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="uri holds 1; expected paths"):
        find(str(tmp_path / "a.parquet"))


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DeclipError, match=r"there is no picture in .*: 1 other file; expected"):
        find(str(tmp_path))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DeclipError, match=r"there is no picture in .*empty\.txt: 0 other files"):
        find(str(tmp_path / "empty.txt"))
    for gone in (tmp_path / "gone", tmp_path / "gone.txt"):
        with pytest.raises(ImageError) as caught:
            find(str(gone))
        assert caught.value.kind == "missing"
