"""The host image: what is in it, who may write to it, what is left of it, what is refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.errors import HostMemoryError, ModelError
from seesaw.hostmem import shared
from seesaw.layout import PlainFormat
from seesaw.sizes import format_bytes
from seesaw.weights import image as image_module
from seesaw.weights.checkpoint import open_checkpoint
from seesaw.weights.image import WeightImage
from tests.checkpoints import FAMILIES, tiny_config, tiny_model
from tests.kvcache import fake_gpu
from tests.layout.models import make_model
from tests.weights.gguf_files import write_gguf
from tests.weights.replica import attached
from tests.weights.unfused import unfuse

CPU = torch.device("cpu")
PREPARE = """
import os, sys
import torch
from seesaw.errors import HostMemoryError
from seesaw.layout import PlainFormat
from seesaw.weights.image import WeightImage
from tests.layout.models import make_model
"""


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def mapped_images() -> int:
    return Path("/proc/self/maps").read_text().count("seesaw-weights")


def run_python(code: str, *fds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREPARE + code, *map(str, fds)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        pass_fds=fds,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_image_has_all_parameters_as_they_are_stored(tiny_checkpoint, family, dtype):
    checkpoint = open_checkpoint(EngineConfig(model=str(tiny_checkpoint(family))))
    image = WeightImage.create(PlainFormat(checkpoint.spec, dtype.itemsize))
    calls: list[tuple[int, int]] = []
    checkpoint.load_image(image, dtype, lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == sum(t.nbytes for t in checkpoint.tensors.values())
    params = checkpoint.load_params(dtype, CPU)
    rank = attached(image)
    for param in image.fmt.params:
        assert params[param.name].shape == param.shape
        assert torch.equal(rank.view(param, dtype), params[param.name])
        start = image.fmt.image_offsets[param.name]
        raw = params[param.name].view(torch.uint8).flatten()
        assert torch.equal(rank.tensor[start : start + raw.numel()], raw)
    image.close()
    rank.close()


@pytest.mark.parametrize("encoding", ["BF16", "Q8_0"])
def test_image_of_a_gguf(tmp_path, tiny_checkpoint, encoding):
    folder = tiny_checkpoint("llama")
    path = tmp_path / "model.gguf"
    model = tiny_model(tiny_config("llama"))
    expected = write_gguf(path, "llama", model, encoding=encoding, tokenizer=folder)
    checkpoint = open_checkpoint(EngineConfig(model=str(path)))
    image = WeightImage.create(PlainFormat(checkpoint.spec, 2))
    checkpoint.load_image(image, torch.bfloat16)
    params = {param.name: image.view(param, torch.bfloat16) for param in image.fmt.params}
    found = unfuse(checkpoint.spec, params)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16)), name
    image.close()


def test_a_file_that_ends_early_is_told(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint("llama")
    folder = tmp_path / "model"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    checkpoint = open_checkpoint(EngineConfig(model=str(folder)))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    image = WeightImage.create(PlainFormat(checkpoint.spec, 2))
    with pytest.raises(ModelError, match=r"ends inside tensor .*truncated"):
        checkpoint.load_image(image, torch.bfloat16)
    image.close()


def test_another_process_reads_what_one_wrote_and_cannot_write():
    image = WeightImage.create(PlainFormat(make_model(), 2))
    content = random.randbytes(image.fmt.image_bytes)
    image.tensor.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    attach = "image = WeightImage.attach(int(sys.argv[1]), PlainFormat(make_model(), 2))\n"
    done = run_python(attach + "sys.stdout.write(bytes(image.tensor).hex())", image.fd)
    assert done.stderr == ""
    assert bytes.fromhex(done.stdout) == content
    done = run_python(attach + "image.tensor[0] = 1", image.fd)
    assert done.returncode == -signal.SIGSEGV
    assert bytes(image.tensor) == content
    image.close()


def test_nothing_is_left_when_closed_but_what_is_still_viewed():
    files, maps = open_files(), mapped_images()
    spec = make_model()
    image = WeightImage.create(PlainFormat(spec, 4))
    image.tensor.fill_(7)
    other = attached(image)
    assert mapped_images() == maps + 2
    view = other.view(other.fmt.params[0], torch.int32)
    for one in (image, other, image):
        one.close()
    assert mapped_images() == maps + 1
    assert (view == 0x07070707).all()
    del view
    assert mapped_images() == maps
    assert open_files() == files
    with pytest.raises(ValueError, match="closed"):
        _ = other.tensor


def test_a_file_of_another_model_is_refused():
    files = open_files()
    image = WeightImage.create(PlainFormat(make_model(layers=2), 4))
    fd = os.dup(image.fd)
    with pytest.raises(ValueError, match=rf"got {image.fmt.image_bytes} bytes, expected \d+"):
        WeightImage.attach(fd, PlainFormat(make_model(layers=3), 4))
    image.close()
    assert open_files() == files


def test_its_size_is_sealed():
    image = WeightImage.create(PlainFormat(make_model(), 4))
    for size in (0, image.fmt.image_bytes + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(image.fd, size)
    assert os.fstat(image.fd).st_blocks * 512 >= image.fmt.image_bytes, "not backed by memory"
    image.close()


@pytest.mark.parametrize(
    ("limit", "message"),
    [("RLIMIT_FSIZE", "the system gave 0 of"), ("RLIMIT_AS", "the system did not map it")],
)
def test_memory_that_the_system_refuses_is_named(limit, message):
    code = f"""
