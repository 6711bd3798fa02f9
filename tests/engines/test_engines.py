"""Engines: the same numbers from ONNX Runtime and from torch, and files that are refused."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from declip.engines import base, open_engine, torch_engine
from declip.engines.onnx_engine import OnnxEngine
from declip.engines.openvino_engine import OpenVinoEngine
from declip.engines.torch_engine import TorchEngine, in_torch_thread
from declip.errors import DeclipError, SpecError, WeightsError
from declip.files import sha256_of
from declip.models import probe
from declip.models.respec import check_target, with_spec
from declip.nn import devices
from declip.spec import PROBE_KEY, SPEC_KEY, Calibration
from tests.tiny import tiled_spec

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Pair: TypeAlias = tuple[Path, Path]  # the same model as .safetensors and .onnx


def batch(count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((count, 3, 64, 64), dtype=np.float32)}


def test_both_engines_compute_the_same(tiny_model: Pair) -> None:
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
    for path, engine in ((source, by_torch), (exported, by_onnx)):
        assert (engine.spec, engine.model, engine.sha256) == (tiled_spec(), "tiny", sha256_of(path))


def test_a_picture_s_logits_do_not_depend_on_its_company(tiny_model: Pair) -> None:
    inputs = batch(5)["image"]
    for path in tiny_model:
        engine = open_engine(path)
        together = engine.logits({"image": inputs})
        reverse = engine.logits({"image": inputs[::-1]})[::-1]  # negative strides, too
        assert float(np.abs(together - reverse).max()) <= 1e-6 * 4


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_engines_are_thread_safe(tiny_model: Pair, position: int) -> None:
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


def test_one_thread_computes_for_all(tiny_model: Pair) -> None:
    """A second one would have OpenMP threads of its own, and then both would wait asleep for each operator."""
    first, second = (open_engine(tiny_model[0]) for _ in range(2))
    computed: list[int] = []
    for engine in (first, second):
        assert isinstance(engine, TorchEngine)
        engine._net.register_forward_hook(lambda *_: computed.append(threading.get_ident()))  # type: ignore[attr-defined]
    engines = [first, second, first, second]
    threads = [threading.Thread(target=engine.logits, args=(batch(1),)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first.logits(batch(1))
    assert len(computed) == 5
    assert set(computed) == {in_torch_thread(threading.get_ident)} != {threading.get_ident()}


@pytest.fixture
def any_threads() -> Iterator[None]:
    """Put torch's number of threads back, which is the process' own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("any_threads")
def test_threads_are_an_argument(tiny_model: Pair) -> None:
    """A job on torch has as many as torch would use in its caller's thread."""
    for count in (2, 1, 3):
        torch.set_num_threads(count)
        assert in_torch_thread(torch.get_num_threads) == count
    for path in tiny_model:
        one, two = (open_engine(path, threads=n).logits(batch(2)) for n in (1, 2))
        assert float(np.abs(one - two).max()) <= 1e-5
    TorchEngine(tiny_model[0], threads=None)
    assert torch.get_num_threads() == in_torch_thread(torch.get_num_threads) == 2


def test_a_job_s_error_is_its_caller_s() -> None:
    with pytest.raises(ZeroDivisionError):
        in_torch_thread(lambda: 1 // 0)
    assert in_torch_thread(lambda: 6 * 7) == 42  # the thread lives on


def test_onnx_runtime_keeps_no_record_of_its_use(tiny_model: Pair, tmp_path: Path) -> None:
    """Its telemetry would leave an identifier of the machine and a queue of messages in the home folder."""
    code = f"import declip; declip.load({str(tiny_model[1])!r})"
    environment = {"HOME": str(tmp_path), "PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-B", "-c", code], env=environment, check=True)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_a_device_that_is_not_there_is_said(tiny_model: Pair, position: int) -> None:
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


