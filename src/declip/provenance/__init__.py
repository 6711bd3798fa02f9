"""What a file says about how it was made: content credentials (C2PA), XMP, and texts that generators leave.

    found = provenance.read(read_photo("photo.jpg"))
    found.state      # "intact"
    found.headline   # one sentence for the top of a page, or None

Pixels are not looked at, and nothing is fetched from a network. `marks` finds the blocks in the file, `credentials`
reads and judges the content credentials, and `sentences` puts the result into words (`words.toml`). Only a hash that
does not match is called a change.

Files may be hostile. Names inside a sentence are cut and quoted, and their unprintable characters become codes; the
values of `fields` are as they are in the file, and whoever prints them must escape them. XMP is never parsed.
"""

from __future__ import annotations

from declip.provenance.credentials import Credentials, read_credentials
from declip.provenance.marks import find_marks, unsigned_statements
from declip.provenance.result import Field, Generator, Provenance, Reason, State
from declip.provenance.sentences import describe
from declip.results import Photo, check_type

__all__ = ["Field", "Generator", "Provenance", "Reason", "State", "read"]


def read(photo: Photo, *, anchors: str | None = None) -> Provenance:
    """Read what a photo's file says about how it was made. A photo without a file says nothing.

    anchors: certificates (PEM) of the authorities whose signers count as trusted; without them, no signer does.

    A file without marks costs a walk over its blocks (GIF, AVIF and HEIC: a search of its bytes). Damaged blocks do
    not raise an error.
    """
    check_type(photo, Photo, "declip.read_photo('photo.jpg')")
    marks = find_marks(photo.data)
    if marks.manifest:
        credentials = read_credentials(photo.data, marks.mime, anchors)
    else:
        credentials = Credentials("elsewhere" if marks.address else "none")
    return describe(credentials, tuple(unsigned_statements(marks)))
