// The products outside the recurrence.
//
//   product    c = a b + bias0 + bias1      the input projection of all steps at once, and its input gradient
//   gradient   c = a^T b, sum of a          the weight gradients: a sum over all rows
//
// Plain GEMMs, but our own: a vendor library picks its order of summation by shape and thread count, and with it the
// last bits; these have the one order of the tile, so that a sequence gets the same result in any batch and at any
// number of threads.
#pragma once

#include "../recurrence.h"
#include "panels.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Rows of `a` that meet a panel before the next one is fetched: 512 KiB of them. At H = 1024 the weight comes from the
// shared cache, and 48 rows would halve... the tiles' speed.
constexpr int64_t kBlockBytes = 512 * 1024;
constexpr int64_t kFewRows = 16;
constexpr int64_t kGradientRows = 512;  // rows summed before a gradient tile goes back to memory

template <class S>
constexpr bool kNarrow = sizeof(S) != sizeof(Compute<S>);

// Rows [0, count) of a [.., K] in compute precision: themselves, or for 16-bit types a widened copy.
template <class S>
INLINE const Compute<S>* widened(const S* a, int64_t count, int64_t K, Compute<S>* copy) {
  if constexpr (kNarrow<S>) {
    for (int64_t i = 0; i < count * K; i += kLanes<float>) {
      const int64_t left = count * K - i;
      const int lanes = left < kLanes<float> ? int(left) : kLanes<float>;
      store_lanes(copy + i, load_lanes(a + i, lanes), lanes);
    }
    return copy;
  } else {
    return a;
  }
}

inline Grid plan_product(int64_t R, int64_t K, int64_t N, int threads) {
  const int64_t fmas = R * K * N;
  int64_t team = fmas / kTeamGrain < threads ? fmas / kTeamGrain : threads;
  if (team <= 1) return {1, 1};
  // Cut the longer side.
  return R >= N ? Grid{int(team), 1} : Grid{1, int(team)};
}

template <class S>
int product(const ProductArgs& args, int threads) {
  using C = Compute<S>;
  const int64_t R = args.R, N = args.N, K = args.K;
  const S* a = static_cast<const S*>(args.a);  // [R, K]
  const S* w = static_cast<const S*>(args.w);  // [N, K] or [K, N]
  const S* bias0 = static_cast<const S*>(args.bias0);
  const S* bias1 = static_cast<const S*>(args.bias1);
  S* c = static_cast<S*>(args.c);  // [R, N]

  const Grid grid = plan_product(R, K, N, threads);
  const auto columns = Columns<C>::for_rows(N, (R + grid.rows - 1) / grid.rows);
  const int64_t fitting = kBlockBytes / int64_t(sizeof(C)) / (K > 0 ? K : 1) / kMaxRows * kMaxRows;
  const int64_t block_rows = fitting > kMaxRows ? fitting : kMaxRows;
  const Scratch<C> weight(columns.padded() * K), bias(columns.padded());
  const Scratch<C> copies(kNarrow<S> ? grid.size() * block_rows * K : 0);
  if (!weight || !bias || !copies) return 1;
  for (int64_t j = 0; j < columns.padded(); ++j)
    bias.get()[j] = (j < N && bias0 ? widen(bias0[j]) : C(0)) + (j < N && bias1 ? widen(bias1[j]) : C(0));
  Barrier packed;

  // Few rows do not pay for packing; whole vectors of a weight that is not transposed can be read where they lie.
  const bool few = R <= kFewRows && !args.transposed && !kNarrow<S>;
  const auto in_place = [&](int64_t column, int width) { return few && column + width * kLanes<C> <= N; };

  run_grid(grid, [&](int id, Grid g) {
    const Range vectors = share(columns.vectors(), columns.width, g.col(id), g.cols);
    const Range part = share(vectors.size(), columns.width, g.row(id), g.rows);
    columns.each_panel(vectors.begin + part.begin, vectors.begin + part.end, [&](int64_t column, int width) {
      if (in_place(column, width)) return;
      C* panel = weight.get() + column * K;
      if (args.transposed)
        pack_transposed(w, K, N, column, width, panel);
      else
        pack_rows<S>([&](int64_t k) { return w + k * N; }, K, N, column, width, panel);
    });
    packed.wait(g.size());

    const Range rows = share(R, max_rows(2), g.row(id), g.rows);
    for (int64_t begin = rows.begin; begin < rows.end; begin += block_rows) {
      const int64_t count = rows.end - begin < block_rows ? rows.end - begin : block_rows;
      const C* block = widened(a + begin * K, count, K, copies.get() + id * block_rows * K);
      columns.each_panel(vectors.begin, vectors.end, [&](int64_t column, int width) {
        const bool direct = in_place(column, width);
        const C* panel = direct ? reinterpret_cast<const C*>(w) + column : weight.get() + column * K;
        each_product(
            {0, count}, block, K, panel, direct ? N : width * kLanes<C>, column, width, N, K,
            [&](int64_t r, int64_t col, int count_) { prefetch(c + (begin + r) * N + col, count_); },
            [&](int64_t r, int64_t col, int lanes, Vec<C> sum) {
              store_lanes(c + (begin + r) * N + col, sum + load(bias.get() + col), lanes);
            });
      });
    }
  });
  return 0;
}

