#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_scratch.h"
#include "kernels/attention.h"

namespace seesaw {

namespace {

// Keys of one task are split where there are fewer tasks than this per thread.
constexpr int kTasksPerThread = 8;
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Queries of one row and one KV head that are computed together.
struct Task {
    std::int64_t row = 0;
    std::int64_t token = 0;      // first query, in T
    std::int64_t position = 0;   // its place among the row's keys
    int num_positions = 0;       // 0: there is nothing to do
    int head = 0;
    std::int64_t first_chunk = 0;
    std::int64_t num_chunks = 0;
};

struct Call {
    const Attention& args;
    const AttentionRows& rows;
    const KvView& kv;
    const AttentionGeometry geometry;

    // Units are numbered so that a row's first one is known without a sum over the rows before it;
    // some of them are empty.
    std::int64_t unit_of_row(std::int64_t row) const {
        return rows.cu_seqlens_q[row] / geometry.positions + row;
    }
    std::int64_t num_tasks() const { return unit_of_row(rows.num_rows) * kv.num_heads; }

    Task task(std::int64_t index) const {
        const std::int64_t unit = index / kv.num_heads;
        std::int64_t low = 0, high = rows.num_rows;  // unit_of_row(low) <= unit < unit_of_row(high)
        while (high - low > 1) {
            const std::int64_t middle = (low + high) / 2;
            (unit_of_row(middle) <= unit ? low : high) = middle;
        }
        const std::int64_t begin = rows.cu_seqlens_q[low], end = rows.cu_seqlens_q[low + 1];
        Task task;
        task.row = low;
        task.head = static_cast<int>(index % kv.num_heads);
        task.token = begin + (unit - unit_of_row(low)) * geometry.positions;
        if (task.token >= end) return task;
        task.num_positions =
            static_cast<int>(std::min<std::int64_t>(geometry.positions, end - task.token));
        task.position = rows.seq_lens[low] - end + task.token;
        const std::int64_t first_key =
            args.window > 0 ? std::max<std::int64_t>(0, task.position + 1 - args.window) : 0;
        task.first_chunk = first_key / kChunkTokens;
        task.num_chunks =
            ceil_div(task.position + task.num_positions, kChunkTokens) - task.first_chunk;
        return task;
    }

    int rows_of(const Task& task) const { return task.num_positions * args.group; }

    void pack_q(const Task& task, char* q) const {
        const std::size_t size = kv.head_dim * geometry.element;
        for (int position = 0; position < task.num_positions; ++position) {
            const std::int64_t token =
                (task.token + position) * args.q_token_stride + task.head * args.q_group_stride;
            for (int g = 0; g < args.group; ++g, q += size) {
                const std::int64_t at = (token + g * args.q_head_stride) *
                                        static_cast<std::int64_t>(geometry.element);
                std::memcpy(q, static_cast<const char*>(args.q) + at, size);
            }
        }
    }

    // Pieces of a chunk of the task's row, as they lie in the pool; returns how many there are. `v`
    // may be null.
    int pieces(const Task& task, std::int64_t chunk, const void** k, const void** v) const {
        const std::int64_t begin = chunk * kChunkTokens;
        const std::int64_t end =
            std::min(begin + kChunkTokens, task.position + task.num_positions);
        const std::int32_t* blocks = rows.block_table + task.row * rows.table_stride;
        int count = 0;
        for (std::int64_t key = first_piece(task, begin); key < end; key += kPieceTokens, ++count) {
            const std::int64_t at = blocks[key / kv.block_size] * kv.block_stride +
                                    task.head * kv.head_stride +
                                    key % kv.block_size * kv.head_dim;
            k[count] = static_cast<const char*>(kv.k) + at * geometry.element;
            if (v != nullptr) v[count] = static_cast<const char*>(kv.v) + at * geometry.element;
        }
        return count;
    }

    // Values of heads of 16, which are less than the columns of a panel, copied to `memory` so that
    // there is room behind each row.
    void widen(int count, const void** v, char* memory) const {
        const std::size_t row = static_cast<std::size_t>(kPanelColumns) * 4;
        for (int i = 0; i < count; ++i) {
            const char* from = static_cast<const char*>(v[i]);
            v[i] = memory;
            for (std::size_t at = 0; at < geometry.v_piece_bytes; at += row, from += row / 2) {
                std::memcpy(memory + at, from, row / 2);
            }
            memory += geometry.v_piece_bytes;
        }
    }

