def build_info() -> dict[str, object]:
    """Keys `compiler` (str), `cxx_standard` (int), `cpu_features` (list of str)."""

def isa() -> str:
    """Instruction set that kernels run with: generic, avx2, avx512 or avx512bf16. At first that of
    SEESAW_CPU_ISA, or the fastest there is."""

def best_isa() -> str: ...
def set_isa(name: str) -> None:
    """Raises ValueError where it is unknown or this processor lacks it. Not while kernels run."""

def num_threads() -> int: ...
def configure_threads(num_threads: int, cores: list[int] = ...) -> None:
    """Replace the threads that kernels run on; thread i stays on cores[i], without `cores` wherever
    the system puts it. Raises ValueError. Not while kernels run."""

class CopyPool:
    """C++ threads that copy strided tiles and hold no GIL; parked while there is nothing to do.

    No method holds the GIL while it waits. Whoever submits has checked that a copy stays within its
    memory, and keeps that memory until the copy is reported or the pool closed.
    """

    def __init__(self, num_threads: int, max_jobs: int) -> None:
        """`max_jobs` bounds what is unfinished. Raises ValueError below 1."""

    def submit(
        self,
        *,
        key: int,
        source: int,
        target: int,
        source_offsets: list[int],
        target_offsets: list[int],
        counts: tuple[int, int, int],
        source_strides: tuple[int, int, int],
        target_strides: tuple[int, int, int],
        tile_bytes: int,
    ) -> None:
        """Copy, for each pair of offsets, a box of `counts` tiles; addresses, offsets and strides
        in bytes. Returns at once unless `max_jobs` are unfinished. Raises ValueError where the
        lists differ in length, RuntimeError where the pool is closed."""

    def next_done(self) -> tuple[int, int, float] | None:
        """Wait for the next finished copy: (key, bytes, seconds from its begin). None = closed."""

    def close(self) -> None:
        """Stop soon, dropping what is unfinished; no memory is touched afterwards."""

def linear(
    *,
    kind: str,
    panels: int,
    panel_stride_bytes: int,
    num_panels: int,
    columns: int,
    depth: int,
    itemsize: int,
    bias: int,
    x: int,
    ld_x: int,
    rows: int,
    out: int,
    ld_out: int,
) -> None:
    """A linear layer over panels (csrc/cpu/linear.h) on all threads; no GIL meanwhile.

    `kind`: store, add, silu, gelu_tanh or f32. Addresses of the first panel, of the bias (0 = none),
    x and out; row strides in elements; `itemsize` 2 = bfloat16, 4 = float32. Raises ValueError for
    sizes that cannot be; whoever calls has checked the memory."""

def linear_highest(
    *,
    panels: int,
    panel_stride_bytes: int,
    num_panels: int,
    columns: int,
    depth: int,
    itemsize: int,
    bias: int,
    x: int,
    ld_x: int,
    rows: int,
    value: int,
    column: int,
) -> None:
    """The highest sum of each row (float32) and its column (int64), the lowest of equals; as
    `linear`."""

def pack_panels(
    *,
    source: int,
    target: int,
    num_rows: int,
    words: int,
    row_stride: int,
    panel_stride: int,
    first: int,
    group: int,
    step: int,
) -> None:
    """Plain rows at address `source` into the panels at `target`, on the threads that kernels run
    on, without the GIL. Row i, of `words` words of 32 bits (a float32 or a pair of bfloat16),
    becomes column `first + i // group * step + i % group`. Strides in bytes. Whoever calls has
    checked that all of it is there. Raises ValueError unless 1 <= group <= step and no count is
    negative."""

def unpack_panels(
    *,
    source: int,
    target: int,
    num_rows: int,
    words: int,
    row_stride: int,
    panel_stride: int,
    first: int,
    group: int,
    step: int,
) -> None:
    """The way back: panels at `source` into plain rows at `target`."""

def read_rate(address: int, nbytes: int) -> float:
    """Bytes per second of one pass over memory shared out to the threads of kernels."""

def multiply_rate(dtype: str, seconds: float) -> float:
    """Flops per second (a multiply-add is two) out of registers, measured for `seconds` or more.
    `dtype`: bfloat16 or float32. Raises ValueError."""