import resource
fmt = PlainFormat(make_model(layers=1, vocab=1 << 20), 4)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
bound = used + (100 << 20) if "{limit}" == "RLIMIT_AS" else 100 << 20
files = os.listdir("/proc/self/fd")
resource.setrlimit(resource.{limit}, (bound, bound))
try:
    WeightImage.create(fmt)
except HostMemoryError as error:
    assert os.listdir("/proc/self/fd") == files
    print(error)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    size = PlainFormat(make_model(layers=1, vocab=1 << 20), 4).image_bytes
    assert f"the weights take {format_bytes(size)} of host memory" in done.stdout
    assert message in done.stdout
    assert "Free memory" in done.stdout


class NoCuda:
    """Takes all pieces, as CUDA does."""

    def __init__(self, device: torch.device) -> None: ...

    def register(self, address: int, nbytes: int) -> int:
        return 0

    def unregister(self, address: int) -> int:
        return 0


def test_copies_do_not_cross_registered_pieces(monkeypatch):
    seen: list[tuple[int, int]] = []

    def copy_runs(runs):
        seen.extend((run.source - base, run.source - base + run.nbytes) for run in runs)
        fake_gpu.copy_runs(runs)

    monkeypatch.setattr(image_module, "PAGE_LOCK_BYTES", 100)
    monkeypatch.setattr(image_module, "copy_runs", copy_runs)
    monkeypatch.setattr(shared, "CudaHostMemory", NoCuda)
    image = WeightImage.create(PlainFormat(make_model(layers=1), 2))
    image.tensor.random_(0, 256)
    image.begin_page_lock(CPU, 100)
    base = image.tensor.data_ptr()
    wanted = ((0, 100), (0, 99), (99, 2), (100, 100), (250, 731), (7, 0), (300, 1))
    targets = [(torch.zeros(size + 2, dtype=torch.uint8), offset) for offset, size in wanted]
    image.copy_all([(target[1:-1], offset) for target, offset in targets])
    for (target, offset), (_, size) in zip(targets, wanted, strict=True):
        assert torch.equal(target[1:-1], image.tensor[offset : offset + size])
        assert not target[[0, -1]].any()
    assert all(start // 100 == (stop - 1) // 100 for start, stop in seen)
    assert sum(stop - start for start, stop in seen) == sum(size for _, size in wanted)
    image.close()


def is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < stop:
            return "seesaw-weights" in line
    return False


class FakeCuda:
    """Refuses the piece `refused`, counted from 0."""

    def __init__(self, refused: int) -> None:
        self.refused = refused
        self.held: dict[int, int] = {}

    def register(self, address: int, nbytes: int) -> int:
        if len(self.held) == self.refused:
            return 2
        self.held[address] = nbytes
        return 0

    def unregister(self, address: int) -> int:
        assert is_mapped(address), "unregistered after it was unmapped"
        del self.held[address]
        return 0


@pytest.mark.parametrize("refused", [-1, 0, 1])
def test_page_locking_is_undone_before_the_end_and_refusal_is_told(monkeypatch, refused):
    image = WeightImage.create(PlainFormat(make_model(vocab=3000), 4))
    monkeypatch.setattr(image_module, "PAGE_LOCK_BYTES", 1 << 19)
    cuda = FakeCuda(refused)
    monkeypatch.setattr(shared, "CudaHostMemory", lambda device: cuda)
    rank = WeightImage.attach(os.dup(image.fd), image.fmt, torch.device("cuda", 0))
    if refused == -1:
        rank.check_page_lock(wait=True)
        start, size = rank.tensor.data_ptr(), image.fmt.image_bytes
        assert size > 2 << 19
        pieces = {at: min(1 << 19, size - at) for at in range(0, size, 1 << 19)}
        assert cuda.held == {start + at: nbytes for at, nbytes in pieces.items()}
    else:
        with pytest.raises(HostMemoryError, match="refused to page-lock"):
            rank.check_page_lock(wait=True)
        assert len(cuda.held) == refused
    rank.close()
    assert cuda.held == {}
    image.close()
    attached_only = WeightImage.create(image.fmt)
    attached_only.check_page_lock(wait=True)  # not asked for: nothing to wait for
    attached_only.close()
