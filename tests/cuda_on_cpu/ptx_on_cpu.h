// The functions of csrc/cuda/ptx.cuh on the machine of machine.h. Their meaning is documented there.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

namespace rnnfast {
namespace cuda {

template <class S>
S& shared_memory() {
  cuda_on_cpu::check_access(cuda_on_cpu::shared_bytes() + (sizeof(S) - 1), 1, true, "shared_memory");
  return *reinterpret_cast<S*>(cuda_on_cpu::shared_bytes());
}

namespace ptx {

using cuda_on_cpu::kLanes;

// ---- numbers ---------------------------------------------------------------------------------------

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float as_float(uint32_t bits) { return bits_as<float>(bits); }
inline uint32_t as_bits(float x) { return bits_as<uint32_t>(x); }

inline uint32_t round_bf16(float x) {
  const uint32_t bits = as_bits(x);
  if (x != x) return 0x7fff;  // the canonical NaN
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t round_f16(float x) {
  if (x != x) return 0x7fff;
  const uint32_t sign = as_bits(x) >> 16 & 0x8000;
  const float a = fabsf(x);
  if (a >= 65520.0f) return sign | 0x7c00;
  // Adding 2^(e+13) * 1.5 leaves a multiple of the half's last place, rounded to nearest even.
  const int exponent = a < 6.103515625e-5f ? -14 : ilogbf(a);
  const float place = ldexpf(1.0f, exponent - 10);
  const auto steps = uint32_t(nearbyintf(a / place));  // exact division by a power of two
  return sign | (a < 6.103515625e-5f ? steps : (uint32_t(exponent + 15) << 10) + steps - 1024);
}
inline uint32_t pack_bf16(float lower, float upper) { return round_bf16(lower) | round_bf16(upper) << 16; }
inline uint32_t pack_f16(float lower, float upper) { return round_f16(lower) | round_f16(upper) << 16; }
inline float unpack_f16(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  float a;
  if (exponent == 31) {
    a = mantissa ? NAN : INFINITY;
  } else {
    a = exponent ? ldexpf(float(mantissa + 1024), exponent - 25) : ldexpf(float(mantissa), -24);
  }
  return half & 0x8000 ? -a : a;
}
inline float unpack_bf16(uint16_t half) { return as_float(uint32_t(half) << 16); }

inline uint32_t round_tf32(float x) {  // to nearest, ties away from zero
  const uint32_t bits = as_bits(x);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
}
// As coarse as the hardware's: its result is rounded to 12 bits.
inline float tanh_approx(float x) {
  const float y = tanhf(x);
  return y != y ? y : as_float((as_bits(y) + 0x800) & ~0xfffu);
}
inline float exp2_approx(float x) { return exp2f(x); }
inline float rcp_approx(float x) { return 1.0f / x; }

// ---- plain memory ----------------------------------------------------------------------------------

template <class V>
V load(const void* address) {
  cuda_on_cpu::check_access(address, sizeof(V), false, "load");
  return *static_cast<const V*>(address);
}
template <class V>
void store(void* address, V value) {
  cuda_on_cpu::check_access(address, sizeof(V), false, "store");
  *static_cast<V*>(address) = value;
  cuda_on_cpu::stored();
}

template <class V>
void store_if(bool wanted, V* to, std::common_type_t<V> value) {
  if (wanted) store(to, value);
}

inline void prefetch(const void*) {}

// ---- copies ----------------------------------------------------------------------------------------

inline void copy_if(bool wanted, void* to, const void* from, bool real) {
  if (!wanted) return;
  cuda_on_cpu::check_access(to, 16, true, "copy_if");
  if (real) cuda_on_cpu::check_access(from, 16, false, "copy_if");
  cuda_on_cpu::copy_later(to, real ? from : nullptr);
}
inline void copy_commit() { cuda_on_cpu::close_copies(); }
template <int kPending>
void copy_wait() {
  cuda_on_cpu::settle_copies(kPending);
}

// ---- a block and its warps -------------------------------------------------------------------------

inline void sync_block() { cuda_on_cpu::barrier(); }
inline void sync_warp() {
  cuda_on_cpu::meet("sync_warp", nullptr, [](void* const*) {});
}

template <class T>
struct Exchange {
  T value;
  int lane;  // whose value to take
  T result;
};
template <class T>
T exchange(const char* what, T value, int lane) {
  Exchange<T> mine{value, lane, T()};
  cuda_on_cpu::meet(what, &mine, [](void* const* lanes) {
    for (int i = 0; i < kLanes; ++i) {
      auto* e = static_cast<Exchange<T>*>(lanes[i]);
      e->result = static_cast<const Exchange<T>*>(lanes[e->lane % kLanes])->value;
    }
  });
  return mine.result;
}
inline int lane() { return int(threadIdx.x % kLanes); }
inline float shuffle_xor(float x, int lanes) { return exchange("shuffle_xor", x, lane() ^ lanes); }
inline double shuffle_xor(double x, int lanes) { return exchange("shuffle_xor", x, lane() ^ lanes); }
inline uint32_t shuffle_xor(uint32_t x, int lanes) { return exchange("shuffle_xor", x, lane() ^ lanes); }
inline uint32_t shuffle(uint32_t x, int lane) { return exchange("shuffle", x, lane); }
inline bool any_in_warp(bool predicate) {
  struct Vote {
    bool mine, result;
  } vote{predicate, false};
  cuda_on_cpu::meet("any_in_warp", &vote, [](void* const* lanes) {
    bool any = false;
    for (int i = 0; i < kLanes; ++i) any |= static_cast<Vote*>(lanes[i])->mine;
    for (int i = 0; i < kLanes; ++i) static_cast<Vote*>(lanes[i])->result = any;
  });
  return vote.result;
}

// ---- matrices over a warp --------------------------------------------------------------------------

struct Rows {
  const void* row;
  uint32_t* r;
};
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  cuda_on_cpu::check_access(row, 16, true, "ldmatrix");
  Rows mine{row, r};
  cuda_on_cpu::meet("ldmatrix", &mine, [](void* const* lanes) {
    const auto element = [&](int matrix, int row, int column) {
      return uint32_t(static_cast<const uint16_t*>(static_cast<Rows*>(lanes[8 * matrix + row])->row)[column]);
    };
    for (int i = 0; i < 4; ++i)
      for (int g = 0; g < 8; ++g)
        for (int q = 0; q < 4; ++q)
          static_cast<Rows*>(lanes[4 * g + q])->r[i] = element(i, 2 * q, g) | element(i, 2 * q + 1, g) << 16;
  });
}

inline uint32_t movmatrix(uint32_t pair) {
  cuda_on_cpu::meet("movmatrix", &pair, [](void* const* lanes) {
    uint16_t in[8][8];
    for (int g = 0; g < 8; ++g)
      for (int q = 0; q < 4; ++q) memcpy(&in[g][2 * q], lanes[4 * g + q], 4);
    for (int g = 0; g < 8; ++g)
      for (int q = 0; q < 4; ++q) {
        const uint16_t out[2] = {in[2 * q][g], in[2 * q + 1][g]};
        memcpy(lanes[4 * g + q], out, 4);
      }
  });
  return pair;
}

struct Fragments {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

inline void add_product(void* const* lanes, const float (&a)[16][16], const float (&b)[16][8], int K) {
  for (int g = 0; g < 8; ++g)
    for (int q = 0; q < 4; ++q) {
      float* c = static_cast<Fragments*>(lanes[4 * g + q])->c;
      for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i / 2), column = 2 * q + i % 2;
        float sum = c[i];
        for (int k = 0; k < K; ++k) sum += a[row][k] * b[k][column];
        c[i] = sum;
      }
    }
}

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments mine{c, a, {b0, b1}};
  cuda_on_cpu::meet("mma", &mine, [](void* const* lanes) {
    const auto number = [](uint32_t word, int half) {
      const auto bits = uint16_t(word >> 16 * half);
      return std::is_same<T, bf16>::value ? unpack_bf16(bits) : unpack_f16(bits);
    };
    float a[16][16], b[16][8];
    for (int g = 0; g < 8; ++g)
      for (int q = 0; q < 4; ++q) {
        const auto* f = static_cast<const Fragments*>(lanes[4 * g + q]);
        for (int half = 0; half < 2; ++half) {
          for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][2 * q + 8 * (i / 2) + half] = number(f->a[i], half);
          for (int i = 0; i < 2; ++i) b[2 * q + 8 * i + half][g] = number(f->b[i], half);
        }
      }
    add_product(lanes, a, b, 16);
  });
}

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments mine{c, a, {b0, b1}};
  cuda_on_cpu::meet("mma_tf32", &mine, [](void* const* lanes) {
    const auto number = [](uint32_t word) { return as_float(word & ~0x1fffu); };  // the hardware looks at 19 bits
    float a[16][16], b[16][8];
    for (int g = 0; g < 8; ++g)
      for (int q = 0; q < 4; ++q) {
        const auto* f = static_cast<const Fragments*>(lanes[4 * g + q]);
        for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][q + 4 * (i / 2)] = number(f->a[i]);
        for (int i = 0; i < 2; ++i) b[q + 4 * i][g] = number(f->b[i]);
      }
    add_product(lanes, a, b, 8);
  });
}

// ---- global memory between blocks ------------------------------------------------------------------

template <class V>
V load_relaxed(const V* p) {
  cuda_on_cpu::check_access(p, sizeof(V), false, "load_relaxed");
  cuda_on_cpu::give_way();
  return *p;
}
template <class V>
void store_relaxed(V* p, std::common_type_t<V> v) {
  cuda_on_cpu::check_access(p, sizeof(V), false, "store_relaxed");
  uint32_t words[sizeof(V) / 4];
  memcpy(words, &v, sizeof v);
  for (size_t i = 0; i < sizeof(V) / 4; ++i) cuda_on_cpu::store_later(reinterpret_cast<uint32_t*>(p) + i, words[i]);
}
inline uint32_t load_acquire(const uint32_t* p) { return load_relaxed(p); }
inline uint32_t atomic_add(uint32_t* p, uint32_t v) {
  const uint32_t before = *p;
  *p += v;
  cuda_on_cpu::stored();
  return before;
}
inline void fence_device() { cuda_on_cpu::settle_own_stores(); }

inline uint64_t nanoseconds() { return cuda_on_cpu::ticks(); }

}  // namespace ptx
}  // namespace cuda
}  // namespace rnnfast
