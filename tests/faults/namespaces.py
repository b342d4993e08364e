"""Two network namespaces of their own joined by a veth pair: a link that tests can slow and cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import pytest

_numbers = count()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Link:
    """`name{rank}` are its namespaces, `hosts` their addresses."""

    name: str
    hosts: tuple[str, str] = ("10.78.0.1", "10.78.0.2")

    def environment(self) -> dict[str, str]:
        """For an engine whose two ranks are to be joined by it."""
        return {
            "SEESAW_RANK_COMMAND": f"ip netns exec {self.name}{{rank}}",
            "SEESAW_COMM_HOST": ",".join(self.hosts),
        }

    def slow(self, rate: str) -> None:
        for rank in (0, 1):
            _run(
                "ip", "netns", "exec", f"{self.name}{rank}", "tc", "qdisc", "replace", "dev",
                f"{self.name}v{rank}", "root", "tbf", "rate", rate, "burst", "64kb", "latency",
                "50ms",
            )  # fmt: skip

    def lose_all(self) -> None:
        """A cut somewhere on the way: both ends are up and hear nothing."""
        for rank in (0, 1):
            _run(
                "ip", "-n", f"{self.name}{rank}", "neigh", "replace", self.hosts[1 - rank],
                "lladdr", "02:00:00:00:00:01", "dev", f"{self.name}v{rank}", "nud", "permanent",
            )  # fmt: skip

    def down(self) -> None:
        _run("ip", "-n", f"{self.name}1", "link", "set", f"{self.name}v1", "down")

    def up(self) -> None:
        _run("ip", "-n", f"{self.name}1", "link", "set", f"{self.name}v1", "up")


@contextmanager
def new_link() -> Iterator[Link]:
    """Skips where namespaces cannot be made here."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            pytest.skip(f"links are cut with iproute2's {tool}, which is not installed")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    link = Link(f"sst{os.getpid() % 100000}x{next(_numbers)}n")
    try:
        try:
            _make(link)
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        yield link
    finally:
        for rank in (0, 1):
            subprocess.run(
                ["ip", "netns", "del", f"{link.name}{rank}"], capture_output=True, check=False
            )


def _make(link: Link) -> None:
    ends = [f"{link.name}v{rank}" for rank in (0, 1)]
    for rank in (0, 1):
        _run("ip", "netns", "add", f"{link.name}{rank}")
    # In the namespaces from the start: the host's own interfaces stay as they are.
    _run(
        "ip", "-n", f"{link.name}0", "link", "add", ends[0], "type", "veth", "peer", "name",
        ends[1], "netns", f"{link.name}1",
    )  # fmt: skip
    for rank in (0, 1):
        space, end = f"{link.name}{rank}", ends[rank]
        _run("ip", "-n", space, "addr", "add", f"{link.hosts[rank]}/24", "dev", end)
        _run("ip", "-n", space, "link", "set", end, "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")
