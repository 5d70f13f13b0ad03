// The product outside the recurrence, c = a b + bias0 + bias1: the input projection of many steps at once, and the
// gradient of the input.
//
// It is a plain GEMM of our own because a vendor library chooses its order of summation, and with it the last bits, by
// shape and number of threads. Here every element is summed in the order of the tile, so that a sequence gets the same
// result in any batch and on any number of threads. MKL's product of 2048^3 reaches 68% of the FMA peak on two threads
// of Zen 4, 88% on two of Zen 1; this one reaches 86% at B = 64, H = 1024 on Zen 1.
#pragma once

#include "prefetch.h"
#include "reading.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Bytes of `a` that are multiplied by one panel before the next panel is fetched. As many bytes of the next block are
// being prefetched meanwhile. At H = 1024 the weight comes from the shared cache, and a tile of 12 x 2 runs at 151, 190
// and 200 GF/s with blocks of 12, 48 and 96 rows.
constexpr int64_t kBlockBytes = 256 * 1024;
// If all of `a` is no larger than this and threads share the columns, each panel is packed, used and dropped: a packed
// weight would be written to the shared cache and read back from it. On Zen 3, R = 35, 60 and 100 at H = 1024 went from
// 71, 76 and 79 to 75, 80 and 82% of the FMA peak, R = 100 at H = 512 from 82 to 86.
constexpr int64_t kAtOnceBytes = 512 * 1024;
constexpr int64_t kFewRows = 16;     // up to this many, rows of a are not copied
constexpr int64_t kFewColumns = 64;  // up to this many, neither

// Whether rows of K values can be read as units without conversion.
template <class S>
constexpr bool are_units(int64_t K) {
  return kPerUnit<S> == 1 ? !kNarrow<S> : K % kPerUnit<S> == 0;
}

// Whether a tile's rows of K units, one after the other in memory, fall into the same sets of the nearest cache, which
// has 8 or 12 ways. Tall tiles have more rows than ways. With the rows copied an odd number of lines apart, K = 1024
// went from 82 to 92% of the FMA peak and K = 2048 from 63 to 83 (two threads of Zen 4).
template <class U>
constexpr bool compete(int64_t K) {
  return kMaxRows > 8 && K > 0 && K * int64_t(sizeof(U)) % 4096 == 0;
}

// Copies rows [0, count) of a [.., K] in units, `ld` units from one to the next.
template <class S>
INLINE void copy_units(const S* a, int64_t count, int64_t K, Unit<S>* copy, int64_t ld) {
  if constexpr (kPerUnit<S> == 1) {
    if (ld == K) return copy_lanes(a, count * K, copy);
    for (int64_t r = 0; r < count; ++r) copy_lanes(a + r * K, K, copy + r * ld);
  } else {
    for (int64_t r = 0; r < count; ++r, a += K, copy += ld)
      for (int64_t k = 0, at = 0; k < K; k += kPerUnit<S>) copy[at++] = unit_at(a + k, K - k);
  }
}

inline ThreadGrid plan_gemm(int64_t R, int64_t K, int64_t N, int threads) {
  const int members = team_size(R * K * N, threads);
  return R >= N ? ThreadGrid{members, 1} : ThreadGrid{1, members};  // cut the longer side
}

// What all rows are multiplied by: b = w^T ([N, K] given) or b = w ([K, N] given).
template <class S>
struct Factor {
  const S* w;  // [N, K] if transposed, else [K, N]
  bool transposed;
  int64_t N, K;
  const S* bias0 = nullptr;  // [N], or null
  const S* bias1 = nullptr;  // [N], or null
};

// A product whose rows come all at once or, `again` and again, at most R at a time; b is then packed once.
template <class S>
class Gemm {
  using C = Compute<S>;
  using U = Unit<S>;

 public:
  Gemm(const Factor<S>& factor, int64_t R, bool again, int threads)
      : factor_(factor),
        KU_(units<S>(factor.K)),
        grid_(plan_gemm(R, factor.K, factor.N, threads)),
        matrix_{factor.w, factor.transposed, factor.K, factor.N},
        reading_(plan_reading(R, again)),
        columns_(columns_for(matrix_, reading_, (R + grid_.rows - 1) / grid_.rows)),
        block_rows_(reading_ == Reading::kPacked ? block_rows(KU_) : R),
        apart_(compete<U>(KU_) && R > kFewRows && factor.N > kFewColumns),
        copied_(apart_ || !are_units<S>(factor.K)),
        ld_(KU_ + (apart_ ? 64 / int64_t(sizeof(U)) : 0)),
        room_(block_rows_ < R ? block_rows_ : R),
        own_(panel_width() * (reading_ == Reading::kByPanel || KU_ < kChunk ? KU_ : kChunk)),
        weight_(reading_ == Reading::kPacked ? columns_.padded() * KU_ : grid_.size() * own_),
        bias_(columns_.padded()),
        copies_(copied_ ? grid_.size() * room_ * ld_ : 0) {
    if (!*this) return;
    const S *bias0 = factor.bias0, *bias1 = factor.bias1;
    for (int64_t j = 0; j < columns_.padded(); ++j)
      bias_.get()[j] =
          (j < factor.N && bias0 ? widen(bias0[j]) : C(0)) + (j < factor.N && bias1 ? widen(bias1[j]) : C(0));
  }

