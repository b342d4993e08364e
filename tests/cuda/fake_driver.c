/* As much of libcuda as cuda/batch_copy.py calls, with the types of cuda.h of CUDA 12.8; copies are
   done at once. `mode`: "batch", "loop" (an older driver), "refuse" (a device that has no batch
   copies), "fail" (the second copy is an error). */

#include <stdint.h>
#include <string.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;
typedef struct { int type; int id; } CUmemLocation;
typedef struct {
    int srcAccessOrder;
    CUmemLocation srcLocHint;
    CUmemLocation dstLocHint;
    unsigned int flags;
} CUmemcpyAttributes;

int num_batches, num_copies;
const char* mode;

static int mode_is(const char* name) { return strcmp(mode, name) == 0; }

static CUresult batch(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                      CUmemcpyAttributes* attrs, size_t* attrsIdxs, size_t numAttrs,
                      size_t* failIdx, void* stream) {
    if (mode_is("refuse")) return 801;
    if (stream != (void*)0x7777 || numAttrs != 1 || attrsIdxs[0] != 0) return 1;
    if (attrs->srcAccessOrder != 1 || attrs->flags != 1) return 1;
    num_batches++;
    for (size_t i = 0; i < count; i++) {
        if (mode_is("fail") && i == 1) {
            *failIdx = i;
            return 700;
        }
        memcpy((void*)dsts[i], (void*)srcs[i], sizes[i]);
    }
    return 0;
}

CUresult cuGetProcAddress_v2(const char* symbol, void** pfn, int cudaVersion, uint64_t flags,
                             int* symbolStatus) {
    *pfn = 0;
    *symbolStatus = 1;
    if (strcmp(symbol, "cuMemcpyBatchAsync") || flags) return 1;
    /* as of 13000 it has another signature */
    if (mode_is("loop") || cudaVersion != 12080) return 500;
    *pfn = (void*)batch;
    *symbolStatus = 0;
    return 0;
}

CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t size, void* stream) {
    if (stream != (void*)0x7777) return 1;
    num_copies++;
    memcpy((void*)dst, (void*)src, size);
    return 0;
}

CUresult cuGetErrorString(CUresult code, const char** text) {
    *text = code == 700 ? "an illegal memory access was encountered" : "invalid argument";
    return 0;
}
