"""Signed reports: what is signed, what `verify` says when something was changed, and time stamps."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from declip.cli import main as cli
from declip.errors import ImageError, SigningError
from declip.report import Report, signing, timestamp
from declip.report.verification import Verification, verify
from tests.report.conftest import DATE, localizer_of

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")
PEM = serialization.Encoding.PEM


def private_pem(key: Any, passphrase: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how))


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(scope="session")
def original(plain: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed report, its photo, and the public keys of its signer and of somebody else."""
    folder = tmp_path_factory.mktemp("signed")
    key = ed25519.Ed25519PrivateKey.generate()
    signing.save(plain, folder / "report.html", signing.Signer(key=key))
    shutil.copy(plain.photo.name, folder / "photo.jpg")
    (folder / "pub.pem").write_bytes(public_pem(key))
    (folder / "other.pem").write_bytes(public_pem(ed25519.Ed25519PrivateKey.generate()))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "signed"))


def states(found: Verification) -> dict[str, str]:
    return {check.part: check.state for check in found.checks}


def said(found: Verification, part: str) -> str:
    (says,) = (check.says for check in found.checks if check.part == part)
    return says


def test_what_is_signed(plain: Report, original: Path) -> None:
    data = (original / "report.json").read_bytes()
    made = json.loads(data)
    digests = {
        name: hashlib.sha256((original / name).read_bytes()).hexdigest() for name in ("report.html", "photo.jpg")
    }
    assert made["page"] == {"name": "report.html", "sha256": digests["report.html"]}
    assert made["photo"] == {"name": "photo.jpg", "sha256": digests["photo.jpg"]}
    assert made["model"] == {"name": plain.localizer.model, "sha256": "0123456789abcdef" * 4}
    assert made["date"] == "2026-03-04 05:06:07 UTC" and made["facts"]["verdict"] == plain.result.verdict
    mask = np.asarray(Image.open(original / made["mask"]["name"]))
    assert mask.dtype == np.uint8 and np.array_equal(mask == 255, plain.result.mask) and plain.result.mask.any()
    # The folder of the photo is nobody else's business.
    assert Path(plain.photo.name).is_absolute() and str(Path(plain.photo.name).parent) not in data.decode()
    key = serialization.load_pem_public_key((original / "pub.pem").read_bytes())
    assert isinstance(key, ed25519.Ed25519PublicKey)
    key.verify((original / "report.sig").read_bytes(), data)


def test_the_page_names_the_key(original: Path, plain: Report) -> None:
    page = (original / "report.html").read_text(encoding="utf-8")
    print_of = verify(original / "report.html").fingerprint
    assert print_of is not None and page.count(print_of) == 1 and "This line proves nothing by itself" in page
    assert "declip verify" not in plain.to_html()


