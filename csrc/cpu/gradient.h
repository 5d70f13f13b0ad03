// The weight gradients: c = a^T b, a sum over all rows of a sequence.
//
// The rows are cut into slabs, a number that depends on the sizes alone, and each slab is summed by itself, in blocks
// of kChunk rows; the sums of the slabs are added in their order at the end. Threads share the slabs, or, where the
// gradient is too large to have one for every slab, the gradient. A thread packs what it needs itself, also what its
// neighbour packs too: there is nothing to wait for, so that a thread that is held up holds up nobody.
#pragma once

#include "../recurrence.h"
#include "ahead.h"
#include "panels.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Rows of a gradient that the nearest cache holds side by side even where they are a multiple of a page apart. On Zen
// 3, not packing them takes 0.5 of the time for one row at H = 512 and 0.6 for 8 at H = 256; 16 at H = 1024 would
// take 3.5.
constexpr int64_t kFewestRows = 8;
constexpr int64_t kSlabElements = 64 * 1024;  // of a gradient of which a core's own cache holds one beside the blocks
constexpr int64_t kSlabRows = 256;            // fewest rows of a slab
constexpr int64_t kMostSlabs = 16;

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
  const int team = team_for(M * R * N, threads);
  run_grid({team, 1}, [&](int id, Grid g) {
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

// total[m, n] = sum over `rows` of a[r, m] b_row(r)[n] for the columns m of a in `height` and the vectors n of b in
// `width`. A block of a is packed tile by tile (read where it lies, its rows would be 4 KiB apart at H = 1024 and
// compete for the same cache sets: 1.35 times slower) and one of b panel by panel; while they meet, the next block is
// asked for, up to row `until`, where the next slab of the same thread ends.
template <class S, class Row, class C = Compute<S>>
void sum_slab(const S* a, int64_t R, int64_t M, const Row& b_row, const Columns<C>& columns, Range rows, Range height,
              Range width, int64_t until, C* packed, C* total, int64_t ldt) {
  constexpr int L = kLanes<C>;
  if (height.size() == 0 || width.size() == 0) return;
  const Tiles tiles(height, max_rows(columns.width));
  const int64_t first = width.begin * L, last = width.end * L < columns.count ? width.end * L : columns.count;
  C* a_tiles = packed;                            // [tiles][kChunk, tile height]
  C* b_panels = packed + height.size() * kChunk;  // [panels][kChunk, panel width]
  Ahead a_ahead{[=](int64_t r) { return a + r * M + height.begin; }, rows.begin, rows.begin,
                height.size() * int64_t(sizeof(S))};
  Ahead b_ahead{[=](int64_t r) { return b_row(r) + first; }, rows.begin, rows.begin,
                (last - first) * int64_t(sizeof(S))};
  const auto look_ahead_to = [&](int64_t r) { a_ahead.end = b_ahead.end = r < until ? r : until; };
  const int64_t meetings = tiles.count * ((width.size() + columns.width - 1) / columns.width);
  const int64_t a_lines = a_ahead.bytes * kChunk / 64 / meetings + 1,
                b_lines = b_ahead.bytes * kChunk / 64 / meetings + 1;

  for (int64_t begin = rows.begin; begin < rows.end; begin += kChunk) {
    const int64_t count = rows.end - begin < kChunk ? rows.end - begin : kChunk;
    look_ahead_to(begin + count);
    a_ahead.ask();
    b_ahead.ask();
    for (int64_t t = 0; t < tiles.count; ++t)
      pack_tile(a + begin * M + tiles[t].begin, a + R * M, M, count, int(tiles[t].size()),
                a_tiles + (tiles[t].begin - height.begin) * kChunk);
    columns.each_panel(width.begin, width.end, [&](int64_t column, int vectors) {
      pack_rows<S>([&](int64_t k) { return b_row(begin + k); }, count, columns.count, column, vectors,
                   b_panels + (column - first) * kChunk);
    });
    look_ahead_to(begin + count + kChunk);
    columns.each_panel(width.begin, width.end, [&](int64_t column, int vectors) {
      const C* panel = b_panels + (column - first) * kChunk;
      for (int64_t t = 0; t < tiles.count; ++t) {
        const Range tile = tiles[t];
        C* to = total + tile.begin * ldt + column;
        Wanted wanted;
        for (int64_t m = 0; m < tile.size(); ++m) wanted.add(to + m * ldt, vectors * L * int64_t(sizeof(C)));
        a_ahead.add(a_lines, wanted);
        b_ahead.add(b_lines, wanted);
        pick_tile<C, Layout::kColumns>(int(tile.size()), vectors)(a_tiles + (tile.begin - height.begin) * kChunk,
                                                                  tile.size(), panel, int64_t(vectors) * L, count,
                                                                  begin > rows.begin, to, ldt, wanted);
      }
    });
  }
}

// A team cut so that what its members pack is least.
inline Grid square_grid(int team, int64_t M, int64_t N) {
  Grid best{team, 1};
  for (int cols = 1; cols <= team; ++cols)
    if (team % cols == 0 && M * cols / team + N / cols < M / best.rows + N / best.cols) best = {team / cols, cols};
  return best;
}

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

  const auto b_row = [=](int64_t k) {
    const int64_t r = index ? index[k] : k;
    return r >= 0 ? b + r * N : b_start + ~r * N;
  };
  if (R <= kFewestRows) {
    few_rows_gradient(a, R, M, b_row, N, c, threads);
    return 0;
  }

  int64_t slabs = 1;
  while (M * N <= kSlabElements && slabs < kMostSlabs && 2 * slabs * kSlabRows <= R) slabs *= 2;
  const int team = team_for(M * R * N, threads);
  const Grid grid = slabs > 1 ? Grid{int(team < slabs ? team : slabs), 1} : square_grid(team, M, N);
  const Columns<C> columns{N, 2};
  const int64_t ldt = columns.padded();
  const bool direct = slabs == 1 && !kNarrow<S> && ldt == N;
  const int64_t own = (M + kMaxRows * grid.size() + ldt + kMaxVectors * kLanes<C>)*kChunk;  // at most, of one thread
  const Scratch<C> packed(own * grid.size()), sums(direct ? 0 : slabs * M * ldt);
  if (!packed || !sums) return 1;
  C* total = direct ? reinterpret_cast<C*>(c) : sums.get();  // [slabs][M, ldt]
  Barrier summed;

  run_grid(grid, [&](int id, Grid g) {
    C* own_packed = packed.get() + id * own;
    if (slabs > 1) {
      const Range mine = share(slabs, 1, id, g.size());
      const int64_t last = share(R, kChunk, int(mine.end - 1), int(slabs)).end;
      for (int64_t slab = mine.begin; slab < mine.end; ++slab)
        sum_slab<S>(a, R, M, b_row, columns, share(R, kChunk, int(slab), int(slabs)), {0, M}, {0, columns.vectors()},
                    last, own_packed, total + slab * M * ldt, ldt);
    } else {
      sum_slab<S>(a, R, M, b_row, columns, {0, R}, share(M, max_rows(columns.width), g.row(id), g.rows),
                  share(columns.vectors(), columns.width, g.col(id), g.cols), R, own_packed, total, ldt);
    }
    if (direct) return;
    summed.wait(g.size());
    const Range rows = share(M, 1, id, g.size());
    for (int64_t m = rows.begin; m < rows.end; ++m)
      for (int64_t n = 0; n < N; n += kLanes<C>) {
        const C* from = total + m * ldt + n;
        Vec<C> sum = load(from);
        for (int64_t slab = 1; slab < slabs; ++slab) sum += load(from + slab * M * ldt);
        store_lanes(c + m * N + n, sum, N - n < kLanes<C> ? int(N - n) : kLanes<C>);
      }
  });
  return 0;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
