// The products outside the recurrence.
//
//   product    c = a b + bias0 + bias1      the input projection of all steps at once, and its input gradient
//   gradient   c = a^T b                    the weight gradients: a sum over all rows
//   column_sum                              the bias gradient
//
// Plain GEMMs, but our own: a vendor library picks its order of summation by shape and thread count, and with it the
// last bits; these have the one order of the tile, so that a sequence gets the same result in any batch and at any
// number of threads.
#pragma once

#include "../recurrence.h"
#include "panels.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Bytes of `a` that meet a panel before the next one is fetched. At H = 1024 the weight comes from the shared cache,
// and a tile of 12 x 2 runs at 151, 190 and 200 GF/s with blocks of 12, 48 and 96 rows.
constexpr int64_t kBlockBytes = 512 * 1024;
constexpr int64_t kFewRows = 16;  // too few for packing to pay, where it can be done without
// Rows of a gradient that the nearest cache holds side by side even where they are a multiple of a page apart. On Zen
// 3, not packing them takes 0.5 of the time for one row at H = 512 and 0.6 for 8 at H = 256; 16 at H = 1024 would
// take 3.5.
constexpr int64_t kFewestRows = 8;
constexpr int64_t kGradientRows = 512;  // rows summed before a tile of a gradient goes back to memory

// to[i] = from[i] in compute precision, i < count.
template <class S>
INLINE void copy_lanes(const S* from, int64_t count, Compute<S>* to) {
  constexpr int L = kLanes<Compute<S>>;
  for (int64_t i = 0; i < count; i += L) {
    const int lanes = count - i < L ? int(count - i) : L;
    store_lanes(to + i, load_lanes(from + i, lanes), lanes);
  }
}

// Rows [0, count) of a [.., K] in compute precision: themselves, or for 16-bit types a widened copy.
template <class S>
INLINE const Compute<S>* widened(const S* a, int64_t count, int64_t K, Compute<S>* copy) {
  if constexpr (kNarrow<S>) {
    copy_lanes(a, count * K, copy);
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
        each_product<Layout::kRows>(
            Tiles({0, count}, max_rows(width)),
            [&](Range tile, int64_t k) { return Operand<C>{block + tile.begin * K + k, K}; }, panel,
            direct ? N : width * kLanes<C>, column, width, N, K,
            [=](int64_t r, int64_t col, int count_) { prefetch(c + (begin + r) * N + col, count_); },
            [=, bias = bias.get()](int64_t r, int64_t col, int lanes, Vec<C> sum) {
              store_lanes(c + (begin + r) * N + col, sum + load(bias + col), lanes);
            });
      });
    }
  });
  return 0;
}

// to[k, i] = from[k, i] in compute precision, for `rows` rows of `height` columns of a matrix that ends at `end`. A
// tile is no whole number of vectors high, so whole vectors are copied and what they bring too much is overwritten by
// the next row; only the last rows, with none after them, are copied to the lane.
template <class S, class C = Compute<S>>
void pack_tile(const S* from, const S* end, int64_t ld, int64_t rows, int height, C* to) {
  constexpr int L = kLanes<C>;
  const int span = (height + L - 1) / L * L;
  const C* to_end = to + rows * height;
  for (int64_t k = 0; k < rows; ++k, from += ld, to += height) {
    if (end - from >= span && to_end - to >= span)
      for (int i = 0; i < span; i += L) store(to + i, load(from + i));
    else
      copy_lanes(from, height, to);
  }
}

