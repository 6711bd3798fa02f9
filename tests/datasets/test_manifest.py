"""The manifest: what is written is read again, and what is wrong is named with its line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from declip.datasets import format_line, parse_line, read_manifest, read_records, write_manifest
from declip.errors import DatasetError
from declip.results import Sample


def _samples(folder: Path) -> list[Sample]:
    return [
        Sample(
            image=folder / "images" / "a.jpg",
            mask=folder / "masks" / "a.png",
            fake_is="black",
            label="fake",
            split="valid",
            source="lama",
            group="ärger",
        ),
        Sample(image=folder / "images" / "b.png", label="real"),
    ]


def test_lines_are_fixed(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_manifest(path, _samples(tmp_path), [{"seed": 3}, None])
    assert path.read_bytes().decode("utf-8") == (
        '{"image": "images/a.jpg", "mask": "masks/a.png", "fake_is": "black", "label": "fake", "split": "valid", '
        '"source": "lama", "group": "ärger", "provenance": {"seed": 3}}\n'
        '{"image": "images/b.png", "mask": null, "fake_is": "white", "label": "real", "split": "", "source": "", '
        '"group": ""}\n'
    )
    assert read_manifest(path) == _samples(tmp_path)
    with pytest.raises(DatasetError, match="no samples of the split 'nope'; it has "):
        read_manifest(path, "nope")
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.jsonl"]


def test_provenance_comes_back(tmp_path: Path) -> None:
    sample = _samples(tmp_path)[1]
    assert parse_line(format_line(sample, tmp_path, {"x": [1, 2]}), tmp_path, "here") == (sample, {"x": [1, 2]})
    assert parse_line(format_line(sample, tmp_path), tmp_path, "here") == (sample, {})
    write_manifest(tmp_path / "samples.jsonl", [sample, sample], [{"seed": 3}, None])
    assert read_records(tmp_path / "samples.jsonl") == [(sample, {"seed": 3}), (sample, {})]


def test_paths_follow_the_manifest(tmp_path: Path) -> None:
    sample = Sample(image=tmp_path / "photos" / "a.jpg", label="real")
    write_manifest(tmp_path / "index" / "samples.jsonl", [sample])
    record = json.loads((tmp_path / "index" / "samples.jsonl").read_text())
    assert record["image"] == "../photos/a.jpg"
    (tmp_path / "index").rename(tmp_path / "moved")
    assert read_manifest(tmp_path / "moved" / "samples.jsonl")[0].image.resolve() == sample.image.resolve()


def test_edited_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('\n{"label": "fake", "image": "a.png"}\n\n  \n{"image": "b.png", "label": "real"}')
    assert read_manifest(path) == [
        Sample(image=tmp_path / "a.png", label="fake"),
        Sample(image=tmp_path / "b.png", label="real"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "list; expected a JSON object"),
        ('{"label": "fake"}', "image missing"),
        ('{"image": "a.png"}', "label missing"),
        ('{"image": "", "label": "fake"}', "image missing or empty"),
        ('{"image": "a.png", "label": "fake", "masks": "b.png"}', "unknown keys masks"),
        ('{"image": "a.png", "label": "forged"}', "label is 'forged'"),
        ('{"image": "a.png", "label": "fake", "fake_is": "grey"}', "fake_is is 'grey'"),
        ('{"image": "a.png", "label": "fake", "split": 1}', "split is 1; expected a string"),
        ('{"image": "a.png", "label": "fake", "group": null}', "group is None; expected a string"),
        ('{"image": "a.png", "label": "fake", "provenance": "x"}', "provenance is a str"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"image": "a.png", "label": "real"}\n' + line + "\n")
    with pytest.raises(DatasetError, match=message) as caught:
        read_manifest(path)
    assert f"{path}, line 2" in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such manifest"):
        read_manifest(tmp_path / "samples.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_manifest(tmp_path / "binary")


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    samples = [Sample(image=tmp_path / os.fsdecode(b"caf\xe9.jpg"), label="real", source="写真", group=r"\udce9")]
    write_manifest(tmp_path / "samples.jsonl", samples)
    assert read_manifest(tmp_path / "samples.jsonl") == samples
    text = (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert r'"caf\udce9.jpg"' in text and "写真" in text and r'"\\udce9"' in text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_manifests_that_windows_tools_saved(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(
        '{"label": "fake", "image": "写真.png"}\r\n{"label": "real", "image": "b.png"}\r\n'.encode(encoding)
    )
    assert [sample.image.name for sample in read_manifest(path)] == ["写真.png", "b.png"]


def test_one_provenance_per_sample(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="1 provenances for 2 samples"):
        write_manifest(tmp_path / "samples.jsonl", _samples(tmp_path), [{}])
    assert not (tmp_path / "samples.jsonl").exists()


def test_addresses_of_this_machine_are_paths(tmp_path: Path) -> None:
    picture = tmp_path / "my photos" / "a.jpg"
    line = json.dumps({"image": picture.as_uri(), "label": "real"})
    (tmp_path / "samples.jsonl").write_text(line + "\n", encoding="utf-8")
    (sample,) = read_manifest(tmp_path / "samples.jsonl")
    assert sample.image == picture
