"""Pictures with content credentials, signed by a certificate of one's own. Needs c2pa-python."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
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


class Chain:
    """The keys and certificates of a signer, and of the authority above it, which nobody trusts unasked.

    A certificate that signs itself is refused, so there is one above it. organisation: in the signer's certificate.
    """

    def __init__(self, organisation: str = "A signer") -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self.organisation = organisation
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        now = datetime.now(UTC)
        self.days = (now - timedelta(days=1), now + timedelta(days=1))
        self.root = _certificate("Root", self.root_key, self.root_key, self.days, authority=True)
        self.leaf = _certificate(organisation, self.key, self.root_key, self.days)

    @property
    def anchors(self) -> str:
        """The authority's certificate as PEM."""
        return _pem(self.root).decode()

    def signer(self) -> Any:
        import c2pa
        from cryptography.hazmat.primitives import serialization

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


def signed_anew(data: bytes, chain: Chain, days: tuple[datetime, datetime]) -> bytes:
    """A JPEG or WebP that `chain` signed, as if its certificate had been valid from days[0] to days[1].

    c2pa does not sign with a certificate that has expired. So the certificate in the file is replaced by one of the
    same length, and the claim signed again.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    before = _der(chain.leaf)
    while len(after := _der(_certificate(chain.organisation, chain.key, chain.root_key, days))) != len(before):
        pass  # signatures are of 70 to 72 bytes
    assert data.count(before) == 1
    data = data.replace(before, after)
    cose = data.index(b"\xd2\x84\x59")  # COSE_Sign1: protected header of two bytes' length, header, nil, signature
    length = int.from_bytes(data[cose + 3 : cose + 5], "big")
    header = data[cose + 2 : cose + 5 + length]
    label = data.index(b"c2pa.claim")
    box = data.index(b"cbor", label)
    claim = data[box + 4 : box - 4 + int.from_bytes(data[box - 4 : box], "big")]
    message = b"\x84\x6aSignature1" + header + b"\x40" + b"\x59" + len(claim).to_bytes(2, "big") + claim
    pair = decode_dss_signature(chain.key.sign(message, ec.ECDSA(hashes.SHA256())))
    signature = b"".join(number.to_bytes(32, "big") for number in pair)
    end = data.index(b"\xf6\x58\x40", cose) + 3
    return data[:end] + signature + data[end + 64 :]


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)  # type: ignore[no-any-return]


def _der(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.DER)  # type: ignore[no-any-return]


def _certificate(
    organisation: str, key: Any, issuer_key: Any, days: tuple[datetime, datetime], *, authority: bool = False
) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

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
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
