"""Find pictures that are there more than once, and photos that are in several splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from scipy import sparse

from declip.datasets.audit.facts import Facts, photo_of, thumb_of
from declip.datasets.audit.report import Finding, Kind, make_finding
from declip.results import Sample

__all__ = ["close_pairs", "duplicates", "label_conflicts", "split_groups"]

# Nearly the same: at most so many of the 256 bits of the hash differ, and thumbnails differ by so many levels.
HASH_BITS, THUMB_LEVELS = 15, 8.0
# So many hashes are compared with so many others at once.
_CHUNK = 4096


def label_conflicts(samples: Sequence[Sample], facts: Sequence[Facts]) -> list[Finding]:
    """Report the same pixels with both labels."""
    text = "the same pixels, once labelled real and once fake"
    return [
        make_finding("label-conflict", "error", samples, found, text)
        for found in _same(facts, "digest").values()
        if len({samples[i].label for i in found}) > 1
    ]


def duplicates(samples: Sequence[Sample], facts: Sequence[Facts]) -> list[Finding]:
    """Report each set of pictures that are the same, or nearly, and do not all belong to one group."""
    exact = [(found[0], i) for found in _same(facts, "digest").values() for i in found[1:]]
    hashed = _same(facts, "hash")
    near = [(found[0], i) for found in hashed.values() for i in found[1:]]
    near += [(hashed[a][0], hashed[b][0]) for a, b in close_pairs(list(hashed))]
    near = [(a, b) for a, b in near if np.abs(thumb_of(facts[a]) - thumb_of(facts[b])).mean() <= THUMB_LEVELS]
    owners: dict[bytes, set[str | int]] = defaultdict(set)
    for i, one in enumerate(facts):
        if one.picture is not None:
            owners[one.picture.digest].add(photo_of(samples, i))
    findings = []
    for found in _connected(len(samples), exact + near):
        if len({photo_of(samples, i) for i in found}) == 1:
            continue
        same = any(len(owners[picture.digest]) > 1 for i in found if (picture := facts[i].picture))
        kind: Kind = "duplicate" if same else "near-duplicate"
        text = f"{'the same' if same else 'nearly the same'} picture {len(found)} times"
        splits = sorted({samples[i].split for i in found})
        if len(splits) > 1:
            text += f", across the splits {_quoted(splits)}"
            findings.append(make_finding(kind, "error", samples, found, text))
        else:
            text += " in one split, not in one group"
            findings.append(make_finding(kind, "warning", samples, found, text))
    return findings


def split_groups(samples: Sequence[Sample]) -> list[Finding]:
    """Report groups that are in several splits."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        if sample.group:
            members[sample.group].append(i)
    findings = []
    for group, found in members.items():
        splits = sorted({samples[i].split for i in found})
        if len(splits) > 1:
            text = f"the group {group!r} is in the splits {_quoted(splits)}"
            findings.append(make_finding("split-group", "error", samples, found, text))
    return findings


def close_pairs(codes: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield pairs of hashes that differ in at most HASH_BITS bits. codes: of one length, all different."""
    if not codes:
        return
    signs = (
        np.unpackbits(np.array([np.frombuffer(code, np.uint8) for code in codes]), axis=1).astype(np.float32) * 2 - 1
    )
    for top in range(0, len(codes), _CHUNK):
        for left in range(top, len(codes), _CHUNK):
            # The product is the number of bits less twice that of those that differ.
            agreement = signs[top : top + _CHUNK] @ signs[left : left + _CHUNK].T
            rows, columns = np.nonzero(agreement >= signs.shape[1] - 2 * HASH_BITS)
            pairs = zip(rows + top, columns + left, strict=True)
            yield from ((codes[int(row)], codes[int(column)]) for row, column in pairs if row < column)


def _same(facts: Sequence[Facts], key: Literal["digest", "hash"]) -> dict[bytes, list[int]]:
    """Return {digest or hash: the indices of all pictures that have it}."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for i, one in enumerate(facts):
        if one.picture is not None and (value := getattr(one.picture, key)) is not None:
            found[value].append(i)
    return found


def _connected(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the sets of more than one of `count` nodes that the edges connect, each in order."""
    if not edges:
        return []
    rows, columns = np.array(edges).T
    graph = sparse.coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    _, labels = sparse.csgraph.connected_components(graph, directed=False)
    nodes: dict[int, list[int]] = defaultdict(list)
    for node in sorted({node for edge in edges for node in edge}):
        nodes[int(labels[node])].append(node)
    return list(nodes.values())


def _quoted(splits: Sequence[str]) -> str:
    return " and ".join(split or "(none)" for split in splits)