  explicit operator bool() const { return weight_ && bias_ && copies_; }

  // Packs b, where it is packed for all rows.
  void prepare() { multiply(nullptr, 0, nullptr, 0, false); }

  // c = a b + bias or, with `add`, c += that, rounded before it is added as that of a tensor would be.
  void multiply(const S* a,       // [R, K]
                int64_t R, S* c,  // [R, N], rows `ldc` apart
                int64_t ldc, bool add) {
    Barrier packed;
    run_team(grid_, [&](int id, ThreadGrid g) {
      const Range vectors = share(columns_.vectors(), columns_.width, g.col(id), g.cols);
      if (reading_ == Reading::kPacked && !packed_) {
        const Range part = share(vectors.size(), columns_.width, g.row(id), g.rows);
        columns_.each_panel(vectors.begin + part.begin, vectors.begin + part.end, [&](int64_t column, int width) {
          matrix_.pack(0, matrix_.K, column, width, weight_.get() + column * KU_);
        });
        packed.wait(g.size());
      }
      if (add)
        multiply_rows<true>(a, share(R, max_rows(2), g.row(id), g.rows), vectors, id, c, ldc);
      else
        multiply_rows<false>(a, share(R, max_rows(2), g.row(id), g.rows), vectors, id, c, ldc);
    });
    packed_ = true;
  }

 private:
  Reading plan_reading(int64_t R, bool again) const {
    if (again) return Reading::kPacked;
    const Reading reading = choose_reading(matrix_, grid_, 1, R);
    const bool stays = grid_.rows == 1 && R * KU_ * int64_t(sizeof(U)) <= kAtOnceBytes;
    return reading == Reading::kPacked && stays ? Reading::kByPanel : reading;
  }
  static int64_t block_rows(int64_t KU) {
    const int64_t fitting = kBlockBytes / int64_t(sizeof(U)) / (KU > 0 ? KU : 1) / kMaxRows * kMaxRows;
    return fitting > kMaxRows ? fitting : kMaxRows;
  }

  int64_t panel_width() const { return columns_.width * kLanes<C>; }

  // Rows `rows` of the product in `vectors` of its columns, by one thread.
  template <bool add>
  void multiply_rows(const S* a, Range rows, Range vectors, int id, S* c, int64_t ldc) const {
    const int64_t K = factor_.K, N = factor_.N, KU = KU_, ld = ld_;
    PrefetchCursor a_prefetch{[=](int64_t r) { return a + r * K; }, rows.begin, rows.begin, K * int64_t(sizeof(S))};
    for (int64_t begin = rows.begin; begin < rows.end; begin += block_rows_) {
      const int64_t count = rows.end - begin < block_rows_ ? rows.end - begin : block_rows_;
      U* copy = copied_ ? copies_.get() + id * room_ * ld : nullptr;
      if (copied_) copy_units(a + begin * K, count, K, copy, ld);
      const U* block = copied_ ? copy : reinterpret_cast<const U*>(a + begin * K);
      // The next block is prefetched while this one is multiplied by the panels.
      const Tiles tiles({0, count}, max_rows(columns_.width));
      const int64_t tile_products = tiles.count * ((vectors.size() + columns_.width - 1) / columns_.width);
      a_prefetch.next = begin + count;
      a_prefetch.end = begin + count + block_rows_ < rows.end ? begin + count + block_rows_ : rows.end;
      const int64_t lines =
          (a_prefetch.end - a_prefetch.next) * a_prefetch.bytes / 64 / (tile_products > 0 ? tile_products : 1) + 1;
      columns_.each_panel(vectors.begin, vectors.end, [&](int64_t column, int width) {
        U* own = weight_.get() + (reading_ == Reading::kPacked ? column * KU : id * own_);
        if (reading_ == Reading::kByPanel) matrix_.pack(0, K, column, width, own);
        multiply_tiles<Layout::kRows>(
            tiles, [&](Range tile, int64_t k) { return Operand<U>{block + tile.begin * ld + k, ld}; },
            panel_of(matrix_, reading_, column, width, own, own), N, KU,
            [&](Range tile, PrefetchList& prefetches) {
              prefetches.add_rows(c + (begin + tile.begin) * ldc + column, ldc * int64_t(sizeof(S)), tile.size(),
                                  width * kLanes<C> * int64_t(sizeof(S)));
              a_prefetch.add(lines, prefetches);
            },
            [=, bias = bias_.get()](int64_t r, int64_t col, int lanes, Vec<C> sum) {
              S* to = c + (begin + r) * ldc + col;
              sum += load(bias + col);
              if constexpr (add) sum = load_lanes(to, lanes) + round_to<S>(sum);
              store_lanes(to, sum, lanes);
            });
      });
    }
  }

  const Factor<S> factor_;
  const int64_t KU_;
  const ThreadGrid grid_;
  const Matrix<S> matrix_;
  const Reading reading_;
  const Columns<C> columns_;
  const int64_t block_rows_;
  // Rows of a are read in place if they are units and do not compete for cache sets; else they are copied.
  const bool apart_, copied_;
  const int64_t ld_;
  const int64_t room_;  // rows of a that one thread copies at a time
  const int64_t own_;   // units of weight_ that one thread packs at a time, unless all are packed
  const Scratch<U> weight_;
  const Scratch<C> bias_;
  const Scratch<U> copies_;
  bool packed_ = false;
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