def test_all_is_well(folder: Path) -> None:
    found = verify(folder / "report.html", key=folder / "pub.pem")
    good = dict.fromkeys(("signature", "key", "page", "mask", "photo"), "good")
    assert found.ok and states(found) == good | {"model": "open"}
    assert found.summary == "Signed with the key you gave, and unchanged since. Not compared: model."
    assert found.date == "2026-03-04 05:06:07 UTC"
    der = serialization.load_pem_public_key((folder / "pub.pem").read_bytes()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert found.fingerprint == hashlib.sha256(der).hexdigest()


def test_it_may_be_renamed_and_moved(folder: Path) -> None:
    for suffix in (".html", ".json", ".sig", ".mask.png"):
        (folder / f"report{suffix}").rename(folder / f"renamed{suffix}")
    assert verify(folder / "renamed.html", key=folder / "pub.pem").ok


@pytest.mark.parametrize(
    ("name", "part"), [("report.html", "page"), ("report.mask.png", "mask"), ("photo.jpg", "photo")]
)
def test_one_bit_of_a_file(folder: Path, name: str, part: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    found = verify(folder / "report.html", key=folder / "pub.pem")
    assert not found.ok and [key for key, state in states(found).items() if state == "bad"] == [part]
    assert found.summary == f"Not confirmed: {part}." and name in said(found, part)


@pytest.mark.parametrize("name", ["report.json", "report.sig"])
def test_one_bit_of_the_signature(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    at = data.index(b'"area"') + 8 if name == "report.json" else 17
    data[at] ^= 1
    (folder / name).write_bytes(data)
    found = verify(folder / "report.html", key=folder / "pub.pem")
    assert states(found) == {"signature": "bad"} and found.fingerprint is None and found.date is None
    assert "report.json and report.sig do not belong together" in said(found, "signature")


@pytest.mark.parametrize("lost", [["report.sig"], ["report.json"], ["report.json", "report.sig"]])
def test_no_signature(folder: Path, lost: list[str]) -> None:
    for name in lost:
        (folder / name).unlink()
    found = verify(folder / "report.html", key=folder / "pub.pem")
    assert not found.ok and states(found) == {"signature": "bad"}
    verb = "is" if len(lost) == 1 else "are"
    assert said(found, "signature") == f"This page has no signature: {' and '.join(lost)} {verb} not beside the page."


def test_another_key(folder: Path) -> None:
    found = verify(folder / "report.html", key=folder / "other.pem")
    assert not found.ok and states(found)["key"] == "bad" and str(found.fingerprint) in said(found, "key")
    assert "another key than the one you gave" in said(found, "key")


def test_an_unknown_key_is_not_enough(folder: Path) -> None:
    found = verify(folder / "report.html")
    assert not found.ok and states(found)["key"] == "open" and "bad" not in states(found).values()
    assert said(found, "key").startswith(
        f"Signed with a key that you did not give. Its SHA-256 fingerprint is {found.fingerprint}"
    )
    assert found.summary == "Unchanged since it was signed, but whose key signed it is not known."


def test_a_changed_report_that_is_signed_anew_has_another_key(folder: Path, plain: Report) -> None:
    forger = signing.Signer(key=ed25519.Ed25519PrivateKey.generate())
    signing.save(replace(plain, date=DATE + timedelta(days=1)), folder / "report.html", forger, force=True)
    found = verify(folder / "report.html", key=folder / "pub.pem")
    assert [part for part, state in states(found).items() if state == "bad"] == ["key"] and not found.ok
    assert found.fingerprint == forger.fingerprint


def test_what_is_not_here_was_not_compared(folder: Path) -> None:
    (folder / "photo.jpg").rename(folder / "elsewhere.jpg")
    (folder / "report.mask.png").unlink()
    found = verify(folder / "report.html", key=folder / "pub.pem")
    assert found.ok and states(found)["photo"] == states(found)["mask"] == "open"
    assert found.summary.endswith("Not compared: mask, photo, model.")
    found = verify(folder / "report.html", key=folder / "pub.pem", photo=folder / "elsewhere.jpg")
    assert states(found)["photo"] == "good"
    with pytest.raises(SigningError, match="no photo"):
        verify(folder / "report.html", photo=folder / "nowhere.jpg")


@pytest.mark.parametrize(("content", "state"), [(b"other weights", "bad"), (None, "open")])
def test_weights_beside_the_page(folder: Path, plain: Report, content: bytes | None, state: str) -> None:
    if content is not None:
        (folder / f"{plain.localizer.model}.onnx").write_bytes(content)
    assert states(verify(folder / "report.html"))["model"] == state


def resigned(folder: Path, **changed: Any) -> Path:
    """Sign a changed statement with a key of one's own, as a stranger can; the public key."""
    key = ed25519.Ed25519PrivateKey.generate()
    made = json.loads((folder / "report.json").read_bytes()) | {"key": public_pem(key).decode()} | changed
    data = json.dumps(made).encode()
    (folder / "report.json").write_bytes(data)
    (folder / "report.sig").write_bytes(key.sign(data))
    return folder / "report.html"


@pytest.mark.parametrize("name", ["", "..", "/etc/passwd", "../../x.jpg", "a\x00b", "\ud800", "x" * 5000])
def test_names_lead_nowhere_else(folder: Path, name: str) -> None:
    page = resigned(folder, photo={"name": name, "sha256": "0" * 64}, model={"name": name, "sha256": "0" * 64})
    found = states(verify(page))
    assert found["photo"] == found["model"] == "open" and found["signature"] == "good"


@pytest.mark.parametrize(
    "changed",
    [{"format": "minutes of a meeting"}, {"page": None}, {"photo": {}}, {"date": "yesterday\x1b[2J"}, {"key": "k"}],
)
def test_what_declip_does_not_sign(folder: Path, changed: dict[str, Any]) -> None:
    found = verify(resigned(folder, **changed))
    assert states(found) == {"signature": "bad"} and "is not what declip signs" in said(found, "signature")


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"format": "declip signed report 1"}'])
def test_a_statement_that_is_none(folder: Path, data: bytes) -> None:
    (folder / "report.json").write_bytes(data)
    assert states(verify(folder / "report.html")) == {"signature": "bad"}


def test_files_are_kept(folder: Path, plain: Report) -> None:
    signer = signing.Signer(key=ed25519.Ed25519PrivateKey.generate())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ImageError, match="force=True") as failed:
        signing.save(plain, folder / "report.html", signer)
    assert failed.value.kind == "exists"
    (folder / "report.html").unlink()
    with pytest.raises(ImageError, match=r"report\.mask\.png"):
        signing.save(plain, folder / "report.html", signer)
    with pytest.raises(SigningError, match=r"ends in \.html"):
        signing.save(plain, folder / "report", signer, force=True)
    with pytest.raises(ImageError, match="only a photo from a file"):
        signing.save(replace(plain, metadata=None), folder / "report.html", signer, force=True)
    del before["report.html"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_keys(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(key))
    signer = signing.read_signer(path)
    assert signer.key.private_bytes_raw() == key.private_bytes_raw()
    assert str(key.private_bytes_raw().hex()) not in repr(signer)
    path.write_bytes(private_pem(key, b"open sesame"))
    assert signing.read_signer(path, lambda: "open sesame").fingerprint == signer.fingerprint
    for passphrase, message in (("wrong", "does not open"), (None, "give its passphrase"), ("", "give its passphrase")):
        with pytest.raises(SigningError, match=message):
            signing.read_signer(path, lambda given=passphrase: given)  # type: ignore[misc]
    cases = (
        (
            private_pem(ec.generate_private_key(ec.SECP256R1())),
            r"another kind \(EC\); expected Ed25519",
        ),
        (public_pem(key), "a public key"),
        (b"hello", "no private key in PEM; make one with: openssl genpkey"),
        (b"", "no private key in PEM"),
    )
    for data, message in cases:
        path.write_bytes(data)
        with pytest.raises(SigningError, match=message):
            signing.read_signer(path)
    with pytest.raises(SigningError, match="cannot read"):
        signing.read_signer(tmp_path / "none.pem")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (private_pem(ed25519.Ed25519PrivateKey.generate()), "a private key"),
        (public_pem(ec.generate_private_key(ec.SECP256R1())), "another kind"),
        (b"hello", "no public key in PEM"),
    ],
)
def test_keys_to_check_with(folder: Path, data: bytes, message: str) -> None:
    (folder / "pub.pem").write_bytes(data)
    with pytest.raises(SigningError, match=message):
        verify(folder / "report.html", key=folder / "pub.pem")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["declip", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("declip.localize.localizer.load", lambda *_, **__: localizer_of())
    monkeypatch.setattr("declip.images.scope.why_not", lambda pixels: None)
    key, out = ed25519.Ed25519PrivateKey.generate(), folder / "new.html"
    (folder / "key.pem").write_bytes(private_pem(key, b"open sesame"))
    (folder / "pub.pem").write_bytes(public_pem(key))
    command = ("report", folder / "photo.jpg", "--out", out, "--sign", folder / "key.pem")
    monkeypatch.delenv("DECLIP_KEY_PASSPHRASE", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert run(monkeypatch, *command) == 2 and "set DECLIP_KEY_PASSPHRASE" in capsys.readouterr().err
    monkeypatch.setenv("DECLIP_KEY_PASSPHRASE", "open sesame")
    assert run(monkeypatch, *command, "--timestamp", "http://x", "--offline") == 2 and not out.exists()
    assert run(monkeypatch, *command) == 0
    fingerprint = signing.Signer(key=key).fingerprint
    assert f"SHA-256 fingerprint of the key: {fingerprint}" in capsys.readouterr().err
    assert run(monkeypatch, "verify", out, "--key", folder / "pub.pem") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("Signed with the key you gave") and [line.split()[0] for line in lines[1:6]] == ["good"] * 5
    )
    assert run(monkeypatch, "verify", out, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False and found["fingerprint"] == fingerprint and len(found["checks"]) == 6
    assert run(monkeypatch, "verify", folder / "nowhere.html") == 2


@needs_openssl
def test_openssl_agrees(folder: Path) -> None:
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "pub.pem", "-rawin"]
    command += ["-in", "report.json", "-sigfile", "report.sig"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "Verified Successfully" in done.stdout


class Authority:
    """A time-stamping authority at http://127.0.0.1, whose answers are OpenSSL's."""

    def __init__(self, folder: Path, **dates: datetime) -> None:
        self.folder, self.answer = folder, None
        folder.mkdir()
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = _certificate("Root", root_key, root_key)
        (folder / "roots.pem").write_bytes(self.root)
        (folder / "tsa.pem").write_bytes(_certificate("Clock", key, root_key, **dates))
        (folder / "key.pem").write_bytes(private_pem(key))
        (folder / "serial").write_text("01", encoding="ascii")
        (folder / "tsa.cnf").write_text(
            "[tsa]\ndefault_tsa = one\n[one]\nserial = serial\nsigner_cert = tsa.pem\nsigner_key = key.pem\n"
            "signer_digest = sha256\ndefault_policy = 1.2.3.4\ndigests = sha256\ness_cert_id_alg = sha256\n",
            encoding="ascii",
        )
        self.server = http.server.HTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.queries: list[bytes] = []

    def handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        authority = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = self.rfile.read(int(self.headers["Content-Length"]))
                authority.queries.append(query)
                assert self.headers["Content-Type"] == "application/timestamp-query"
                body = authority.reply(query) if authority.answer is None else authority.answer
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def reply(self, query: bytes) -> bytes:
        (self.folder / "query.tsq").write_bytes(query)
        command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query.tsq", "-out", "answer.tsr"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        return (self.folder / "answer.tsr").read_bytes()

    def __enter__(self) -> Authority:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def _certificate(name: str, key: Any, issuer_key: Any, **dates: datetime) -> bytes:
    """Return a certificate as PEM: of the root if the key is the issuer's, else of an authority below it."""
    root, now = key is issuer_key, datetime.now(UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, of)]) for of in ("Root", name)]
    builder = (
        x509.CertificateBuilder(*names, key.public_key(), x509.random_serial_number())
        .not_valid_before(dates.get("begin", now - timedelta(days=9)))
        .not_valid_after(dates.get("end", now + timedelta(days=9)))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
    )
    if not root:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    with Authority(tmp_path / "authority") as running:
        yield running


