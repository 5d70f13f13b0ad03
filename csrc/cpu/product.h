// The product outside the recurrence, c = a b + bias0 + bias1: the input projection of all steps at once, and the
// gradient of the input.
//
// It is a plain GEMM of our own because a vendor library chooses its order of summation, and with it the last bits, by
// shape and number of threads. Here every element is summed in the order of the tile, so that a sequence gets the same
// result in any batch and on any number of threads. MKL's product of 2048^3 reaches 68% of the FMA peak on two threads
// of Zen 4, 88% on two of Zen 1; this one reaches 86% at B = 64, H = 1024 on Zen 1.
#pragma once

#include "../recurrence.h"
#include "ahead.h"
#include "panels.h"

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
constexpr int64_t kFewRows = 16;     // up to this many, a weight that can be read in place is not packed
constexpr int64_t kFewColumns = 64;  // up to this many, rows of a are not copied

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

inline Grid plan_product(int64_t R, int64_t K, int64_t N, int threads) {
  const int team = team_for(R * K * N, threads);
  return R >= N ? Grid{team, 1} : Grid{1, team};  // cut the longer side
}

template <class S>
int product(const ProductArgs& args, int threads) {
  using C = Compute<S>;
  using U = Unit<S>;
  const int64_t R = args.R, N = args.N, K = args.K, KU = units<S>(K);
  const S* a = static_cast<const S*>(args.a);          // [R, K]
  const S* w = static_cast<const S*>(args.w);          // [N, K] or [K, N]
  const S* bias0 = static_cast<const S*>(args.bias0);  // [N], or null
  const S* bias1 = static_cast<const S*>(args.bias1);  // [N], or null
  S* c = static_cast<S*>(args.c);                      // [R, N]

  const Grid grid = plan_product(R, K, N, threads);
  const auto columns = Columns<C>::for_rows(N, (R + grid.rows - 1) / grid.rows);
  const int64_t fitting = kBlockBytes / int64_t(sizeof(U)) / (K > 0 ? KU : 1) / kMaxRows * kMaxRows;
  const bool at_once = grid.rows == 1 && R * KU * int64_t(sizeof(U)) <= kAtOnceBytes;
  const int64_t block_rows = at_once ? R : fitting > kMaxRows ? fitting : kMaxRows;
  const int64_t panel_width = columns.width * kLanes<C>;
  const Scratch<U> weight((at_once ? grid.cols * panel_width : columns.padded()) * KU);
  const Scratch<C> bias(columns.padded());
  // Rows of a are read in place if they are units and do not compete for cache sets; else they are copied.
  const bool apart = compete<U>(KU) && R > kFewRows && N > kFewColumns;
  const bool copied = apart || !are_units<S>(K);
  const int64_t ld = KU + (apart ? 64 / int64_t(sizeof(U)) : 0);
  const Scratch<U> copies(copied ? grid.size() * block_rows * ld : 0);
  if (!weight || !bias || !copies) return 1;
  for (int64_t j = 0; j < columns.padded(); ++j)
    bias.get()[j] = (j < N && bias0 ? widen(bias0[j]) : C(0)) + (j < N && bias1 ? widen(bias1[j]) : C(0));
  Barrier packed;

  // For few rows, whole vectors of a weight that is not transposed are read in place instead of packed.
  const bool few = R <= kFewRows && !args.transposed && !kNarrow<S>;
  const auto in_place = [&](int64_t column, int width) { return few && column + width * kLanes<C> <= N; };

  const auto pack = [&](int64_t column, int width, U* panel) {
    if (args.transposed)
      pack_transposed(w, K, N, column, width, panel);
    else
      pack_rows<S>([&](int64_t k) { return w + k * N; }, K, N, column, width, panel);
  };

  run_grid(grid, [&](int id, Grid g) {
    const Range vectors = share(columns.vectors(), columns.width, g.col(id), g.cols);
    const Range part = share(vectors.size(), columns.width, g.row(id), g.rows);
    if (!at_once) {
      columns.each_panel(vectors.begin + part.begin, vectors.begin + part.end, [&](int64_t column, int width) {
        if (!in_place(column, width)) pack(column, width, weight.get() + column * KU);
      });
      packed.wait(g.size());
    }

    const Range rows = share(R, max_rows(2), g.row(id), g.rows);
    Ahead a_ahead{[=](int64_t r) { return a + r * K; }, rows.begin, rows.begin, K * int64_t(sizeof(S))};
    for (int64_t begin = rows.begin; begin < rows.end; begin += block_rows) {
      const int64_t count = rows.end - begin < block_rows ? rows.end - begin : block_rows;
      U* copy = copies.get() + id * block_rows * ld;
      if (copied) copy_units(a + begin * K, count, K, copy, ld);
      const U* block = copied ? copy : reinterpret_cast<const U*>(a + begin * K);
      // The next block is prefetched while this one is multiplied by the panels.
      const Tiles tiles({0, count}, max_rows(columns.width));
      const int64_t meetings = tiles.count * ((vectors.size() + columns.width - 1) / columns.width);
      a_ahead.next = begin + count;
      a_ahead.end = begin + count + block_rows < rows.end ? begin + count + block_rows : rows.end;
      const int64_t lines = (a_ahead.end - a_ahead.next) * a_ahead.bytes / 64 / (meetings > 0 ? meetings : 1) + 1;
      columns.each_panel(vectors.begin, vectors.end, [&](int64_t column, int width) {
        const bool direct = in_place(column, width);
        U* own = weight.get() + (at_once ? id * panel_width : column) * KU;
        if (at_once && !direct) pack(column, width, own);
        const U* panel = direct ? reinterpret_cast<const U*>(w) + column : own;
        each_product<Layout::kRows>(
            tiles, [&](Range tile, int64_t k) { return Operand<U>{block + tile.begin * ld + k, ld}; }, panel,
            direct ? N : width * kLanes<C>, column, width, N, KU,
            [&](Range tile, Wanted& wanted) {
              wanted.add_rows(c + (begin + tile.begin) * N + column, N * int64_t(sizeof(S)), tile.size(),
                              width * kLanes<C> * int64_t(sizeof(S)));
              a_ahead.add(lines, wanted);
            },
            [=, bias = bias.get()](int64_t r, int64_t col, int lanes, Vec<C> sum) {
              store_lanes(c + (begin + r) * N + col, sum + load(bias + col), lanes);
            });
      });
    }
  });
  return 0;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
