"""One photo in a fresh process: what `speed.py` starts to time the way from nothing to the first mask.

    python bench/cold.py exact FILE PHOTO      declip.load(FILE)(PHOTO); FILE "mini" is the embedded model
    python bench/cold.py official FILE PHOTO   the official way; FILE is a pickle of its tensors

Prints the highest memory of the process in MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from linux import resident_megabytes


def main() -> None:
    """Localize, print."""
    way, file, photo = sys.argv[1:]
    if way == "official":
        official(Path(file), Path(photo))
    else:
        import declip

        options = {} if way == "exact" else {"precision": way}
        declip.load(None if file == "mini" else file, **options)(photo).mask.any()
    print(resident_megabytes("VmHWM"))


def official(file: Path, photo: Path) -> None:
    """The network of MAIN: its tensors read from a pickle, one photo, its mask."""
    import torch
    from networks import MAIN, empty_official

    from declip.images.read import read_photo
    from declip.images.tensors import resize_scores, to_input, to_scores

    spec, net = empty_official(MAIN)
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), assign=True)
    read = read_photo(photo)
    with torch.no_grad():
        logits = net(torch.from_numpy(to_input(read.pixels, spec)[None]))
    (resize_scores(to_scores(logits[0].numpy()), read.size) > 0.5).any()


if __name__ == "__main__":
    main()