    // Pieces as `pieces` gives them, of plain tiles: copied to `memory` in the form of panels.
    int gather(const Task& task, std::int64_t chunk, char* memory, const void** k,
               const void** v) const {
        const std::int64_t begin = chunk * kChunkTokens;
        const std::int64_t end =
            std::min(begin + kChunkTokens, task.position + task.num_positions);
        const std::int32_t* blocks = rows.block_table + task.row * rows.table_stride;
        int count = 0;
        for (std::int64_t key = first_piece(task, begin); key < end; ++count) {
            char* k_piece = memory;
            char* v_piece = memory + geometry.k_piece_bytes;
            memory = v_piece + geometry.v_piece_bytes;
            k[count] = k_piece;
            v[count] = v_piece;
            const std::int64_t piece_end = std::min(key + kPieceTokens, end);
            while (key < piece_end) {
                const std::int64_t in_block = key % kv.block_size;
                AttentionGather part;
                part.dtype = kv.dtype;
                part.head_dim = kv.head_dim;
                part.columns = geometry.columns;
                part.tokens = static_cast<int>(std::min(piece_end - key, kv.block_size - in_block));
                part.offset = static_cast<int>(key % kPieceTokens);
                part.token_stride = kv.token_stride;
                const std::int64_t at = blocks[key / kv.block_size] * kv.block_stride +
                                        task.head * kv.head_stride + in_block * kv.token_stride;
                part.k = static_cast<const char*>(kv.k) + at * geometry.element;
                part.v = static_cast<const char*>(kv.v) + at * geometry.element;
                part.k_piece = k_piece;
                part.v_piece = v_piece;
                attention_kernels().gather(part);
                key += part.tokens;
            }
        }
        return count;
    }

    // The result of one chunk; `next`: what this thread will do after it, or null.
    void attend(const Task& task, std::int64_t chunk, const char* q, char* memory,
                const AttentionResult& result, const Task* next, std::int64_t next_chunk) const {
        const void* k[kChunkPieces];
        const void* v[kChunkPieces];
        const void* next_k[kChunkPieces];
        AttentionChunk piece;
        piece.dtype = kv.dtype;
        piece.head_dim = kv.head_dim;
        piece.rows = rows_of(task);
        piece.group = args.group;
        piece.position = task.position;
        piece.window = args.window;
        piece.scale = args.scale;
        piece.soft_cap = args.soft_cap;
        piece.q = q;
        piece.first_key = first_piece(task, chunk * kChunkTokens);
        piece.num_pieces =
            kv.panels ? pieces(task, chunk, k, v) : gather(task, chunk, memory, k, v);
        if (kv.panels && geometry.gathers) widen(piece.num_pieces, v, memory);
        piece.k = k;
        piece.v = v;
        piece.columns = geometry.columns;
        piece.next_k = next_k;
        if (next != nullptr && kv.panels) {
            piece.num_next = pieces(*next, next_chunk, next_k, nullptr);
        }
        piece.result = result;
        attention_kernels().attend(piece);
    }

    void finish(const Task& task, const AttentionResult& result) const {
        const int num_rows = rows_of(task);
        AttentionFinish out;
        out.dtype = kv.dtype;
        out.head_dim = kv.head_dim;
        out.rows = num_rows;
        out.group = args.group;
        out.columns = geometry.columns;
        out.result = result;
        const std::int64_t at = task.token * args.ld_out +
                                static_cast<std::int64_t>(task.head) * args.group * kv.head_dim;
        out.out = static_cast<char*>(args.out) + at * geometry.element;
        out.ld_out = args.ld_out;
        attention_kernels().finish(out);
        if (args.lse == nullptr) return;
        constexpr float kLn2 = 0.693147180559945309f;
        const std::int64_t heads = static_cast<std::int64_t>(kv.num_heads) * args.group;
        for (int r = 0; r < num_rows; ++r) {
            args.lse[(task.token + r / args.group) * heads + task.head * args.group +
                     r % args.group] = result.highest[r] * kLn2 + std::log(result.sum[r]);
        }
    }

