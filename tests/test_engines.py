"""Engines: the same numbers from ONNX Runtime and from torch, and files that are refused."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from declip.engines import OnnxEngine, TorchEngine, open_engine
from declip.errors import SpecError, WeightsError
from declip.nn import checkpoint
from declip.weights import sha256_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def batch(count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((count, 3, 64, 64), dtype=np.float32)}


def test_both_engines_compute_the_same(tiny_model: tuple[Path, Path]) -> None:
    source, exported = tiny_model
    by_torch, by_onnx = open_engine(source), open_engine(exported)
    assert isinstance(by_torch, TorchEngine)
    assert isinstance(by_onnx, OnnxEngine)
    for count in (1, 2, 5):  # exported with a batch of two
        ours, theirs = by_torch.logits(batch(count)), by_onnx.logits(batch(count))
        assert ours.shape == theirs.shape == (count, 32, 32)
        assert ours.dtype == theirs.dtype == np.float32
        assert float(np.abs(ours - theirs).max()) <= 1e-4
        assert float(ours.std()) > 0.05  # a map, not a constant


def test_an_engine_tells_what_it_runs(tiny_model: tuple[Path, Path]) -> None:
    for path in tiny_model:
        engine = open_engine(str(path))
        assert engine.spec == checkpoint.read_spec(tiny_model[0])
        assert engine.model == "tiny"
        assert engine.sha256 == sha256_of(path)


def test_a_picture_s_logits_do_not_depend_on_its_company(tiny_model: tuple[Path, Path]) -> None:
    inputs = batch(5)["image"]
    for path in tiny_model:
        engine = open_engine(path)
        together = engine.logits({"image": inputs})
        alone = np.concatenate([engine.logits({"image": inputs[i : i + 1]}) for i in range(5)])
        reverse = engine.logits({"image": inputs[::-1]})[::-1]  # negative strides, too
        assert float(np.abs(together - alone).max()) <= 1e-6 * 4
        assert float(np.abs(together - reverse).max()) <= 1e-6 * 4


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_engines_are_thread_safe(tiny_model: tuple[Path, Path], position: int) -> None:
    engine = open_engine(tiny_model[position], threads=1)
    expected = [engine.logits(batch(2, seed)) for seed in range(4)]
    found: dict[int, NDArray[np.float32]] = {}

    def work(seed: int) -> None:
        for _ in range(5):
            found[seed] = engine.logits(batch(2, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(float(np.abs(found[seed] - expected[seed]).max()) <= 1e-6 for seed in range(4))


def test_threads_are_an_argument(tiny_model: tuple[Path, Path]) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        for path in tiny_model:
            one, two = (open_engine(path, threads=n).logits(batch(2)) for n in (1, 2))
            assert float(np.abs(one - two).max()) <= 1e-5
        assert torch.get_num_threads() == 2
        TorchEngine(tiny_model[0], threads=None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_a_device_that_is_not_there_is_said(tiny_model: tuple[Path, Path], position: int) -> None:
    assert open_engine(tiny_model[position], device="cpu").logits(batch(1)).shape == (1, 32, 32)
    with pytest.raises(SpecError, match="cannot use device 'toaster'"):
        open_engine(tiny_model[position], device="toaster")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pth", r"model\.pth is a pickle; turn it into \.safetensors with `declip convert"),
        ("model.pt", r"model\.pt is a pickle"),
        ("model.bin", r"model\.bin: expected a \.onnx or \.safetensors file"),
        ("absent.onnx", r"no ONNX file at .*absent\.onnx"),
        ("absent.safetensors", r"no weight file at .*absent\.safetensors"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        open_engine(tmp_path / name)


def test_damaged_onnx_files_are_refused(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    content = tiny_model[1].read_bytes()
    path = tmp_path / "torn.onnx"
    for damaged in (b"", b"not a model", content[: len(content) // 2], content[:-20]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"torn\.onnx"):
            open_engine(path)


def test_an_onnx_file_needs_its_description(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    model = onnx.load(str(tiny_model[1]))
    spec = checkpoint.read_spec(tiny_model[0])
    path = tmp_path / "other.onnx"
    entry = next(e for e in model.metadata_props if e.key == "declip")
    entry.value = json.dumps({**dataclasses.asdict(spec), "format_version": 2})
    onnx.save_model(model, str(path))
    with pytest.raises(WeightsError, match=r"other\.onnx: format_version is 2; this release reads 1: upgrade declip"):
        open_engine(path)
    del model.metadata_props[:]
    onnx.save_model(model, str(path))
    with pytest.raises(
        WeightsError, match=r"other\.onnx has no declip model description; make it with `declip export`"
    ):
        open_engine(path)