def stamped(report: Report, folder: Path, authority: Authority) -> Path:
    key = ed25519.Ed25519PrivateKey.generate()
    (folder / "pub.pem").write_bytes(public_pem(key))
    page = folder / "report.html"
    signing.save(report, page, signing.Signer(key=key), force=True, authority=authority.url)
    return page


@needs_openssl
def test_time_stamps(folder: Path, plain: Report, authority: Authority) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    page = stamped(plain, folder, authority)
    signature, answer = (folder / "report.sig").read_bytes(), (folder / "report.tsr").read_bytes()
    # The authority learns a hash, nothing else.
    assert len(authority.queries) == 1 and hashlib.sha256(signature).digest() in authority.queries[0]
    stamp = timestamp.read_stamp(answer, signature, timestamp.read_roots(authority.folder / "roots.pem"))
    assert stamp.fits and stamp.doubt is None and before <= stamp.date <= datetime.now(UTC)

    roots = authority.folder / "roots.pem"
    found = verify(page, key=folder / "pub.pem", roots=roots)
    assert found.ok and states(found)["time stamp"] == "good" and f"{stamp.date:%H:%M:%S}" in said(found, "time stamp")
    assert states(verify(page))["time stamp"] == "open"
    command = [
        "openssl",
        "ts",
        "-verify",
        "-data",
        folder / "report.sig",
        "-in",
        folder / "report.tsr",
        "-CAfile",
        roots,
    ]
    assert subprocess.run(command, capture_output=True).returncode == 0


