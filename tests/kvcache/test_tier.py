"""The host tier: shared between processes, backed as it is used, and gone afterwards."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seesaw.errors import HostMemoryError, SeesawError
from seesaw.hostmem.page_lock import PageLock
from seesaw.hostmem.shared import COMMIT_BYTES
from seesaw.kvcache.tier import HostTier
from seesaw.layout.kv import TierShape
from tests.kvcache.kv_harness import inode_of, mappings_of

ROOT = Path(__file__).parent.parent.parent


def shape_of(num_blocks: int, block_mib: int = 1) -> TierShape:
    """Tier blocks of some MiB."""
    return TierShape(num_blocks, 2, 4, 64, 128 * block_mib, 8)


def backed_bytes(tier: HostTier) -> int:
    return os.fstat(tier.fd).st_blocks * 512


def test_memory_is_taken_piece_by_piece() -> None:
    shape = shape_of(200)
    assert shape.block_bytes == 1 << 20
    tier = HostTier.create(shape)
    assert backed_bytes(tier) == tier.committed_bytes == 0
    tier.commit(0)
    assert backed_bytes(tier) == 0
    tier.commit(1)
    assert backed_bytes(tier) == tier.committed_bytes == COMMIT_BYTES
    tier.commit(64)  # there already
    assert backed_bytes(tier) == tier.committed_bytes == COMMIT_BYTES
    tier.commit(190)
    assert backed_bytes(tier) == tier.committed_bytes == 190 << 20
    tier.commit(200)
    tier.commit(200)
    assert backed_bytes(tier) == tier.committed_bytes == shape.nbytes
    assert not tier.tensor[:: 1 << 18].any()
    tier.close()


@pytest.mark.parametrize("num_blocks", [-1, 4])
def test_commit_beyond_the_tier_is_refused(num_blocks: int) -> None:
    tier = HostTier.create(shape_of(3))
    with pytest.raises(ValueError, match=f"got {num_blocks} blocks, expected 0 to 3"):
        tier.commit(num_blocks)
    tier.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
def test_memory_that_the_system_lacks_is_named_with_its_bytes(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = HostTier.create(shape_of(300))
    tier.commit(10)
    real = os.posix_fallocate
    room = 2 * COMMIT_BYTES

    def fallocate(fd: int, offset: int, size: int) -> None:
        if offset + size > room:
            raise OSError(code, os.strerror(code))
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(HostMemoryError, match="Lower host_kv_memory") as caught:
        tier.commit(250)
    for number in (room, 250 << 20, 300 << 20):
        assert str(number) in str(caught.value)
    assert isinstance(caught.value, SeesawError)
    assert tier.committed_bytes == backed_bytes(tier) == room
    tier.tensor[:room].fill_(1)  # what is there stays usable
    monkeypatch.undo()
    tier.commit(250)  # and it may work later
    assert tier.committed_bytes == 250 << 20
    tier.close()


def test_a_tier_larger_than_any_address_space_is_refused() -> None:
    before = set(os.listdir("/proc/self/fd"))
    for num_blocks in (1 << 40, 1 << 30):
        with pytest.raises(HostMemoryError, match="bytes"):
            HostTier.create(shape_of(num_blocks))
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_file_of_another_size_is_refused_and_closed() -> None:
    tier = HostTier.create(shape_of(2))
    fd = os.dup(tier.fd)
    with pytest.raises(ValueError, match=f"got {2 << 20} bytes, expected {3 << 20}"):
        HostTier.attach(fd, shape_of(3))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    tier.close()


CHILD = """
import sys
from seesaw.kvcache.tier import HostTier
from seesaw.layout.kv import TierShape
tier = HostTier.attach(int(sys.argv[1]), TierShape(2, 2, 4, 64, 128, 8))
assert tier.tensor[5] == 77, tier.tensor[5]
tier.tensor[-1] = 55
tier.close()
"""


def test_another_process_maps_the_same_memory() -> None:
    tier = HostTier.create(shape_of(2))
    tier.tensor[5] = 77
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tier.fd)], pass_fds=[tier.fd], cwd=ROOT, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tier.tensor[-1] == 55
    tier.close()


def test_no_process_can_cut_it_under_another() -> None:
    tier = HostTier.create(shape_of(2))
    for size in (0, 3 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(tier.fd, size)
    tier.close()


def test_nothing_is_left() -> None:
    files = set(os.listdir("/proc/self/fd"))
    tier = HostTier.create(shape_of(3))
    other = HostTier.attach(os.dup(tier.fd), tier.shape)
    tier.commit(3)
    tier.tensor.fill_(3)
    view = other.tensor[10:20]
    inode = inode_of(tier)
    assert inode_of(other) == inode
    assert mappings_of(inode) == 2
    tier.close()
    tier.close()
    other.close()
    with pytest.raises(ValueError, match="closed"):
        tier.tensor  # noqa: B018
    assert view.tolist() == [3] * 10, "no memory vanishes under a view"
    assert mappings_of(inode) == 1
    del view
    assert mappings_of(inode) == 0
    assert set(os.listdir("/proc/self/fd")) <= files
    assert not list(Path("/dev/shm").glob("*seesaw*"))


class FakeCuda:
    """Takes up to `room` pieces."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.registered: dict[int, int] = {}

    def register(self, address: int, nbytes: int) -> int:
        if len(self.registered) == self.room:
            return 2
        self.registered[address] = nbytes
        return 0

    def unregister(self, address: int) -> int:
        del self.registered[address]
        return 0


def test_all_memory_is_page_locked_and_let_go() -> None:
    cuda = FakeCuda(room=10)
    lock = PageLock(1000, 105, 25, cuda.register, cuda.unregister)
    lock.wait()
    assert cuda.registered == {1000: 25, 1025: 25, 1050: 25, 1075: 25, 1100: 5}
    lock.close()
    assert cuda.registered == {}


def test_page_locking_that_cuda_refuses_is_named() -> None:
    cuda = FakeCuda(room=2)
    lock = PageLock(1000, 105, 25, cuda.register, cuda.unregister)
    with pytest.raises(HostMemoryError, match=r"error 2\) after 50 of 105 bytes.*ulimit -l"):
        lock.wait()
    with pytest.raises(HostMemoryError, match="error 2"):
        lock.check()
    lock.close()
    assert cuda.registered == {}


def test_the_tier_is_page_locked_on_a_gpu(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs --device cuda")
    torch.cuda.init()
    tier = HostTier.create(shape_of(3))
    tier.page_lock(torch.device(device))
    tier.check_page_lock(wait=True)
    assert tier.tensor.is_pinned()
    tier.close()
