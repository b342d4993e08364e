// Which instruction set kernels run with: found once, or forced by SEESAW_CPU_ISA or set_isa().
//
// Every file of csrc/cpu/kernels is compiled once for each set, in a namespace of that name, and ends
// in a table of function pointers; SEESAW_KERNELS makes the function that picks one. A kernel file
// includes nothing of the standard library that is a template with code: the linker would keep one
// copy of it for all sets.
//
// Own code in place of Highway or xsimd: with panels of 32 columns all kernels come down to one
// register block (tile.h) and plain loops that compilers vectorise, and neither library is on PyPI,
// from where a build must be able to take what it needs.

#pragma once

namespace seesaw {

enum class Isa { generic, avx2, avx512, avx512bf16 };

// The fastest that this processor has.
Isa best_isa();
// What kernels run with now.
Isa isa();
// Throws std::invalid_argument where this build or processor lacks it. Not while kernels run.
void set_isa(Isa wanted);
const char* isa_name(Isa isa);
// Throws std::invalid_argument for an unknown name.
Isa isa_of(const char* name);

}  // namespace seesaw

// SEESAW_KERNELS(LinearKernels, linear_kernels) declares the tables `<isa>::linear_kernels`, of which
// each kernel file defines its own, and `const LinearKernels& linear_kernels()`.
#if defined(__x86_64__)
#define SEESAW_KERNELS(Type, name)                  \
    namespace generic { extern const Type name; }   \
    namespace avx2 { extern const Type name; }      \
    namespace avx512 { extern const Type name; }    \
    namespace avx512bf16 { extern const Type name; } \
    inline const Type& name() {                     \
        switch (isa()) {                            \
            case Isa::avx512bf16: return avx512bf16::name; \
            case Isa::avx512: return avx512::name;  \
            case Isa::avx2: return avx2::name;      \
            default: return generic::name;          \
        }                                           \
    }
#else
#define SEESAW_KERNELS(Type, name)                \
    namespace generic { extern const Type name; } \
    inline const Type& name() { return generic::name; }
#endif