@needs_openssl
def test_time_stamps_that_are_not_to_be_believed(folder: Path, plain: Report, authority: Authority) -> None:
    page, roots = stamped(plain, folder, authority), authority.folder / "roots.pem"
    other = folder / "other-roots.pem"
    root_key = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(_certificate("Root", root_key, root_key))  # of the same name
    found = verify(page, key=folder / "pub.pem", roots=other)
    assert not found.ok and "not by an authority whose certificate you gave" in said(found, "time stamp")

    answer = (folder / "report.tsr").read_bytes()
    (folder / "report.tsr").write_bytes(answer[:-9] + bytes([answer[-9] ^ 1]) + answer[-8:])  # within its signature
    assert states(verify(page, roots=roots))["time stamp"] == "bad"
    date = answer.index(b"20" + f"{datetime.now(UTC):%y%m}".encode())
    (folder / "report.tsr").write_bytes(answer[: date + 3] + b"0" + answer[date + 4 :])  # ten years earlier or so
    assert states(verify(page, roots=roots))["time stamp"] == "bad"
    (folder / "report.tsr").write_bytes(answer[:100])
    assert "is no time stamp" in said(verify(page), "time stamp")
    (folder / "report.tsr").unlink()
    found = verify(page, key=folder / "pub.pem", roots=roots)
    assert not found.ok and "There is no time stamp" in said(found, "time stamp")

    (folder / "report.tsr").write_bytes(answer)
    signing.save(plain, page, signing.Signer(key=ed25519.Ed25519PrivateKey.generate()), force=True)
    assert not (folder / "report.tsr").exists()  # it was of the signature before
    (folder / "report.tsr").write_bytes(answer)
    assert "of another signature" in said(verify(page, roots=roots), "time stamp")