// The gradient over few rows is mostly writing: nothing is packed, each vector of it is summed and stored.
template <class S, class Row>
void few_rows_gradient(const S* a, int64_t R, int64_t M, const Row& b_row, int64_t N, S* c, int threads) {
  using C = Compute<S>;
  constexpr int L = kLanes<C>;
  constexpr int kTogether = 4;  // vectors that share a broadcast
  const Grid grid = plan_product(M, R, N, threads);
  run_grid({grid.size(), 1}, [&](int id, Grid g) {
    const Range rows = share(M, 1, id, g.size());
    for (int64_t m = rows.begin; m < rows.end; ++m) {
      S* to = c + m * N;
      int64_t n = 0;
      for (; n + kTogether * L <= N; n += kTogether * L) {
        Vec<C> sum[kTogether] = {};
        for (int64_t r = 0; r < R; ++r) {
          const Vec<C> a_rm = broadcast(widen(a[r * M + m]));
          const S* from = b_row(r) + n;
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) sum[j] += a_rm * load(from + j * L);
        }
#pragma GCC unroll 4
        for (int j = 0; j < kTogether; ++j) store(to + n + j * L, sum[j]);
      }
      for (; n < N; n += L) {
        const int lanes = N - n < L ? int(N - n) : L;
        Vec<C> sum{};
        for (int64_t r = 0; r < R; ++r) sum += broadcast(widen(a[r * M + m])) * load_lanes(b_row(r) + n, lanes);
        store_lanes(to + n, sum, lanes);
      }
    }
  });
}

// c[m, n] = sum over r of a[r, m] b_row(r)[n], in blocks of rows. Of a block the team packs a tile by tile (read where
// it lies, its rows would be 4 KiB apart at H = 1024 and compete for the same cache sets: 1.35 times slower) and b
// panel by panel, each of them once; then each panel of b meets all of a.
template <class S>
int gradient(const GradientArgs& args, int threads) {
  using C = Compute<S>;
  const int64_t R = args.R, M = args.M, N = args.N;
  const S* a = static_cast<const S*>(args.a);              // [R, M]
  const S* b = static_cast<const S*>(args.b);              // [rows, N]
  const S* b_start = static_cast<const S*>(args.b_start);  // [B, N], or null
  const int64_t* index = args.index;                       // [R], or null
  S* c = static_cast<S*>(args.c);                          // [M, N]

  // Vectors run along the wider matrix: the tiles of the other one may have any height, so that no lane is idle and
  // less is packed. The sums are the same, bit by bit.
  if (N < M && !index) {
    const Scratch<S> transposed(N * M);
    if (!transposed || gradient<S>({args.dtype, R, N, M, b, a, nullptr, nullptr, transposed.get()}, threads)) return 1;
    constexpr int64_t kLine = 64 / sizeof(S);
    for (int64_t first = 0; first < M; first += kLine)
      for (int64_t n = 0; n < N; ++n)
        for (int64_t m = first; m < first + kLine && m < M; ++m) c[m * N + n] = transposed.get()[n * M + m];
    return 0;
  }

  const auto b_row = [&](int64_t k) {
    const int64_t r = index ? index[k] : k;
    return r >= 0 ? b + r * N : b_start + ~r * N;
  };
  if (R <= kFewestRows) {
    few_rows_gradient(a, R, M, b_row, N, c, threads);
    return 0;
  }

  const Grid grid = plan_product(M, R, N, threads);
  const Columns<C> columns{N, 2};
  const int64_t depth = R < kGradientRows ? R : kGradientRows;
  const Scratch<C> a_tiles(M * depth), b_panels(columns.padded() * depth), sums(kNarrow<S> ? M * N : 0);
  if (!a_tiles || !b_panels || !sums) return 1;
  C* total = kNarrow<S> ? sums.get() : reinterpret_cast<C*>(c);  // [M, N]; a 16-bit gradient is summed in float32
  Barrier team;

  run_grid(grid, [&](int id, Grid g) {
    const Range vectors = share(columns.vectors(), columns.width, g.col(id), g.cols);
    const Tiles tiles(share(M, kMaxRows, g.row(id), g.rows), max_rows(columns.width));
    // Threads that use the same tiles, or the same panels, pack them together.
    const Range own_tiles = share(tiles.count, 1, g.col(id), g.cols);
    const Range own_vectors = share(vectors.size(), columns.width, g.row(id), g.rows);
    for (int64_t begin = 0; begin < R || begin == 0; begin += kGradientRows) {
      const int64_t count = R - begin < kGradientRows ? R - begin : kGradientRows;
      for (int64_t t = own_tiles.begin; t < own_tiles.end; ++t)
        pack_tile(a + begin * M + tiles[t].begin, a + R * M, M, count, int(tiles[t].size()),
                  a_tiles.get() + tiles[t].begin * depth);
      columns.each_panel(vectors.begin + own_vectors.begin, vectors.begin + own_vectors.end,
                         [&](int64_t column, int width) {
                           pack_rows<S>([&](int64_t k) { return b_row(begin + k); }, count, N, column, width,
                                        b_panels.get() + column * depth);
                         });
      team.wait(g.size());
      columns.each_panel(vectors.begin, vectors.end, [&](int64_t column, int width) {
        each_product<Layout::kColumns>(
            tiles,
            [&](Range tile, int64_t k) {
              return Operand<C>{a_tiles.get() + tile.begin * depth + k * tile.size(), tile.size()};
            },
            b_panels.get() + column * depth, width * kLanes<C>, column, width, N, count,
            [=](int64_t m, int64_t col, int vectors_) { prefetch(total + m * N + col, vectors_); },
            [=](int64_t m, int64_t col, int lanes, Vec<C> sum) {
              C* p = total + m * N + col;
              store_lanes(p, begin ? load_lanes(p, lanes) + sum : sum, lanes);
            });
      });
      team.wait(g.size());
    }
    if (kNarrow<S>)
      for (int64_t m = tiles.rows.begin; m < tiles.rows.end; ++m)
        for (int64_t v = vectors.begin; v < vectors.end; ++v) {
          const int64_t col = v * kLanes<C>, left = N - col;
          const int lanes = left < kLanes<C> ? int(left) : kLanes<C>;
          store_lanes(c + m * N + col, load_lanes(total + m * N + col, lanes), lanes);
        }
  });
  return 0;
}

