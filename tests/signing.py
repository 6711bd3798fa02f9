"""Pictures with content credentials, signed by a certificate of one's own. Needs c2pa-python."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype"


def manifest(maker: str = "Camera", editor: str = "Editor") -> dict[str, Any]:
    """Taken by one program and edited by another; with a place that nobody asked for."""
    actions = [
        {
            "action": "c2pa.created",
            "digitalSourceType": f"{SOURCES}/digitalCapture",
            "softwareAgent": {"name": maker, "version": "2"},
        },
        {"action": "c2pa.edited", "softwareAgent": {"name": editor}, "when": "2026-01-02T03:04:05Z"},
    ]
    exif = {"@context": {"exif": "http://ns.adobe.com/exif/1.0/"}, "exif:GPSLatitude": "48,51.4935N"}
    return {
        "claim_generator_info": [{"name": maker, "version": "1.0"}],
        "title": "48.8582 N.jpg",
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": "stds.exif", "data": exif},
        ],
    }


def actions(*described: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of these actions alone."""
    return {
        "claim_generator_info": [{"name": "Program"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": list(described)}}],
    }


def generated(source: str = "trainedAlgorithmicMedia", name: str = "Paint 3") -> dict[str, Any]:
    """Created by a program, with this digital source type."""
    return actions(
        {"action": "c2pa.created", "digitalSourceType": f"{SOURCES}/{source}", "softwareAgent": {"name": name}}
    )


class Chain:
    """The keys and certificates of a signer, and of the authority above it, which nobody trusts unasked.

    A certificate that signs itself is refused, so there is one above it. organisation: in the signer's certificate.
    """

    def __init__(self, organisation: str = "A signer") -> None:
        self.organisation = organisation
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        now = datetime.now(UTC)
        years = (now - timedelta(days=1000), now + timedelta(days=1000))
        self.root = _certificate("Root", self.root_key, self.root_key, years, authority=True)
        self.leaf = _certificate(organisation, self.key, self.root_key, (now - timedelta(days=1), years[1]))
        self.clock = _certificate("Clock", self.key, self.root_key, years, purpose="TIME_STAMPING")

    @property
    def anchors(self) -> str:
        """The authority's certificate as PEM."""
        return _pem(self.root).decode()

    def signer(self) -> Any:
        import c2pa

        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", _pem(self.leaf) + _pem(self.root), key, None))


def signed(
    claims: Mapping[str, Any],
    *,
    kind: str = "JPEG",
    chain: Chain | None = None,
    address: str | None = None,
    parts: Mapping[str, bytes] | None = None,
    **saving: Any,
) -> bytes:
    """A small picture with a manifest.

    address: the file only names it, and holds no manifest. parts: JPEGs that went into the picture, by their
    relationship ("parentOf", "componentOf", "inputTo"). saving: options of Pillow's.
    """
    import c2pa

    source, target = io.BytesIO(), io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(source, kind, **saving)
    source.seek(0)
    # Without a thumbnail the manifest is small, and stands in one segment of a JPEG.
    context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
    builder = c2pa.Builder(json.dumps(claims), context=context)
    if address is not None:
        builder.set_no_embed()
        builder.set_remote_url(address)
    for relationship, data in (parts or {}).items():
        described = json.dumps({"title": "part", "relationship": relationship, "label": relationship})
        builder.add_ingredient(described, "image/jpeg", io.BytesIO(data))
    builder.sign((chain or Chain()).signer(), f"image/{kind.lower()}", source, target)
    return target.getvalue()


def signed_anew(data: bytes, chain: Chain, days: tuple[datetime, datetime], stamped: datetime | None = None) -> bytes:
    """A JPEG that `chain` signed, as if its certificate had been valid from days[0] to days[1].

    stamped: the time that a time stamp gives, by a clock under the chain's authority.

    c2pa does not sign with a certificate that has expired. So the certificate in the file is replaced by one of the
    same length, and the claim signed again; the time stamp takes the place of padding.
    """
    before = _der(chain.leaf)
    while len(after := _der(_certificate(chain.organisation, chain.key, chain.root_key, days))) != len(before):
        pass  # signatures are of 70 to 72 bytes
    assert data.count(before) == 1
    data = data.replace(before, after)
    # COSE_Sign1: protected header, {"pad": zeros}, nil, signature of 64 bytes; lengths of two bytes.
    cose = data.index(b"\xd2\x84\x59") + 2
    header = data[cose : cose + 3 + int.from_bytes(data[cose + 1 : cose + 3], "big")]
    loose = cose + len(header)
    end = loose + 8 + int.from_bytes(data[loose + 6 : loose + 8], "big")
    box = data.index(b"cbor", data.index(b"c2pa.claim"))
    claim = data[box + 4 : box - 4 + int.from_bytes(data[box - 4 : box], "big")]
    message = b"\x84\x6aSignature1" + header + b"\x40" + _bstr(claim)
    pair = decode_dss_signature(chain.key.sign(message, ec.ECDSA(hashes.SHA256())))
    signature = b"".join(number.to_bytes(32, "big") for number in pair)
    padding = data[loose:end]
    if stamped is not None:
        token = _time_stamp(b"\x84\x70CounterSignature" + header + b"\x40" + _bstr(_bstr(signature)), stamped, chain)
        put = b"\xa2\x67sigTst2\xa1\x69tstTokens\x81\xa1\x63val" + _bstr(token) + b"\x63pad\x58"
        left = len(padding) - len(put) - 1
        padding = put + bytes([left]) + bytes(left)
    return data[:loose] + padding + data[end : end + 3] + signature + data[end + 67 :]


def _bstr(content: bytes) -> bytes:
    """A byte string of CBOR."""
    length = len(content)
    return (b"\x58" + bytes([length]) if length < 256 else b"\x59" + length.to_bytes(2, "big")) + content


def _time_stamp(message: bytes, time: datetime, chain: Chain) -> bytes:
    """A time stamp by RFC 3161: signed data of CMS that hold the hash of the message, and the time."""
    info = _tlv(
        0x30,
        b"\x02\x01\x01" + _oid("1.2.3"),
        _tlv(0x30, _SHA256, _tlv(0x04, hashlib.sha256(message).digest())),
        b"\x02\x01\x05" + _tlv(0x18, time.strftime("%Y%m%d%H%M%SZ").encode()),
    )
    kind = _oid("1.2.840.113549.1.9.16.1.4")
    attributes = _tlv(0x30, _oid("1.2.840.113549.1.9.3"), _tlv(0x31, kind)) + _tlv(
        0x30, _oid("1.2.840.113549.1.9.4"), _tlv(0x31, _tlv(0x04, hashlib.sha256(info).digest()))
    )
    signature = chain.key.sign(_tlv(0x31, attributes), ec.ECDSA(hashes.SHA256()))
    serial = chain.clock.serial_number
    issuer = _tlv(0x30, chain.clock.issuer.public_bytes(), _tlv(0x02, serial.to_bytes(serial.bit_length() // 8 + 1)))
    ecdsa = _tlv(0x30, _oid("1.2.840.10045.4.3.2"))
    signer = _tlv(0x30, b"\x02\x01\x01", issuer, _SHA256, _tlv(0xA0, attributes), ecdsa, _tlv(0x04, signature))
    content = _tlv(0x30, kind, _tlv(0xA0, _tlv(0x04, info)))
    certificates = _tlv(0xA0, _der(chain.clock))
    data = _tlv(0x30, b"\x02\x01\x03", _tlv(0x31, _SHA256), content, certificates, _tlv(0x31, signer))
    return _tlv(0x30, _oid("1.2.840.113549.1.7.2"), _tlv(0xA0, data))


def _tlv(tag: int, *parts: bytes) -> bytes:
    """Tag, length, value of DER."""
    content = b"".join(parts)
    length = len(content)
    size = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag]) + (bytes([length]) if length < 128 else bytes([0x80 | len(size)]) + size) + content


def _oid(dotted: str) -> bytes:
    first, second, *numbers = map(int, dotted.split("."))
    content = [40 * first + second]
    for number in numbers:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.insert(0, 0x80 | number & 0x7F)
        content += digits
    return _tlv(0x06, bytes(content))


_SHA256 = _tlv(0x30, _oid("2.16.840.1.101.3.4.2.1"))


def _pem(certificate: Any) -> bytes:

    return certificate.public_bytes(serialization.Encoding.PEM)  # type: ignore[no-any-return]


def _der(certificate: Any) -> bytes:

    return certificate.public_bytes(serialization.Encoding.DER)  # type: ignore[no-any-return]


def _certificate(
    organisation: str,
    key: Any,
    issuer_key: Any,
    days: tuple[datetime, datetime],
    *,
    authority: bool = False,
    purpose: str = "EMAIL_PROTECTION",
) -> Any:

    def name(of: str) -> Any:
        return x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, of), x509.NameAttribute(NameOID.COMMON_NAME, "A key")]
        )

    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(organisation))
        .issuer_name(name("Root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(days[0])
        .not_valid_after(days[1])
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([getattr(ExtendedKeyUsageOID, purpose)]), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())
