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

def rms_norm(
    *,
    itemsize: int,
    rows: int,
    size: int,
    x: int,
    ld_x: int,
    add: int,
    ld_add: int,
    sum: int,
    weight: int,
    eps: float,
    plus_one: bool,
    out: int,
) -> None:
    """Addresses of x, of what is added first (0 = nothing) and where the sum goes, of the weight
    and the result; strides of rows in elements, sum and out contiguous. Here and below:
    `itemsize` 2 = bfloat16, 4 = float32; without the GIL, on the threads that kernels run on;
    whoever calls has checked that all of it is there. Raises ValueError for sizes that no kernel
    takes."""

def rope(
    *,
    itemsize: int,
    tokens: int,
    outer: int,
    inner: int,
    head_dim: int,
    x: int,
    strides: tuple[int, int, int],
    cos: int,
    sin: int,
    out: int,
) -> None:
    """Heads `[tokens, outer, inner, head_dim]` with `strides` of the first three dims, turned by
    `cos` and `sin` `[tokens, head_dim / 2]` of the same type, to contiguous `out`."""

def rope_kv(
    *,
    itemsize: int,
    tokens: int,
    qkv: int,
    ld_qkv: int,
    head_step: int,
    group: int,
    cos: int,
    sin: int,
    q_norm: int,
    k_norm: int,
    eps: float,
    plus_one: bool,
    slots: int,
    k_cache: int,
    v_cache: int,
    strides: tuple[int, int, int],
    num_blocks: int,
    block_size: int,
    num_heads: int,
    head_dim: int,
    panels: bool,
) -> None:
    """Norms (0 = none), RoPE and the write of KV of rows that hold, per KV head, `group` query
    heads, K and V, each in `head_step` elements; q stays in place. `slots` (int64) and the pool as
    in `kv_write`."""

def kv_write(
    *,
    itemsize: int,
    tokens: int,
    k: int,
    k_token_stride: int,
    k_head_stride: int,
    v: int,
    v_token_stride: int,
    v_head_stride: int,
    slots: int,
    k_cache: int,
    v_cache: int,
    strides: tuple[int, int, int],
    num_blocks: int,
    block_size: int,
    num_heads: int,
    head_dim: int,
    panels: bool,
) -> None:
    """`slots` (int64) = block * block_size + offset of each token; `strides` of block, head and
    token in both caches; `panels`: tiles as csrc/cpu/kv_view.h describes. Raises IndexError for a
    slot that the pool does not have."""

def gated_activation(
    *, itemsize: int, gelu: bool, rows: int, size: int, x: int, ld_x: int, out: int
) -> None:
    """Rows of `size` numbers of gate, then of up; `gelu`: its tanh form, else SiLU."""

def embed_panels(
    *,
    itemsize: int,
    panels: int,
    panel_stride_bytes: int,
    num_panels: int,
    columns: int,
    depth: int,
    ids: int,
    tokens: int,
    first: int,
    scale: float,
    out: int,
) -> None:
    """Rows of the tokens `ids` (int64) from the panels of a matrix `[columns, depth]` whose row 0
    is id `first`, times `scale`; 0 for ids that it does not hold."""

def embed_rows(
    *,
    itemsize: int,
    table: int,
    num_rows: int,
    size: int,
    ids: int,
    tokens: int,
    first: int,
    scale: float,
    out: int,
) -> None:
    """The same from plain rows."""