// sum[m] = sum over r of a[r, m]
template <class S>
int column_sum(const ColumnSumArgs& args, int threads) {
  using C = Compute<S>;
  const int64_t R = args.R, M = args.M;
  const S* a = static_cast<const S*>(args.a);  // [R, M]
  S* out = static_cast<S*>(args.sum);          // [M]
  const int64_t vectors = (M + kLanes<C> - 1) / kLanes<C>;
  const int64_t team = R * M / kTeamGrain < threads ? R * M / kTeamGrain : threads;
  run_grid({1, team > 1 ? int(team) : 1}, [&](int id, Grid g) {
    constexpr int kTogether = 4;  // independent sums hide the latency of each
    const Range mine = share(vectors, kTogether, id, g.size());
    for (int64_t v = mine.begin; v < mine.end; v += kTogether) {
      int lanes[kTogether];
      for (int j = 0; j < kTogether; ++j) {
        const int64_t left = M - (v + j) * kLanes<C>;
        lanes[j] = left < 0 ? 0 : left < kLanes<C> ? int(left) : kLanes<C>;
      }
      const S* column = a + v * kLanes<C>;
      Vec<C> total[kTogether] = {}, lost[kTogether] = {};  // compensated: `lost` is what rounding has taken
      for (int64_t r = 0; r < R; ++r, column += M)
        for (int j = 0; j < kTogether; ++j) {
          if (lanes[j] == 0) continue;
          const Vec<C> next = load_lanes(column + j * kLanes<C>, lanes[j]) - lost[j];
          const Vec<C> sum = total[j] + next;
          lost[j] = (sum - total[j]) - next;
          total[j] = sum;
        }
      for (int j = 0; j < kTogether; ++j)
        if (lanes[j]) store_lanes(out + (v + j) * kLanes<C>, total[j], lanes[j]);
    }
  });
  return 0;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
