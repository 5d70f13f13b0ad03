// All intrinsics and inline assembly of the kernels. On a device they are the functions below; g++ compiles functions
// of the same names and meaning from tests/cuda_on_cpu instead.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace rnnfast {
namespace cuda {
struct bf16;
struct f16;
}  // namespace cuda
}  // namespace rnnfast

#if !defined(__CUDACC__)
#include <ptx_on_cpu.h>
#else

namespace rnnfast {
namespace cuda {

// The block's shared memory, laid out as the struct S. Its size is given at the launch.
template <class S>
__device__ __forceinline__ S& shared_memory() {
  extern __shared__ __align__(128) unsigned char rnnfast_shared_bytes[];
  return *reinterpret_cast<S*>(rnnfast_shared_bytes);
}

namespace ptx {

#define PTX __device__ __forceinline__

// ---- numbers ---------------------------------------------------------------------------------------

PTX float as_float(uint32_t bits) { return __uint_as_float(bits); }
PTX uint32_t as_bits(float x) { return __float_as_uint(x); }

PTX uint32_t pack_bf16(float lower, float upper) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(upper), "f"(lower));
  return word;
}
PTX uint32_t pack_f16(float lower, float upper) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(upper), "f"(lower));
  return word;
}
PTX float unpack_f16(uint16_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}
// The nearest float with TF32's 10 bits of mantissa; the tensor cores ignore the other 13.
PTX uint32_t round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
PTX float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PTX float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PTX float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- plain memory ----------------------------------------------------------------------------------

// V is a vector type, whose address must be a multiple of its size.
template <class V>
PTX V load(const void* address) {
  return *static_cast<const V*>(address);
}
template <class V>
PTX void store(void* address, V value) {
  *static_cast<V*>(address) = value;
}

PTX void store_if(bool wanted, uint32_t* to, uint32_t v) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p st.global.b32 [%0], %1; }" ::"l"(to), "r"(v), "r"(int(wanted))
               : "memory");
}
PTX void store_if(bool wanted, uint2* to, uint2 v) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0; @p st.global.v2.b32 [%0], {%1, %2}; }" ::"l"(to), "r"(v.x),
               "r"(v.y), "r"(int(wanted))
               : "memory");
}
PTX void store_if(bool wanted, uint4* to, uint4 v) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0; @p st.global.v4.b32 [%0], {%1, %2, %3, %4}; }" ::"l"(to),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(int(wanted))
               : "memory");
}

// Starts fetching the line of `address` into L2 and does not wait.
PTX void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// ---- asynchronous copies from global to shared memory ----------------------------------------------

// Copies 16 bytes if `wanted`; both addresses are aligned. Unless `real`, zeros are written and `from` is not read. A
// copy belongs to the group that its thread commits next. The condition is a predicate in the assembly, here and in
// store_if, because the compiler makes a branch of it, about 20 cycles each in a step of 250.
PTX void copy_if(bool wanted, void* to, const void* from, bool real) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0; @p cp.async.cg.shared.global [%0], [%1], 16, %2; }" ::"r"(
                   uint32_t(__cvta_generic_to_shared(to))),
               "l"(from), "r"(real ? 16 : 0), "r"(int(wanted))
               : "memory");
}
PTX void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all of the thread's groups but the youngest kPending have arrived.
template <int kPending>
PTX void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- a block and its warps -------------------------------------------------------------------------

PTX void sync_block() { __syncthreads(); }
PTX void sync_warp() { __syncwarp(); }
PTX float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(~0u, x, lanes); }
PTX double shuffle_xor(double x, int lanes) { return __shfl_xor_sync(~0u, x, lanes); }
PTX uint32_t shuffle_xor(uint32_t x, int lanes) { return __shfl_xor_sync(~0u, x, lanes); }
PTX uint32_t shuffle(uint32_t x, int lane) { return __shfl_sync(~0u, x, lane); }
PTX bool any_in_warp(bool predicate) { return __any_sync(~0u, predicate); }

// ---- matrices of 16-bit elements over a warp; lane = 4 g + q ---------------------------------------

// Four 8x8 matrices from shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned) and
// gets, of matrix i, elements [2q][g] and [2q + 1][g] in r[i].
PTX void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
// Transposes an 8x8 matrix that is spread over the warp: in [g][2q, 2q + 1], out [2q, 2q + 1][g].
PTX uint32_t movmatrix(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

// c[16, 8] += a[16, 16] b[16, 8].
//   a[0], a[1]: rows g, g + 8, columns 2q, 2q + 1;  a[2], a[3]: the same rows, columns 2q + 8, 2q + 9
//   b0, b1: rows 2q, 2q + 1 and 2q + 8, 2q + 9 of column g
//   c[0], c[1]: row g, columns 2q, 2q + 1;  c[2], c[3]: row g + 8
template <class T>
PTX void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
PTX void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
PTX void mma<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c[16, 8] += a[16, 8] b[8, 8] in TF32.
//   a[0], a[1]: rows g, g + 8, column q;  a[2], a[3]: the same rows, column q + 4
//   b0, b1: rows q and q + 4 of column g;  c as above
PTX void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- global memory between blocks ------------------------------------------------------------------

// Relaxed accesses of device scope go to L2, never to a stale line of L1. Single 32-bit words do not tear.
PTX uint32_t load_relaxed(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
PTX uint2 load_relaxed(const uint2* p) {
  uint2 v;
  asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
PTX uint4 load_relaxed(const uint4* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
PTX void store_relaxed(uint32_t* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
PTX void store_relaxed(uint2* p, uint2 v) {
  asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y) : "memory");
}
PTX void store_relaxed(uint4* p, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
PTX uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
PTX uint32_t atomic_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
PTX void fence_device() { __threadfence(); }

// ---- time ------------------------------------------------------------------------------------------

// Nanoseconds since some moment, the same for all blocks; for bounds on waiting. Steps may be as coarse as a
// microsecond.
PTX uint64_t nanoseconds() {
  uint64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

#undef PTX

}  // namespace ptx
}  // namespace cuda
}  // namespace rnnfast
#endif
