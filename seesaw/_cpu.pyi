from collections.abc import Callable

def build_info() -> dict[str, object]:
    """Keys `compiler` (str), `cxx_standard` (int), `cpu_features` (list of str)."""

def isa() -> str:
    """Instruction set that kernels run with: generic, avx2, avx512 or avx512bf16. At first that of
    SEESAW_CPU_ISA, or the fastest there is."""

def best_isa() -> str: ...
def set_isa(name: str) -> None:
    """Raises ValueError where it is unknown or this processor lacks it. Not while kernels run."""

def num_threads() -> int:
    """Of those that kernels run on when this thread calls them."""

def configure_threads(num_threads: int, cores: list[int] = ...) -> None:
    """Replace the threads that kernels run on; thread i stays on cores[i], without `cores` wherever
    the system puts it. Raises ValueError. Not while kernels run."""

def configure_lane_threads(lane: int, num_threads: int, cores: list[int] = ...) -> None:
    """The same for the calling thread alone, whose kernels then run beside those of threads of
    other lanes. At any time between its kernels."""

def paged_attention(
    *,
    itemsize: int,
    q: int,
    q_strides: tuple[int, int, int],
    k_cache: int,
    v_cache: int,
    strides: tuple[int, int, int],
    num_blocks: int,
    block_size: int,
    num_heads: int,
    head_dim: int,
    panels: bool,
    group: int,
    block_table: int,
    table_stride: int,
    table_width: int,
    cu_seqlens_q: list[int],
    seq_lens: list[int],
    scale: float,
    soft_cap: float,
    window: int,
    out: int,
    lse: int,
) -> None:
    """Attention of csrc/cpu/attention.h on the threads that kernels run on, without the GIL.

    Addresses of q (strides of tokens, KV heads and the query heads of one, in elements), of the
    first tile of K and of V (strides of blocks, heads and, of plain tiles, tokens), of the table
    (int32) and of the contiguous results; lse 0 = not wanted. `soft_cap` 0 and `window` 0 = none.
    Raises ValueError for sizes that no kernel takes, IndexError for a block past the pool; whoever
    calls has checked the memory."""

class Comm:
    """The ranks of one stage, as C++ code sees them. All make the same calls in the same order; no
    method holds the GIL. Raises RuntimeError, naming the rank, where one is gone."""

    @property
    def size(self) -> int: ...
    @property
    def rank(self) -> int: ...
    def all_reduce(self, data: int, count: int, dtype: str) -> None:
        """Sum in place over the ranks, of `count` numbers at address `data`, in float32 in order of
        rank and rounded once: the same bits on all. `dtype`: bfloat16 or float32."""

    def all_gather(self, source: int, target: int, nbytes: int) -> None:
        """`nbytes` of each rank to `target`, one after another in order of rank."""

class Links:
    """How a rank reaches the others: csrc/cpu/links.h. Used by one thread at a time; no method
    holds the GIL while it waits. Bytes are at addresses, whose memory the caller keeps. Raises
    RuntimeError, naming the rank, where one is gone or silent for too long."""

    def send(self, peer: int, data: int, nbytes: int) -> None:
        """Returns before they have arrived, unless as many sends as may be under way are so; the
        memory may be changed then."""

    def receive(self, peer: int, data: int, nbytes: int) -> None: ...
    def exchange(
        self, sends: list[tuple[int, int, int]], receives: list[tuple[int, int, int]]
    ) -> None:
        """(peer, address, bytes) each; returns when all is sent and received."""

    def comm(self, members: list[int]) -> Comm:
        """The ranks `members` in this order, this one among them. Raises ValueError."""

    def close(self) -> None:
        """Leave; what was sent arrives all the same. Safe to call twice."""

class ShmLinks(Links):
    """Between ranks of one host, over memory that all of them map, zero at first."""

    def __init__(
        self,
        *,
        memory: int,
        num_ranks: int,
        ring_slots: int,
        slot_bytes: int,
        rank: int,
        timeout_s: float,
    ) -> None:
        """Join the others; waits for all. From each rank to each other `ring_slots` (a power of
        two) sends of `slot_bytes` may be under way. The memory is kept until `close`. Raises
        ValueError, and RuntimeError where a rank does not come."""

    @staticmethod
    def num_bytes(*, num_ranks: int, ring_slots: int, slot_bytes: int) -> int:
        """Of the memory. Raises ValueError."""

