"""What a process may use, by control groups as Linux shows them; and what is made anew in a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from declip import process
from declip.errors import DeclipError
from declip.process import PerProcess, check_process, cores, cpu_quota, ending

# --- cores ----------------------------------------------------------------------------------------------------------

VERSION_2 = "35 30 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
VERSION_1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
V1 = "sys/fs/cgroup/cpu,cpuacct"
GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("group", "mounts", "limits", "expected"),
    [
        ("0::/", VERSION_2, {"": "50000 100000"}, 0.5),
        ("0::/", VERSION_2, {"": "max 100000"}, None),
        ("0::/", VERSION_2, {}, None),  # the machine's own top has no limit
        ("0::/a/b", VERSION_2, {"a/b": "250000 100000"}, 2.5),
        # A pod's limit is that of a group around the container's.
        ("0::/pod/c", VERSION_2, {"pod": "150000 100000", "pod/c": "max 100000"}, 1.5),
        ("0::/pod/c", VERSION_2, {"pod": "800000 100000", "pod/c": "100000 50000"}, 2.0),
        # Another one's group is not ours.
        ("0::/a", VERSION_2, {"b": "50000 100000"}, None),
        # A container that sees its own group as the top, under the name that the host has for it.
        ("0::/docker/12ab", VERSION_2.replace(" / /sys", " /docker/12ab /sys"), {"": "300000 100000"}, 3.0),
        ("0::/../../c", VERSION_2, {"": "100000 100000"}, 1.0),
        ("0::/", VERSION_2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040own"), {"my own": "70000 10000"}, 7.0),
        ("0::/", VERSION_2, {"": "nonsense"}, None),
        ("0::/", VERSION_2, {"": "100000 0"}, None),
        ("garbage", "garbage", {}, None),
        ("4:cpuset:/x\n3:cpu,cpuacct:/docker/1\n0::/", VERSION_1, {"docker/1": "150000 100000"}, 1.5),
        ("3:cpu,cpuacct:/docker/1", VERSION_1, {"docker/1": "-1 100000"}, None),
    ],
)
def test_the_quota_is_that_of_the_own_group_and_those_around_it(
    tmp_path: Path, group: str, mounts: str, limits: dict[str, str], expected: float | None
) -> None:
    files = {"proc/self/cgroup": group, "proc/self/mountinfo": mounts}
    for folder, limit in limits.items():
        if mounts == VERSION_1:
            quota, period = limit.split()
            files |= {f"{V1}/{folder}/cpu.cfs_quota_us": quota, f"{V1}/{folder}/cpu.cfs_period_us": period}
        else:
            files[f"{GROUPS}/{folder}/cpu.max"] = limit
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    assert cpu_quota(tmp_path) == expected


def test_no_control_groups_are_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None  # macOS and Windows have no /proc


@pytest.mark.parametrize(
    ("quota", "bound", "expected"), [(None, 8, 8), (0.1, 8, 1), (1.5, 8, 2), (2.0, 8, 2), (64.0, 8, 8), (3.0, 1, 1)]
)
def test_cores_are_the_quota_in_whole_ones_where_it_is_less(
    quota: float | None, bound: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)), raising=False)
    assert cores() == expected


# --- forks ----------------------------------------------------------------------------------------------------------


def forked(code: str) -> str:
    """What a script prints; in it, `in_child(job)` runs job in a fork, which ends as Python does, and waits for it."""
    head = """
import os, signal, sys, threading
from declip.process import *

def in_child(job):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that hangs is killed, and its status is not 0
        print("child", job(), flush=True)
        sys.exit(0)
    print("status", os.waitpid(child, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_made_once_and_when_it_is_asked_for() -> None:
    made: list[int] = []
    own = PerProcess(lambda: made.append(1) or object())
    assert made == []
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(own())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and len(found) == 8 and set(map(id, found)) == {id(own())}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_makes_its_own_pool_and_lock() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
pool, lock = PerProcess(lambda: ThreadPoolExecutor(2)), PerProcess(threading.Lock)
assert pool().submit(lambda: 6 * 7).result() == 42
lock().acquire()  # as if by another thread, which the fork lacks
first = lock()

def job():
    with lock():
        return pool().submit(lambda: 6 * 7).result(), lock() is first

in_child(job)
print("parent", lock() is first, pool().submit(lambda: 6 * 7).result())
"""
    assert forked(code).splitlines() == ["child (42, False)", "status 0", "parent True 42"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_the_parent_made_is_not_taken_down_in_a_fork() -> None:
    """It would wait for its threads; ONNX Runtime's did, even where the fork never used it."""
    code = """
class Thing:
    def __del__(self):
        print("taken down in", "the parent" if os.getpid() == parent else "a fork", flush=True)

parent, own = os.getpid(), PerProcess(Thing)
own()
in_child(lambda: "ends")
del own
"""
    assert forked(code).splitlines() == ["child ends", "status 0", "taken down in the parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_end_what_its_parent_began() -> None:
    code = """
def began():
    with ending("it", lambda it: print("ended", it, flush=True)):
        yield 1

running = began()
next(running)
in_child(running.close)
running.close()
"""
    assert forked(code).splitlines() == ["child None", "status 0", "ended it"]


def test_another_process_is_told_what_to_do() -> None:
    check_process(os.getpid(), "this")
    with pytest.raises(DeclipError, match=r"this began in process -1 and cannot go on in its fork .*: begin anew here"):
        check_process(-1, "this")
    with ending([1], list.clear) as made:
        assert made == [1]
    assert made == []
