"""The memory and cores that a container or a batch job may use, from Linux's control groups, version 1 and 2.

A process is in a group of each hierarchy, and bound by the limits of that and of all groups above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CGROUP2 = "cgroup2"
_NO_LIMIT = 1 << 60  # bytes; version 1 has a number near 2^63 where there is no limit, version 2 "max"


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that the tightest limit leaves, page cache that can be dropped included; None without a limit.

    Args:
        root: the folder that holds proc and sys.
    """
    left = []
    for folder, (limit_name, usage_name, inactive) in _memory_groups(root):
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and usage is not None:
            left.append(limit - usage + min(usage, _statistics(folder).get(inactive, 0)))
    return max(0, min(left)) if left else None


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the tightest limit of memory in bytes; None where there is none."""
    limits = [_number(folder / names[0]) for folder, names in _memory_groups(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def cores(root: Path = Path("/")) -> int | None:
    """Return the whole cores that the tightest quota of processor time amounts to, at least one; None without one."""
    quotas = []
    for folder, version in _groups(root, "cpu"):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # else "max", or -1 in version 1
            quotas.append(int(quota) / int(period))
    return max(1, int(min(quotas))) if quotas else None


def _memory_groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the folders of the groups, and the names of limit, usage and inactive page cache in them."""
    for folder, version in _groups(root, "memory"):
        if version == 2:
            yield folder, ("memory.max", "memory.current", "inactive_file")
        else:
            yield folder, ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's groups that may limit what `controller` controls, with their version."""
    own: dict[str, str] = {}  # controller, "" for version 2 -> path of this process's group in its hierarchy
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        mount_root, mount = before.split()[3:5]
        kind, _, options = after.split()[:3]
        is_second = kind == _CGROUP2
        if not is_second and (kind != "cgroup" or controller not in options.split(",")):
            continue
        top, path = root / mount.lstrip("/"), own.get("" if is_second else controller, "/")
        # Inside a container the mount may show only a part of the hierarchy, which begins at `mount_root`; a path that
        # leads out of it begins with "/..".
        inside = path.removeprefix(mount_root) if mount_root != "/" else path
        group = top if ".." in inside else top / inside.strip("/")
        while True:
            yield group, 2 if is_second else 1
            if group == top or top not in group.parents:
                break
            group = group.parent


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """Return the bytes in a file; None where that is no limit."""
    text = _text(path)
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


def _statistics(folder: Path) -> dict[str, int]:
    """Return the named numbers of a group's use of memory, in bytes."""
    pairs = (line.split() for line in _text(folder / "memory.stat").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