    void merge(const Task& task, const AttentionResult& into, const AttentionResult& from) const {
        attention_kernels().merge(rows_of(task), geometry.columns, into, from);
    }

private:
    // Pieces before the window are left out.
    std::int64_t first_piece(const Task& task, std::int64_t begin) const {
        if (args.window <= 0) return begin;
        const std::int64_t first_key = std::max<std::int64_t>(0, task.position + 1 - args.window);
        return std::max(begin, first_key / kPieceTokens * kPieceTokens);
    }
};

// Tasks one by one, each by one thread.
void attend_tasks(Team& team, const Call& call, const AttentionScratch& own) {
    const std::int64_t count = call.num_tasks();
    // Pieces of the loop long enough that what comes next is mostly known, for prefetching.
    const std::int64_t grain =
        std::max<std::int64_t>(1, std::min<std::int64_t>(4 * call.kv.num_heads,
                                                         count / (8 * team.size())));
    team.share(count, grain, [&](std::int64_t begin, std::int64_t end) {
        Task next = call.task(begin);
        for (std::int64_t index = begin; index < end; ++index) {
            const Task task = next;
            next = index + 1 < end ? call.task(index + 1) : Task{};
            if (task.num_positions == 0) continue;
            const int rows = call.rows_of(task);
            const AttentionResult result = result_at(own.first, rows);
            const AttentionResult more = result_at(own.second, rows);
            call.pack_q(task, own.q);
            for (std::int64_t c = 0; c < task.num_chunks; ++c) {
                const std::int64_t chunk = task.first_chunk + c;
                const bool last = c + 1 == task.num_chunks;
                const Task* following = !last ? &task : next.num_positions > 0 ? &next : nullptr;
                call.attend(task, chunk, own.q, own.pieces, c == 0 ? result : more, following,
                            last ? next.first_chunk : chunk + 1);
                if (c > 0) call.merge(task, result, more);
            }
            call.finish(task, result);
        }
    });
}

// Few tasks over many keys: chunks are shared out, their results kept in slots and merged in the same
// order as above, so the result is the same bits. In rounds of as many chunks as there are slots; the
// one task that a round's end may cut leaves what it has for the next.
void attend_split(Team& team, const Call& call, void* scratch, int task_rows) {
    const AttentionGeometry& geometry = call.geometry;
    const std::int64_t num_tasks = call.num_tasks();
    const std::size_t slot_bytes = geometry.bytes_of_result(task_rows);
    const std::int64_t slots_per_thread =
        static_cast<std::int64_t>(geometry.slots_bytes / slot_bytes);
    const std::int64_t num_slots = slots_per_thread * team.size();
    auto slot = [&](std::int64_t index, int rows) {
        const AttentionScratch owner(scratch, static_cast<int>(index / slots_per_thread), geometry);
        return result_at(owner.slots + index % slots_per_thread * slot_bytes, rows);
    };
    const AttentionScratch own(scratch, team.index(), geometry), shared(scratch, 0, geometry);

    std::int64_t num_items = 0;
    for (std::int64_t t = 0; t < num_tasks; ++t) num_items += call.task(t).num_chunks;
    for (std::int64_t start = 0, round = 0; start < num_items; start += num_slots, ++round) {
        const std::int64_t stop = std::min(start + num_slots, num_items);
        team.share(stop - start, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t index = begin; index < end; ++index) {
                std::int64_t t = 0, chunk = start + index;
                Task task = call.task(0);
                while (chunk >= task.num_chunks) {
                    chunk -= task.num_chunks;
                    task = call.task(++t);
                }
                call.pack_q(task, own.q);
                const bool goes_on = chunk + 1 < task.num_chunks;
                call.attend(task, task.first_chunk + chunk, own.q, own.pieces,
                            slot(index, call.rows_of(task)), goes_on ? &task : nullptr,
                            task.first_chunk + chunk + 1);
            }
        });
        char* const carried = round % 2 == 0 ? shared.first : shared.second;
        char* const carry = round % 2 == 0 ? shared.second : shared.first;
        std::int64_t first_item = 0;  // of task t
        std::int64_t t = 0;
        team.share(num_tasks, 1, [&](std::int64_t begin, std::int64_t) {
            for (; t < begin; ++t) first_item += call.task(t).num_chunks;
            const Task task = call.task(begin);
            const std::int64_t last_item = first_item + task.num_chunks;
            const std::int64_t from = std::max(first_item, start), to = std::min(last_item, stop);
            if (from >= to) return;
            const int rows = call.rows_of(task);
            const bool fresh = from == first_item;
            const AttentionResult result =
                fresh ? slot(from - start, rows) : result_at(carried, rows);
            for (std::int64_t item = fresh ? from + 1 : from; item < to; ++item) {
                call.merge(task, result, slot(item - start, rows));
            }
            if (to == last_item) {
                call.finish(task, result);
            } else {
                std::memcpy(carry, result.highest, geometry.bytes_of_result(rows));
            }
        });
    }
}

}  // namespace

bool attention_supports(const KvView& view) {
    return view.head_dim >= 16 && view.head_dim <= 256 && view.head_dim % 16 == 0 &&
           view.block_size >= 1 && (!view.panels || view.block_size % kPieceTokens == 0);
}

std::size_t attention_scratch_bytes(const KvView& view, int group) {
    return AttentionGeometry(view, group).bytes();
}

void attention(Team& team, const Attention& args, const AttentionRows& rows, const KvView& kv,
               void* scratch) {
    const Call call{args, rows, kv, AttentionGeometry(kv, args.group)};
    const std::int64_t num_tasks = call.num_tasks();
    std::int64_t most_queries = 0, most_keys = 0;
    if (num_tasks < kTasksPerThread * team.size()) {
        for (std::int64_t row = 0; row < rows.num_rows; ++row) {
            const std::int64_t queries = rows.cu_seqlens_q[row + 1] - rows.cu_seqlens_q[row];
            if (queries == 0) continue;
            most_queries = std::max(most_queries, queries);
            most_keys = std::max(most_keys, rows.seq_lens[row]);
        }
    }
    const std::int64_t task_rows =
        std::min<std::int64_t>(most_queries, call.geometry.positions) * args.group;
    if (team.size() > 1 && most_keys > kChunkTokens &&
        task_rows <= std::max(kTaskRows, args.group)) {
        attend_split(team, call, scratch, static_cast<int>(task_rows));
    } else {
        attend_tasks(team, call, AttentionScratch(scratch, team.index(), call.geometry));
    }
}

}  // namespace seesaw