class TcpLinks(Links):
    """Over connected stream sockets, one for each pair of ranks."""

    def __init__(
        self, *, sockets: list[int], rank: int, most_under_way: int, timeout_s: float
    ) -> None:
        """`sockets`: file descriptors by rank (its own: -1), the links' from here on. Raises
        ValueError."""

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

    `kind`: store, add, silu, gelu_tanh or f32. Addresses of the first panel, of the bias
    (0 = none), x and out; row strides in elements; `itemsize` 2 = bfloat16, 4 = float32. Raises
    ValueError for sizes that cannot be; whoever calls has checked the memory."""

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

def moe_route(
    *,
    logits: int,
    tokens: int,
    num_experts: int,
    top_k: int,
    renormalize: bool,
    weights: int,
    experts: int,
) -> None:
    """Softmax and choice of experts (csrc/cpu/moe.h) on all threads, without the GIL: contiguous
    logits (float32), weights (float32) and experts (int32). Raises ValueError for a top_k that is
    not from 1 to num_experts."""

def moe_mlp(
    *,
    itemsize: int,
    gate_up: int,
    down: int,
    num_experts: int,
    first_expert: int,
    hidden: int,
    inner: int,
    gelu: bool,
    tokens: int,
    top_k: int,
    weights: int,
    experts: int,
    x: int,
    ld_x: int,
    out: int,
    loads: int,
) -> None:
    """The weighted sum over experts first_expert .. first_expert + num_experts, whose panels lie
    one after another, as `moe_route` chose; `out` is contiguous, `loads` (int64) goes up by 1 for
    each that has a token. Raises ValueError for sizes that cannot be and for an expert that a token
    has twice; whoever calls has checked the memory."""

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

class CallbackComm(Comm):
    """Sums over the ranks of a stage by `all_reduce(address, count)`, which adds up so many
    elements of the decoder's dtype in place, and is called with the GIL."""

    def __init__(self, size: int, rank: int, all_reduce: Callable[[int, int], None]) -> None: ...

_Matrix = tuple[int, int, int, int, int, int]
"""(first panel, bytes from panel to panel, panels, real columns, depth, bias or 0)."""

class Decoder:
    """One rank's share of a model: csrc/cpu/decoder.h. For models/cpu_decoder.py alone, which
    checks what it hands over and keeps it: addresses of tensors, 0 = there is none; sizes in
    elements.

    embed, run_layers, logits and highest hold no GIL; one thread at a time may call them.
    """

    def __init__(
        self,
        *,
        dtype: str,
        hidden_size: int,
        head_dim: int,
        head_step: int,
        num_kv_heads: int,
        group: int,
        norm_eps: float,
        norm_plus_one: bool,
        sm_scale: float,
        attn_soft_cap: float,
        gelu: bool,
        comm: Comm | None,
        own_threads: int,
        experts_per_token: int = 0,
        renormalize_experts: bool = False,
    ) -> None: ...
    def add_layer(
        self,
        *,
        input_norm: int,
        attention_out_norm: int,
        mlp_norm: int,
        mlp_out_norm: int,
        q_norm: int,
        k_norm: int,
        qkv: _Matrix,
        o: _Matrix,
        gate_up: _Matrix,
        down: _Matrix,
        window: int,
        rope: int,
        router: _Matrix | None = None,
        first_expert: int = 0,
        num_experts: int = 0,
        expert_loads: int = 0,
    ) -> None:
        """With a router, gate_up and down have the panels of this rank's experts one after another
        and the columns of one; `expert_loads` (int64, one an expert) counts as `moe_mlp` does."""

    def set_embedding(
        self, *, table: _Matrix | None, rows: int, num_rows: int, first_id: int, scale: float
    ) -> None: ...
    def set_head(self, *, norm: int, head: _Matrix, first_id: int) -> None: ...
    def embed(self, ids: int, tokens: int, hidden: int) -> None: ...
    def run_layers(
        self,
        *,
        hidden: int,
        tokens: int,
        num_rows: int,
        cu_seqlens_q: int,
        seq_lens: int,
        block_table: int,
        table_stride: int,
        slots: int,
        cos_sin: list[tuple[int, int]],
        pool: int,
        num_blocks: int,
        block_size: int,
        panels: bool,
        begin: int,
        end: int,
        wanted: int,
        num_wanted: int,
        before: Callable[[int], object] | None = None,
    ) -> None:
        """`wanted`: ascending indices (int64) of the tokens whose output is left in `hidden`, one
        after another; -1 of them = all tokens. `before`: called with each layer, on this thread
        with the GIL, when those before it are done. Raises what it or the comm's sums raised."""

    def logits(self, hidden: int, index: int, count: int, out: int) -> None: ...
    def highest(self, hidden: int, index: int, count: int, value: int, id: int) -> None: ...
    def set_profiling(self, on: bool) -> None: ...
    def take_profile(self) -> dict[str, float]:
        """Seconds by part since the last call."""

def sample(
    *,
    rows: int,
    vocab: int,
    logits: int,
    ld_logits: int,
    temperature: int,
    top_k: int,
    top_p: int,
    min_p: int,
    uniform: int,
    tokens: int,
) -> None:
    """Tokens (int64) of rows of float32 logits; the settings of `seesaw.ops.sample`, one per row.
    Raises ValueError where no token can be."""

def logprobs(
    *,
    rows: int,
    vocab: int,
    logits: int,
    ld_logits: int,
    tokens: int,
    top: int,
    logprobs: int,
    ranks: int,
    top_ids: int,
    top_logprobs: int,
) -> None:
    """As `seesaw.ops.logprobs`; ids and ranks int64. Raises ValueError unless `top` is 0 to
    `vocab`, IndexError for a token outside."""
