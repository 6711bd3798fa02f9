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


def signed(
    claims: Mapping[str, Any], *, kind: str = "JPEG", signer: str = "A signer", address: str | None = None
) -> bytes:
    """A small picture with a manifest; signer: the organisation in the certificate, which nobody trusts.

    address: the file only names it, and holds no manifest.
    """
    import c2pa

    source, target = io.BytesIO(), io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(source, kind)
    source.seek(0)
    builder = c2pa.Builder(json.dumps(claims))
    if address is not None:
        builder.set_no_embed()
        builder.set_remote_url(address)
    builder.sign(_signer(signer), f"image/{kind.lower()}", source, target)
    return target.getvalue()


def _signer(organisation: str) -> Any:
    import c2pa
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    # A certificate that signs itself is refused, so there is one above it.
    chain = _certificate(organisation, leaf, root, authority=False) + _certificate("Root", root, root, authority=True)
    key = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, key, None))


def _certificate(organisation: str, key: Any, issuer_key: Any, *, authority: bool) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
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
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(organisation))
        .issuer_name(name("Root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
