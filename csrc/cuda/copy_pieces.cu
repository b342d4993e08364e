// Many pieces of memory, each of evenly spaced rows, copied in one launch: slices of weights within
// a GPU, or between it and page-locked memory of the host. No piece may overlap a target.
//
// Bytes: each read once and written once. Work is cut into chunks of at most CHUNK bytes of a row;
// blocks go round the chunks, so that one long piece does not wait behind many short ones.

struct Piece {
    unsigned long long target, source;              // addresses
    unsigned long long target_pitch, source_pitch;  // bytes from row to row
    unsigned long long row_bytes;
    unsigned long long first_chunk;  // of all; rows of a piece have equally many
};

#define CHUNK 32768ull

template <typename Word>
__device__ void copy_words(char* target, const char* source, unsigned int bytes) {
    constexpr int AT_ONCE = 4;  // loads under way in each thread
    const unsigned int words = bytes / sizeof(Word);
    Word* to = reinterpret_cast<Word*>(target);
    const Word* from = reinterpret_cast<const Word*>(source);
    for (unsigned int start = threadIdx.x; start < words; start += AT_ONCE * blockDim.x) {
        Word word[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const unsigned int at = start + i * blockDim.x;
            if (at < words) word[i] = from[at];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const unsigned int at = start + i * blockDim.x;
            if (at < words) to[at] = word[i];
        }
    }
    for (unsigned int i = words * sizeof(Word) + threadIdx.x; i < bytes; i += blockDim.x) {
        target[i] = source[i];
    }
}

// `pieces` has one entry more than there are, whose first_chunk is the number of all chunks.
extern "C" __global__ void copy_pieces(const Piece* pieces, int num_pieces) {
    const unsigned long long num_chunks = pieces[num_pieces].first_chunk;
    for (unsigned long long chunk = blockIdx.x; chunk < num_chunks; chunk += gridDim.x) {
        int low = 0, high = num_pieces - 1;  // the last piece that begins at or before `chunk`
        while (low < high) {
            const int middle = (low + high + 1) / 2;
            if (pieces[middle].first_chunk <= chunk) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        const Piece piece = pieces[low];
        const unsigned long long per_row = (piece.row_bytes + CHUNK - 1) / CHUNK;
        const unsigned long long row = (chunk - piece.first_chunk) / per_row;
        const unsigned long long start = (chunk - piece.first_chunk) % per_row * CHUNK;
        const unsigned long long left = piece.row_bytes - start;
        const unsigned int bytes = static_cast<unsigned int>(left < CHUNK ? left : CHUNK);
        char* target = reinterpret_cast<char*>(piece.target + row * piece.target_pitch + start);
        const char* source =
            reinterpret_cast<const char*>(piece.source + row * piece.source_pitch + start);
        const unsigned long long both = reinterpret_cast<unsigned long long>(target) |
                                        reinterpret_cast<unsigned long long>(source);
        if (both % 16 == 0) {
            copy_words<uint4>(target, source, bytes);
        } else if (both % 4 == 0) {
            copy_words<unsigned int>(target, source, bytes);
        } else {
            copy_words<char>(target, source, bytes);
        }
    }
}
