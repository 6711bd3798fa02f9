"""Make pictures with content credentials, signed by a certificate of one's own. Needs c2pa-python."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype"


def actions(*described: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return a manifest of these actions."""
    assertion = {"label": "c2pa.actions.v2", "data": {"actions": list(described)}}
    return {"claim_generator_info": [{"name": "Program"}], "assertions": [assertion], **more}


def created(source: str, name: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the action of creating a picture from this digital source type."""
    agent = {} if name is None else {"softwareAgent": {"name": name, **more}}
    return {"action": "c2pa.created", "digitalSourceType": f"{SOURCES}/{source}", **agent}


def manifest() -> dict[str, Any]:
    """Return a manifest of a picture taken by one program and edited by another, with a place nobody asked for."""
    edited = {"action": "c2pa.edited", "softwareAgent": {"name": "Editor"}, "when": "2026-01-02T03:04:05Z"}
    info = [{"name": "Camera", "version": "1.0"}]
    made = actions(created("digitalCapture", "Camera", version="2"), edited, claim_generator_info=info)
    exif = {"@context": {"exif": "http://ns.adobe.com/exif/1.0/"}, "exif:GPSLatitude": "48,51.4935N"}
    made["assertions"].append({"label": "stds.exif", "data": exif})
    return made | {"title": "48.8582 N.jpg"}


def generated(source: str = "trainedAlgorithmicMedia", name: str = "Paint 3") -> dict[str, Any]:
    """Return a manifest of a picture that a program created."""
    return actions(created(source, name))


@cache
def chain(organisation: str) -> tuple[Any, str]:
    """Return (a signer of this name, the certificate of the authority above it as PEM); nobody trusts it unasked."""
    import c2pa

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("Root", root_key, root_key)
    leaf = _certificate(organisation, key, root_key)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return c2pa.C2paSignerInfo(b"es256", leaf + root, private, None), root.decode()


def signed(
    claims: Mapping[str, Any],
    *,
    kind: str = "JPEG",
    signer: str = "The News",
    address: str | None = None,
    parts: Mapping[str, bytes] | None = None,
    **saving: Any,
) -> bytes:
    """Return a small picture with a manifest.

    address: the file only names it, and holds no manifest. parts: JPEGs that went into the picture, by their
    relationship ("parentOf", "componentOf", "inputTo"). saving: options of Pillow's.
    """
    import c2pa

    source, target = io.BytesIO(), io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(source, kind, **saving)
    source.seek(0)
    # Without a thumbnail the manifest is small, and fits into one segment of a JPEG.
    context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
    builder = c2pa.Builder(json.dumps(claims), context=context)
    if address is not None:
        builder.set_no_embed()
        builder.set_remote_url(address)
    for relationship, data in (parts or {}).items():
        described = json.dumps({"title": "part", "relationship": relationship, "label": relationship})
        builder.add_ingredient(described, "image/jpeg", io.BytesIO(data))
    builder.sign(c2pa.Signer.from_info(chain(signer)[0]), f"image/{kind.lower()}", source, target)
    return target.getvalue()


def _certificate(organisation: str, key: Any, issuer_key: Any) -> bytes:
    """Return a certificate as PEM: of the authority if the key is the issuer's, else of a signer below it."""

    def name(of: str) -> Any:
        attributes = {NameOID.ORGANIZATION_NAME: of, NameOID.COMMON_NAME: "A key"}
        return x509.Name([x509.NameAttribute(*attribute) for attribute in attributes.items()])

    authority = key is issuer_key
    uses = dict.fromkeys(("key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False)
    uses |= {"decipher_only": False, "content_commitment": False, "crl_sign": authority, "key_cert_sign": authority}
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(name("Root"), name(organisation), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not authority, **uses), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
