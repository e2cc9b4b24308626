"""The memory that a container or a batch system leaves to this process: Linux control groups.

docker and SLURM limit a group of processes, while /proc/meminfo tells of the whole machine. A group
lies in a folder of /sys/fs/cgroup, and the limits of all folders above it hold too.
"""
from pathlib import Path

# controller in /proc/self/cgroup -> its folder, the files with a group's limit and use, and what
# memory.stat calls cached files
FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file"),             # version 2 of cgroups
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}


def group_limits(root="/"):
    """-> [(limit, free)] of each group with a limit that this process is in, in bytes. Cached files
    count as free. root: of the file system, for tests."""
    found, own = [], Path(root, "proc/self/cgroup")
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controller, path = line.split(":", 2)
        if controller in FILES:
            top, limit, use, cache = FILES[controller]
            base = Path(root, "sys/fs/cgroup", top)
            group = base / path.lstrip("/")
            folders = [group, *group.parents]                       # up to the root of the groups
            found += [limit_of(folder, limit, use, cache)
                      for folder in folders[:folders.index(base) + 1]]
    return [numbers for numbers in found if numbers]


def limit_of(folder, limit, use, cache):
    """-> (limit, free) of the group in a folder, or None without a limit. The others: see FILES."""
    try:
        most, used = int((folder / limit).read_text()), int((folder / use).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most, max(0, most - used + int(stat.get(cache, 0)))
    except (OSError, ValueError):                       # no such group here, or the limit is "max"
        return None
