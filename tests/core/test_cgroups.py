"""The limits of containers and batch jobs, from made-up files of Linux's control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttransfer.core import cgroups, machine
from fasttransfer.study import environment

MIB = 1 << 20
UNIFIED = "30 24 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
SEPARATE = """
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
36 31 0:33 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
"""


def lay_out(root: Path, own: str, mounts: str, files: dict[str, str]) -> Path:
    """Write the files of /proc and /sys/fs/cgroup under `root`."""
    everything = {"proc/self/cgroup": own, "proc/self/mountinfo": mounts}
    everything |= {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in everything.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_version_2_leaves_the_least_along_the_path_and_counts_inactive_page_cache_as_free(tmp_path: Path) -> None:
    files = {
        "job.slice/memory.max": f"{1000 * MIB}\n",
        "job.slice/memory.current": f"{900 * MIB}\n",
        "job.slice/memory.stat": f"anon {500 * MIB}\ninactive_file {300 * MIB}\n",
        "job.slice/cpu.max": "250000 100000\n",
        "job.slice/step/memory.max": "max\n",
        "job.slice/step/memory.current": f"{800 * MIB}\n",
        "job.slice/step/cpu.max": "max 100000\n",
    }
    root = lay_out(tmp_path, "0::/job.slice/step\n", UNIFIED.format(root="/"), files)
    assert cgroups.free_memory(root) == 400 * MIB
    assert cgroups.memory_limit(root) == 1000 * MIB
    assert cgroups.cores(root) == 2


def test_version_1_has_its_limits_in_a_hierarchy_per_controller(tmp_path: Path) -> None:
    """As docker shows them: the mount begins at the container's group, which the process names from the host's root."""
    own = "5:cpuset:/\n4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"
    files = {
        "memory/memory.limit_in_bytes": f"{2000 * MIB}\n",
        "memory/memory.usage_in_bytes": f"{1500 * MIB}\n",
        "memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {100 * MIB}\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    root = lay_out(tmp_path, own, SEPARATE.format(root="/docker/abc"), files)
    assert cgroups.free_memory(root) == 600 * MIB
    assert cgroups.cores(root) == 1  # half a core is one


def test_a_group_of_its_own_inside_a_container_is_bound_by_the_container(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": f"{500 * MIB}",
        "memory/memory.usage_in_bytes": f"{200 * MIB}",
        "memory/own/memory.limit_in_bytes": f"{400 * MIB}",
        "memory/own/memory.usage_in_bytes": f"{10 * MIB}",
    }
    root = lay_out(tmp_path, "4:memory:/docker/abc/own\n", SEPARATE.format(root="/docker/abc"), files)
    assert cgroups.free_memory(root) == 300 * MIB


def test_without_limits_or_control_groups_there_is_no_bound(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "1000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    unlimited = lay_out(tmp_path / "v1", "4:memory:/\n3:cpu,cpuacct:/\n", SEPARATE.format(root="/"), files)
    for root in (unlimited, tmp_path / "no such system"):
        assert cgroups.free_memory(root) is cgroups.memory_limit(root) is cgroups.cores(root) is None


def test_the_machine_is_as_large_as_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.free_memory()
    assert before is not None and before > 1000
    monkeypatch.setattr(cgroups, "free_memory", lambda: 1000)
    monkeypatch.setattr(cgroups, "memory_limit", lambda: 3 << 30)
    monkeypatch.setattr(cgroups, "cores", lambda: 1)
    assert machine.free_memory() == 1000
    assert machine.cores() == 1
    assert environment.describe_environment()["memory"].startswith("3.0 GiB of ")
