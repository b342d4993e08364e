/* As much of libcuda as cuda/green_contexts.py calls, with the types of cuda.h of CUDA 12.5. A chip of
   `num_sms` SMs, of which no part has more than `fits_up_to`, in steps of 8. `mode`: "none" (a card
   without green contexts) or "". */

#include <stdint.h>
#include <string.h>

typedef int CUresult;
typedef int CUdevice;
typedef struct { unsigned int smCount; } CUdevSmResource;
typedef struct {
    int type;
    unsigned char internal[92];
    union {
        CUdevSmResource sm;
        unsigned char oversize[48];
    };
} CUdevResource;
_Static_assert(sizeof(CUdevResource) == 144, "as in cuda.h");

typedef struct { unsigned int sms; } Part;

unsigned int num_sms = 132, fits_up_to = 1000;
const char* mode = "";
static Part parts[256];
static int num_parts;
unsigned int sms_of(void* stream) { return ((Part*)stream)->sms; }

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = 40 + ordinal;
    return 0;
}

CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource* resource, int type) {
    if (device != 41 || type != 1) return 1;
    if (strcmp(mode, "none") == 0) return 801;
    memset(resource, 0, sizeof *resource);
    resource->type = 1;
    resource->internal[91] = 7;
    resource->sm.smCount = num_sms;
    return 0;
}

CUresult cuDevSmResourceSplitByCount(CUdevResource* result, unsigned int* nbGroups,
                                     const CUdevResource* input, CUdevResource* remaining,
                                     unsigned int useFlags, unsigned int minCount) {
    if (*nbGroups != 1 || useFlags || input->internal[91] != 7) return 1;
    if (minCount > fits_up_to) return 914; /* CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION */
    *result = *remaining = *input;
    result->sm.smCount = (minCount + 7) / 8 * 8;
    remaining->sm.smCount = input->sm.smCount - result->sm.smCount;
    return 0;
}

CUresult cuDevResourceGenerateDesc(void** description, CUdevResource* resources, unsigned int count) {
    if (count != 1 || resources->internal[91] != 7) return 1;
    parts[num_parts].sms = resources->sm.smCount;
    *description = &parts[num_parts++];
    return 0;
}

CUresult cuGreenCtxCreate(void** context, void* description, CUdevice device, unsigned int flags) {
    if (device != 41 || flags != 1) return 1;
    *context = description;
    return 0;
}

CUresult cuGreenCtxStreamCreate(void** stream, void* context, unsigned int flags, int priority) {
    if (flags != 1 || priority) return 1;
    *stream = context;
    return 0;
}
