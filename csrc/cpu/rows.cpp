#include "rows.h"

#include <algorithm>

#include "kernels/rows.h"

namespace seesaw {

namespace {

constexpr std::int64_t kLeastNumbers = 4096;
constexpr std::int64_t kMostRows = 32;

// Rows of `size` numbers in a piece of a loop: enough that fetching the next piece costs little,
// few enough that no thread waits long for the last.
std::int64_t grain(Team& team, std::int64_t rows, std::int64_t size) {
    const std::int64_t one = 1;
    const std::int64_t least = std::max(one, kLeastNumbers / std::max(one, size));
    return std::clamp(rows / (8 * team.size()), least, std::max(kMostRows, least));
}

}  // namespace

void rms_norm(Team& team, const RmsNorm& args) {
    const auto kernel = rows_kernels().rms_norm;
    team.share(args.rows, grain(team, args.rows, args.size),
               [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
}

void rope(Team& team, const Rope& args) {
    const auto kernel = rows_kernels().rope;
    team.share(args.tokens, grain(team, args.tokens, args.outer * args.inner * args.head_dim),
               [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
}

void rope_kv(Team& team, const RopeKv& args, const KvView& kv) {
    const auto kernel = rows_kernels().rope_kv;
    const std::int64_t size = kv.num_heads * (args.group + 2) * args.head_step;
    team.share(args.tokens, grain(team, args.tokens, size),
               [&](std::int64_t begin, std::int64_t end) { kernel(args, kv, begin, end); });
}

void kv_write(Team& team, const KvWrite& args, const KvView& kv) {
    const auto kernel = rows_kernels().kv_write;
    const std::int64_t size = std::int64_t{2} * kv.num_heads * kv.head_dim;
    team.share(args.tokens, grain(team, args.tokens, size),
               [&](std::int64_t begin, std::int64_t end) { kernel(args, kv, begin, end); });
}

void gated_activation(Team& team, DType dtype, Activation activation, const void* x,
                      std::int64_t ld_x, std::int64_t rows, std::int64_t size, void* out,
                      std::int64_t ld_out) {
    const auto kernel = rows_kernels().gated;
    const GatedRows args{dtype, activation, x, ld_x, size, out, ld_out};
    team.share(rows, grain(team, rows, 2 * size),
               [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
}

void weighted_sum(Team& team, const WeightedSum& args) {
    const auto kernel = rows_kernels().weighted_sum;
    team.share(args.tokens, grain(team, args.tokens, args.terms * args.size),
               [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
}

namespace {

void embed(Team& team, const EmbedRows& args, std::int64_t tokens) {
    const auto kernel = rows_kernels().embed;
    team.share(tokens, grain(team, tokens, args.size),
               [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
}

}  // namespace

void embed_panels(Team& team, const Linear& table, const std::int64_t* ids, std::int64_t tokens,
                  std::int64_t first, float scale, void* out, std::int64_t ld_out) {
    embed(team,
          {table.dtype, table.panels, nullptr, table.columns, table.depth, ids, first, scale, out,
           ld_out},
          tokens);
}

void embed_rows(Team& team, DType dtype, const void* table, std::int64_t num_rows,
                std::int64_t size, const std::int64_t* ids, std::int64_t tokens,
                std::int64_t first, float scale, void* out, std::int64_t ld_out) {
    embed(team, {dtype, nullptr, table, num_rows, size, ids, first, scale, out, ld_out}, tokens);
}

}  // namespace seesaw
