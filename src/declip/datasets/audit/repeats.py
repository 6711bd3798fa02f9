"""Pictures that are there more than once, and what contradicts itself between samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from declip.datasets.audit.facts import HASH_SIDE, Facts, photo_of, thumb_of
from declip.datasets.audit.report import Finding, Kind, make_finding
from declip.results import Sample

__all__ = ["components", "duplicates", "label_conflicts", "quoted", "split_groups", "swapped_labels"]

# Hashes that differ in at most 15 of 256 bits agree in one of 16 bands of 16 bits. Thumbnails must agree to this many
# levels on average.
HASH_BITS, BAND_BYTES, THUMB_LEVELS = 15, 2, 8.0


Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


def swapped_labels(samples: Sequence[Sample], facts: Sequence[Facts]) -> list[Finding]:
    """A real sample with a mask and a fake without, the only ones of their group and size: their labels are swapped."""
    masked: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    bare: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    for i, (sample, one) in enumerate(zip(samples, facts, strict=True)):
        if not sample.group or one.picture is None or one.problem is not None:
            continue
        marks = one.mask is not None and one.mask.area > 0
        if marks == (sample.label == "real"):
            (masked if marks else bare)[sample.group, one.picture.size].append(i)
    text = "the first is labelled real and has a mask, the second fake and has none: their labels are swapped"
    return [
        make_finding("swapped-labels", "error", samples, (found[0], bare[key][0]), text)
        for key, found in masked.items()
        if len(found) == 1 and len(bare.get(key, ())) == 1
    ]


def label_conflicts(samples: Sequence[Sample], facts: Sequence[Facts]) -> list[Finding]:
    """The same pixels with both labels."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for i, one in enumerate(facts):
        if one.picture is not None:
            same[one.picture.digest].append(i)
    text = "the same pixels, once labelled real and once fake"
    return [
        make_finding("label-conflict", "error", samples, found, text)
        for found in same.values()
        if len({samples[i].label for i in found}) > 1
    ]


def duplicates(samples: Sequence[Sample], facts: Sequence[Facts]) -> list[Finding]:
    """One finding for every set of pictures that are the same, or nearly, and do not all belong to one group."""
    exact: dict[bytes, list[int]] = defaultdict(list)
    hashed: dict[bytes, list[int]] = defaultdict(list)
    for i, one in enumerate(facts):
        if one.picture is not None:
            exact[one.picture.digest].append(i)
            if one.picture.hash is not None:
                hashed[one.picture.hash].append(i)
    edges = [(found[0], i) for found in exact.values() for i in found[1:]]
    links = [(found[0], i) for found in hashed.values() for i in found[1:]]
    firsts = [found[0] for found in hashed.values()]
    codes = np.array([np.frombuffer(code, dtype=np.uint8) for code in hashed]).reshape(-1, HASH_SIDE**2 // 8)
    links += [(firsts[a], firsts[b]) for a, b in _close(codes)]
    edges += [(a, b) for a, b in links if np.abs(thumb_of(facts[a]) - thumb_of(facts[b])).mean() <= THUMB_LEVELS]
    findings = []
    for found in components(len(samples), edges):
        if len({photo_of(samples, i) for i in found}) == 1:
            continue
        kind: Kind = "duplicate" if _shared_by_groups(samples, facts, found) else "near-duplicate"
        what = "the same picture" if kind == "duplicate" else "nearly the same picture"
        splits = sorted({samples[i].split for i in found})
        if len(splits) > 1:
            text = f"{what} {len(found)} times, across the splits {quoted(splits)}"
            findings.append(make_finding(kind, "error", samples, found, text))
        else:
            text = f"{what} {len(found)} times in one split, not in one group"
            findings.append(make_finding(kind, "warning", samples, found, text))
    return findings


def _shared_by_groups(samples: Sequence[Sample], facts: Sequence[Facts], found: Sequence[int]) -> bool:
    """Whether the very same pixels are in more than one group."""
    groups: dict[bytes, set[str | int]] = defaultdict(set)
    for i in found:
        picture = facts[i].picture
        if picture is not None:
            groups[picture.digest].add(photo_of(samples, i))
    return any(len(owners) > 1 for owners in groups.values())


def quoted(splits: Sequence[str]) -> str:
    """Names of splits, as people write them."""
    return " and ".join(split or "(none)" for split in splits)


def _close(codes: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs of rows (hashes of 32 bytes, all different) that differ in at most HASH_BITS bits.

    Fewer differing bits than bands: at least one band is the same, so only rows that share one are compared.
    """
    pairs: list[NDArray[np.int64]] = []
    if len(codes) < 2:
        return []
    bits = codes.shape[1] * 8
    for start in range(0, codes.shape[1], BAND_BYTES):
        band = codes[:, start : start + BAND_BYTES].astype(np.int64) @ (256 ** np.arange(BAND_BYTES))
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order], append=-1)) + 1
        for begin, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            if end - begin < 2:
                continue
            rows = order[begin:end]
            signs = np.unpackbits(codes[rows], axis=1).astype(np.float32) * 2 - 1
            for top in range(0, len(rows), 1024):  # a band that all share must not fill the memory
                agreement = signs[top : top + 1024] @ signs.T  # bits − 2 × the bits that differ
                first, second = np.nonzero(agreement >= bits - 2 * HASH_BITS)
                upper = first + top < second
                pairs.append(np.stack([rows[first[upper] + top], rows[second[upper]]], axis=1))
    if not pairs:
        return []
    unique = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return [(int(a), int(b)) for a, b in unique]


def components(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The sets of more than one node that the edges connect, each in order."""
    if not edges:
        return []
    rows, columns = np.array(edges).T
    graph = sparse.coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    _, labels = sparse.csgraph.connected_components(graph, directed=False)
    nodes: dict[int, list[int]] = defaultdict(list)
    for node in sorted({node for edge in edges for node in edge}):
        nodes[int(labels[node])].append(node)
    return list(nodes.values())


def split_groups(samples: Sequence[Sample]) -> list[Finding]:
    """Groups that are in several splits."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        if sample.group:
            members[sample.group].append(i)
    findings = []
    for group, found in members.items():
        splits = sorted({samples[i].split for i in found})
        if len(splits) > 1:
            text = f"the group {group!r} is in the splits {quoted(splits)}"
            findings.append(make_finding("split-group", "error", samples, found, text))
    return findings