// c[m, n] = sum over r of a[r, m] b_row(r)[n], in blocks of rows. A block of a is packed into tiles of kMaxRows columns
// (read where it lies its rows would be 4 KiB apart at H = 1024 and compete for the same cache sets: 203 instead of xxx
// GF/s), then each panel of b meets all of them.
template <class S>
int gradient(const GradientArgs& args, int threads) {
  using C = Compute<S>;
  const int64_t R = args.R, M = args.M, N = args.N;
  const S* a = static_cast<const S*>(args.a);              // [R, M]
  const S* b = static_cast<const S*>(args.b);              // [rows, N]
  const S* b_start = static_cast<const S*>(args.b_start);  // [B, N], or null
  const int64_t* index = args.index;                       // [R], or null
  S* c = static_cast<S*>(args.c);                          // [M, N]

  const Grid grid = plan_product(M, R, N, threads);
  // Few rows: the result is mostly written, and wide panels write long runs of it.
  const Columns<C> columns{N, R <= kFewRows ? kMaxVectors : 2};
  const int64_t depth = R < kGradientRows ? R : kGradientRows;
  const int tallest = max_rows(columns.width);
  const int64_t a_size = (M + tallest - 1) / tallest * tallest * depth;
  const int64_t b_size = columns.width * kLanes<C> * depth;
  const Scratch<C> packed(grid.size() * (a_size + b_size)), sums(kNarrow<S> ? M * N : 0);
  if (!packed || !sums) return 1;
  C* total = kNarrow<S> ? sums.get() : reinterpret_cast<C*>(c);  // [M, N]; a 16-bit gradient is summed in float32

  run_grid(grid, [&](int id, Grid g) {
    const Range vectors = share(columns.vectors(), columns.width, g.col(id), g.cols);
    const Range rows = share(M, tallest, g.row(id), g.rows);
    C* a_tiles = packed.get() + id * (a_size + b_size);
    C* panel = a_tiles + a_size;
    for (int64_t begin = 0; begin < R || begin == 0; begin += kGradientRows) {
      const int64_t count = R - begin < kGradientRows ? R - begin : kGradientRows;
      for (int64_t m = rows.begin; m < rows.end; m += tallest) {
        const int height = rows.end - m < tallest ? int(rows.end - m) : tallest;
        C* to = a_tiles + m * depth;
        for (int64_t k = 0; k < count; ++k, to += tallest)
          for (int i = 0; i < height; ++i) to[i] = widen(a[(begin + k) * M + m + i]);
      }
      const auto b_row = [&](int64_t k) {
        const int64_t r = index ? index[begin + k] : begin + k;
        return r >= 0 ? b + r * N : b_start + ~r * N;
      };
      columns.each_panel(vectors.begin, vectors.end, [&](int64_t column, int width) {
        pack_rows<S>(b_row, count, N, column, width, panel);
        alignas(64) C product[kAccumulators * kLanes<C>];
        for (int64_t m = rows.begin; m < rows.end; m += tallest) {
          const int height = rows.end - m < tallest ? int(rows.end - m) : tallest;
          for (int i = 0; i < height; ++i) prefetch(total + (m + i) * N + column, width);
          pick_tile<C, Layout::kColumns>(height, width)(a_tiles + m * depth, tallest, panel,
                                                        width * kLanes<C>, count, product);
          each_vector(product, m, height, column, width, N, [&](int64_t row, int64_t col, int lanes, Vec<C> sum) {
            C* p = total + row * N + col;
            store_lanes(p, begin ? load_lanes(p, lanes) + sum : sum, lanes);
          });
        }
      });
    }
    if (kNarrow<S>)
      for (int64_t m = rows.begin; m < rows.end; ++m)
        for (int64_t v = vectors.begin; v < vectors.end; ++v) {
          const int64_t col = v * kLanes<C>, left = N - col;
          const int lanes = left < kLanes<C> ? int(left) : kLanes<C>;
          store_lanes(c + m * N + col, load_lanes(total + m * N + col, lanes), lanes);
        }
  });
  return 0;
}

// a_sum[m] = sum over r of a[r, m], with the same blocks of rows.
template <class S>
int column_sum(const GradientArgs& args, int threads) {
  using C = Compute<S>;
  const int64_t R = args.R, M = args.M;
  const S* a = static_cast<const S*>(args.a);  // [R, M]
  S* out = static_cast<S*>(args.a_sum);        // [M]
  const int64_t vectors = (M + kLanes<C> - 1) / kLanes<C>;
  const int64_t team = R * M / kTeamGrain < threads ? R * M / kTeamGrain : threads;
  run_grid({1, team > 1 ? int(team) : 1}, [&](int id, Grid g) {
    const Range mine = share(vectors, 1, id, g.size());
    for (int64_t v = mine.begin; v < mine.end; ++v) {
      const int64_t column = v * kLanes<C>, left = M - column;
      const int lanes = left < kLanes<C> ? int(left) : kLanes<C>;
      Vec<C> total{};
      for (int64_t begin = 0; begin < R; begin += kChunk) {
        Vec<C> sum{};
        for (int64_t r = begin; r < R && r < begin + kChunk; ++r) sum += load_lanes(a + r * M + column, lanes);
        total += sum;
      }
      store_lanes(out + column, total, lanes);
    }
  });
  return 0;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