@needs_openssl
def test_the_authoritys_certificate_has_to_be_valid_then(folder: Path, plain: Report, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    with Authority(tmp_path / "late", begin=now - timedelta(days=3), end=now - timedelta(days=2)) as late:
        page = stamped(plain, folder, late)
    found = verify(page, roots=late.folder / "roots.pem")
    assert states(found)["time stamp"] == "bad" and "expired" in said(found, "time stamp")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "is no time stamp"),
        (b"0\x05\x30\x03\x02\x01\x02", r"refused it \(status 2, without a reason\)"),
        (b"0\x05\x30\x03\x02\x01\x00", "is no time stamp"),
    ],
)
def test_an_authority_without_a_stamp(
    folder: Path, plain: Report, authority: Authority, answer: bytes, message: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".pem"}
    authority.answer = answer
    with pytest.raises(SigningError, match=message):
        stamped(plain, folder, authority)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".pem"} == before


@needs_openssl
def test_an_old_answer_is_refused(authority: Authority) -> None:
    authority.answer = timestamp.ask(authority.url, b"something else")
    with pytest.raises(SigningError, match="of something else"):
        timestamp.ask(authority.url, b"this")
    with pytest.raises(SigningError, match="of something else"):
        timestamp.ask(authority.url, b"something else")  # with another nonce


def test_addresses() -> None:
    for url in ("file:///etc/passwd", "ftp://x", "time.example"):
        with pytest.raises(SigningError, match="expected http"):
            timestamp.ask(url, b"this")
    with pytest.raises(SigningError, match="gave no time stamp"):
        timestamp.ask("http://127.0.0.1:9", b"this")