def test_damaged_onnx_files_are_refused(tiny_model: Pair, tmp_path: Path) -> None:
    content = tiny_model[1].read_bytes()
    path = tmp_path / "torn.onnx"
    for damaged in (b"", b"not a model", content[: len(content) // 2], content[:-20]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"torn\.onnx"):
            open_engine(path)


def test_an_onnx_file_needs_its_description(tiny_model: Pair, tmp_path: Path) -> None:
    model = onnx.load(str(tiny_model[1]))
    spec = tiled_spec()
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


# --- another description --------------------------------------------------------------------------------------------

CALIBRATION = Calibration(
    temperature=1.7, untouched=((0.25,) * 60, (), ()), photos=(60, 0, 0), rates=(0.05,), mode="tiled"
)


def tensors(path: Path) -> dict[str, bytes]:
    """Every tensor of a weight file, with its type and shape, as bytes."""
    if path.suffix == ".onnx":
        graph = onnx.load(str(path)).graph
        return {"graph": graph.SerializeToString(deterministic=True)}
    return {
        name: str((tensor.dtype, tensor.shape)).encode() + tensor.numpy().tobytes()
        for name, tensor in safetensors.torch.load_file(path).items()
    }


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_another_description_leaves_the_weights_alone(tiny_model: Pair, tmp_path: Path, position: int) -> None:
    source = tiny_model[position]
    before = source.read_bytes()
    spec = dataclasses.replace(open_engine(source).spec, calibration=CALIBRATION)
    out = tmp_path / "new" / f"mine{source.suffix}"
    assert with_spec(source, spec, out) == out
    assert source.read_bytes() == before
    assert tensors(out) == tensors(source) and len(b"".join(tensors(out).values())) > 10_000
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    old, new = open_engine(source), open_engine(out)
    assert new.spec == spec != old.spec
    assert new.sha256 == sha256_of(out) != old.sha256
    assert np.array_equal(new.logits(batch(2)), old.logits(batch(2)))


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_a_description_is_not_written_over_a_file_unasked(tiny_model: Pair, tmp_path: Path, position: int) -> None:
    source = tiny_model[position]
    spec = open_engine(source).spec
    out = tmp_path / f"mine{source.suffix}"
    out.write_text("mine")
    with pytest.raises(DeclipError, match="exists; --force"):
        with_spec(source, spec, out)
    assert out.read_text() == "mine"
    with_spec(source, spec, out, force=True)
    changed = dataclasses.replace(spec, calibration=CALIBRATION)
    with_spec(out, changed, out, force=True)  # a file over itself
    assert open_engine(out).spec == changed and tensors(out) == tensors(source)


def test_targets_that_cannot_be_written(tiny_model: Pair, tmp_path: Path) -> None:
    source, exported = tiny_model
    with pytest.raises(WeightsError, match=r"expected a name that ends in \.onnx"):
        check_target(exported, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"expected a name that ends in \.safetensors"):
        check_target(source, tmp_path / "a.onnx")
    with pytest.raises(WeightsError, match=r"a\.pth: expected a \.onnx or \.safetensors file"):
        check_target(tmp_path / "a.pth", tmp_path / "b.pth")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(DeclipError, match="is a folder"):
        check_target(exported, tmp_path / "folder.onnx", force=True)


def test_a_damaged_source_leaves_no_file(tiny_model: Pair, tmp_path: Path) -> None:
    spec = open_engine(tiny_model[1]).spec
    for name in ("torn.onnx", "torn.safetensors"):
        torn = tmp_path / name
        torn.write_bytes(b"not a model")
        with pytest.raises(WeightsError, match="torn"):
            with_spec(torn, spec, tmp_path / f"out{torn.suffix}")
        with pytest.raises(WeightsError, match="gone"):
            with_spec(tmp_path / f"gone{torn.suffix}", spec, tmp_path / f"out{torn.suffix}")
    bare = onnx.load(str(tiny_model[1]))
    del bare.metadata_props[:]
    onnx.save_model(bare, str(tmp_path / "bare.onnx"))
    with pytest.raises(WeightsError, match="no declip model description"):
        with_spec(tmp_path / "bare.onnx", spec, tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.onnx", "torn.onnx", "torn.safetensors"]


# ── fast ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [0, 1], ids=["torch", "openvino"])
def test_fast_is_near_and_says_so(tiny_model: Pair, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind:
        pytest.importorskip("openvino")
    monkeypatch.setattr(devices, "has_bf16", lambda device: True)  # torch computes it anywhere, if slowly
    exact, fast = (open_engine(tiny_model[kind], precision=p) for p in ("exact", "fast"))
    assert type(fast) is (OpenVinoEngine if kind else TorchEngine)
    assert (fast.spec, fast.model, fast.sha256) == (exact.spec, exact.model, exact.sha256)
    for count in (1, 5):
        ours, theirs = fast.logits(batch(count)), exact.logits(batch(count))
        assert ours.shape == theirs.shape == (count, 32, 32)
        assert ours.dtype == np.float32
        if fast.precision == "exact":  # OpenVINO takes fp32 where the CPU has no bf16
            assert kind and float(np.abs(ours - theirs).max()) <= 1e-4
        drift = float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std())
        assert drift < 0.05
        assert drift > 1e-5 or fast.precision == "exact"


def test_without_bf16_fast_is_fp32_and_the_log_says_so(
    tiny_model: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In bf16, a processor that has only fp32 would take several times as long."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    fast = open_engine(tiny_model[0], precision="fast")
    assert caplog.messages == [
        f"this processor has no instructions for bf16: precision 'fast' computes {tiny_model[0].stem} in fp32"
    ]
    assert fast.precision == "exact"
    np.testing.assert_array_equal(fast.logits(batch(2)), open_engine(tiny_model[0]).logits(batch(2)))
    for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True}, raising=False)
        assert devices.has_bf16(torch.device("cpu"))
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # older torch
    assert not devices.has_bf16(torch.device("cpu"))
    assert devices.has_bf16(torch.device("cuda"))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_a_batch(tiny_model: Pair, threads: int) -> None:
    pytest.importorskip("openvino")
    inputs = batch(7)["image"]
    for precision in ("exact", "fast"):
        engine = open_engine(tiny_model[1], threads=threads, precision=precision)
        together = engine.logits({"image": inputs})
        alone = np.concatenate([engine.logits({"image": inputs[i : i + 1]}) for i in range(7)])
        np.testing.assert_array_equal(together, alone)


def test_a_fast_engine_that_drifts_is_refused(tiny_model: Pair, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = onnx.load_model(str(tiny_model[1]))
    entries = {entry.key: entry.value for entry in model.metadata_props}
    shifted = probe.unpack(entries[PROBE_KEY]) + 1
    onnx.helper.set_model_props(model, entries | {PROBE_KEY: base64.b64encode(shifted.tobytes()).decode()})
    onnx.save_model(model, str(tmp_path / "other.onnx"))
    with pytest.raises(SpecError, match=r"OpenVINO's other\.onnx computes something else here"):
        open_engine(tmp_path / "other.onnx", precision="fast")
    del entries[PROBE_KEY]
    onnx.helper.set_model_props(model, entries)
    onnx.save_model(model, str(tmp_path / "old.onnx"))
    with pytest.raises(
        WeightsError, match=r"has no probe to prove a fast engine on; make it anew with `declip export`"
    ):
        open_engine(tmp_path / "old.onnx", precision="fast")
    assert open_engine(tmp_path / "old.onnx").logits(batch(1)).shape == (1, 32, 32)


def test_no_fast_engine_where_there_is_none(tiny_model: Pair) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(SpecError, match="runs on the CPU; got device 'cuda'"):
        open_engine(tiny_model[1], device="cuda", precision="fast")


def test_openvino_sends_nothing_home(tiny_model: Pair) -> None:
    pytest.importorskip("openvino")
    code = (
        "import socket, sys\n"
        "socket.socket.connect = lambda *a: sys.exit('connected')\n"
        "from declip.engines import open_engine\n"
        f"open_engine({str(tiny_model[1])!r}, precision='fast')\n"
        "print(sys.modules['openvino_telemetry'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


def test_without_openvino_the_line_to_install_it_is_named(tiny_model: Pair) -> None:
    code = (
        "import sys\n"
        "sys.modules['openvino'] = None\n"
        "import declip\n"
        "try:\n"
        f"    declip.load({str(tiny_model[1])!r}, precision='fast')\n"
        "except declip.MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'declip[openvino]'" in done.stdout, done.stderr


# --- forks and other processes --------------------------------------------------------------------------------------

FORKED = """
import os, signal, sys
import numpy as np
from declip import engines
from declip.engines import base

def status_of_fork(job):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # one that hangs is killed
        sys.exit(0 if job() else 1)  # and so would one be that waits for its parent's threads when it ends
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def forked(code: str, *arguments: Path | str) -> str:
    """What a script prints that forks."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


ENGINE_IN_A_FORK = """
if sys.argv[2] == "large":
    base.SMALL = 0
engine = engines.open_engine(sys.argv[1], threads=2, precision=sys.argv[3])
inputs = {"image": np.random.default_rng(0).standard_normal((5, 3, 64, 64), dtype=np.float32)}
expected = engine.logits(inputs)
assert (engine._pool is None) == (sys.argv[2] == "large")
print(status_of_fork(lambda: np.array_equal(engine.logits(inputs), expected)))
print(status_of_fork(lambda: True))  # one that does not use it
print(np.array_equal(engine.logits(inputs), expected))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("size", "precision"),
    [
        ("small", "exact"),
        ("large", "exact"),
        *(pytest.param(size, "fast", marks=pytest.mark.slow) for size in ("small", "large")),
    ],
)
def test_exported_models_compute_in_a_fork(tiny_model: Pair, size: str, precision: str) -> None:
    """A small one has threads of declip's, a large one those of its session."""
    if precision == "fast":
        pytest.importorskip("openvino")
    assert forked(ENGINE_IN_A_FORK, tiny_model[1], size, precision).split() == ["0", "0", "True"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_torch_computes_in_a_fork(tiny_model: Pair) -> None:
    code = """
engine = engines.open_engine(sys.argv[1], threads=2)
inputs = {"image": np.ones((2, 3, 64, 64), np.float32)}
expected = engine.logits(inputs)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(engine.logits(inputs), expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert forked(code, tiny_model[0]).split() == ["0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_open_another_file_in_its_place(tiny_model: Pair, tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(tiny_model[1].read_bytes())
    code = """
from pathlib import Path
from declip.errors import WeightsError
engine = engines.open_engine(sys.argv[1], threads=2)
inputs = {"image": np.ones((2, 3, 64, 64), np.float32)}
engine.logits(inputs)
Path(sys.argv[1]).write_bytes(b"another")

def told():
    try:
        engine.logits(inputs)
    except WeightsError as error:
        return "was replaced since it was opened; load it anew" in str(error)

print(status_of_fork(told))
engine.logits(inputs)  # the first process has it in memory
"""
    assert forked(code, path).split() == ["0"]


@pytest.mark.parametrize("position", [0, 1], ids=["torch", "onnx"])
def test_an_engine_travels_as_its_file(tiny_model: Pair, position: int) -> None:
    engine = open_engine(tiny_model[position], threads=1, device="cpu")
    sent = pickle.dumps(engine)
    assert len(sent) < 2000
    for other in (pickle.loads(sent), copy.deepcopy(engine)):
        assert type(other) is type(engine) and other is not engine
        assert (other.spec, other.model, other.sha256) == (engine.spec, engine.model, engine.sha256)
        assert np.array_equal(other.logits(batch(3)), engine.logits(batch(3)))


def test_a_fast_engine_travels_as_one(tiny_model: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda device: True)
    engine = pickle.loads(pickle.dumps(open_engine(tiny_model[0], precision="fast")))
    assert engine.precision == "fast"
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)  # a machine that has none
    assert pickle.loads(pickle.dumps(engine)).precision == "exact"


def test_what_arrives_has_the_weights_that_were_sent(tiny_model: Pair, tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(tiny_model[1].read_bytes())
    engine = open_engine(path)
    sent = pickle.dumps(engine)
    with_spec(path, dataclasses.replace(engine.spec, calibration=CALIBRATION), path, force=True)
    with pytest.raises(WeightsError, match=f"has SHA-256 {sha256_of(path)}; what was pickled has {engine.sha256}"):
        pickle.loads(sent)
    path.unlink()
    with pytest.raises(WeightsError, match=r"there is no weight file .*mine\.onnx"):
        pickle.loads(sent)


def test_the_models_of_the_catalogue_travel_by_name(
    tiny_model: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine has them at another place."""
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path / "a"))
    name = "pscc-net-official"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.safetensors").write_bytes(tiny_model[0].read_bytes())
    sent = pickle.dumps(open_engine(tmp_path / "a" / f"{name}.safetensors", threads=1))
    assert str(tmp_path).encode() not in sent
    monkeypatch.setenv("DECLIP_CACHE", str(tmp_path / "b"))
    (tmp_path / "a" / f"{name}.safetensors").unlink()
    assert pickle.loads(sent).model == name


# --- devices --------------------------------------------------------------------------------------------------------


class FakeRuntime:
    """What `OnnxEngine` asks of ONNX Runtime, for CUDA as it is on a machine without a GPU."""

    def __init__(self, found: list[str], known: list[str], error: Exception | None = None) -> None:
        self.found, self.known, self.error = found, known, error
        self.asked: list[Any] = []
        self.SessionOptions = SimpleNamespace

    def get_available_providers(self) -> list[str]:
        return self.known

    def InferenceSession(self, content: bytes, options: Any, providers: list[Any]) -> Any:  # noqa: N802
        self.asked, self.options = providers, options
        if self.error is not None:
            raise self.error
        return SimpleNamespace(get_providers=lambda: self.found, get_modelmeta=self.about)

    def about(self) -> Any:
        return SimpleNamespace(custom_metadata_map={SPEC_KEY: tiled_spec().to_json()})


BOTH = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_a_fallback_to_the_cpu_is_an_error(
    tiny_model: Pair, monkeypatch: pytest.MonkeyPatch, device: str, number: int
) -> None:
    runtime = FakeRuntime(["CPUExecutionProvider"], BOTH)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    message = f"was asked for device '{device}' and fell back to CPUExecutionProvider.*libraries of CUDA or cuDNN"
    with pytest.raises(SpecError, match=message):
        open_engine(tiny_model[1], device=device)
    assert runtime.asked == [
        ("CUDAExecutionProvider", {"device_id": number, "use_tf32": 0}),
        "CPUExecutionProvider",
    ]
    runtime.found = BOTH
    assert open_engine(tiny_model[1], device=device).precision == "exact"


def test_a_gpu_that_is_not_there_is_no_fault_of_the_file(tiny_model: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime(BOTH, BOTH, RuntimeError("invalid device ordinal")))
    with pytest.raises(SpecError, match=r"cannot use device 'cuda:9' for .*invalid device ordinal"):
        open_engine(tiny_model[1], device="cuda:9")
    with pytest.raises(WeightsError, match="cannot be opened by ONNX Runtime: invalid device ordinal"):
        open_engine(tiny_model[1], device="cpu")


def test_a_gpu_s_engine_does_not_go_on_in_a_fork(tiny_model: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime(BOTH, BOTH))
    engine = open_engine(tiny_model[1], device="cuda")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(DeclipError, match=r"tiny on the GPU began in process .* and cannot go on in its fork -1"):
        engine.logits(batch(1))


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "cuda:3"])
def test_torch_says_what_it_cannot_use(tiny_model: Pair, device: str) -> None:
    kind = device.partition(":")[0]
    if getattr(torch, kind, torch.backends.mps).is_available():
        pytest.skip(f"this machine has {kind}")
    with pytest.raises(SpecError, match=f"torch cannot use device '{device}'"):
        open_engine(tiny_model[0], device=device)


# --- threads --------------------------------------------------------------------------------------------------------


def test_large_networks_get_the_process_own_cores(tiny_model: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself would count the machine's."""
    runtime = FakeRuntime(["CPUExecutionProvider"], ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(base, "cores", lambda: 3)
    monkeypatch.setattr(base, "SMALL", 0)
    open_engine(tiny_model[1])
    assert runtime.options.intra_op_num_threads == 3
    open_engine(tiny_model[1], threads=2)
    assert runtime.options.intra_op_num_threads == 2


@pytest.mark.usefixtures("any_threads")
def test_torch_has_no_more_threads_than_the_quota(tiny_model: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "cores", lambda: 1)
    for quota, expected in ((None, 3), (1.0, 1)):
        torch.set_num_threads(3)
        monkeypatch.setattr(torch_engine, "cpu_quota", lambda quota=quota: quota)
        open_engine(tiny_model[0])
        assert torch.get_num_threads() == expected
    open_engine(tiny_model[0], threads=2)  # who asks for it gets it
    assert torch.get_num_threads() == 2
