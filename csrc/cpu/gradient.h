// The gradients of the weights, c = a^T b, and of the biases: sums over all rows of a sequence, a block at a time.
//
// The rows of a block are cut into slabs, a number that depends on the sizes alone, and each slab has a sum of its own,
// in chunks of kChunk rows; the sums of the slabs are added in their order at the end. Threads share the slabs, or,
// where the gradient is too large to have one for every slab, the gradient. A thread packs what it needs itself, also
// what its neighbour packs too: there is nothing to wait for, so that a thread that is held up holds up nobody. On two
// threads of Zen 4 that, and asking ahead, took B = 64, H = 200 from 42 to 72% of the FMA peak and B = 256, H = 32 from
// 27 to 54.
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
constexpr int64_t kMostSlabs = 8;

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

// total[m, n] = sum over `rows` of a[r, m] b_row(r)[n], added to what it is if `begun`, for the columns m of a in
// `height` and the vectors n of b in `width`. A block of a is packed tile by tile (read where it lies, its rows would
// be 4 KiB apart at H = 1024 and compete for the same cache sets: 1.35 times slower) and one of b panel by panel; while
// they meet, the next block is asked for, up to row `until`, where the next slab of the same thread ends.
template <class S, class Row, class C = Compute<S>>
void sum_slab(const S* a, int64_t R, int64_t M, const Row& b_row, const Columns<C>& columns, Range rows, Range height,
              Range width, int64_t until, bool begun, C* packed, C* total, int64_t ldt) {
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
                                                                  begun || begin > rows.begin, to, ldt, wanted);
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

// The gradient of one weight, c[m, n] = sum over all rows of a[r, m] b[r, n], added up from blocks of rows.
template <class S>
class GradientSum {
  using C = Compute<S>;

 public:
  // c is [M, N], or null if nobody wants it. `rows`: of all blocks; `first`: of the first one, the largest but for a
  // step.
  GradientSum(S* c, int64_t M, int64_t N, int64_t rows, int64_t first)
      : c_(c),
        M_(M),
        N_(N),
        few_(rows <= kFewestRows),
        // Vectors run along the wider matrix: the tiles of the other one may have any height, so that no lane is idle
        // and less is packed. The sums are the same, bit by bit.
        swapped_(N < M && !few_),
        height_(swapped_ ? N : M),
        columns_{swapped_ ? M : N, 2},
        slabs_(slabs_for(M * N, first)),
        direct_(slabs_ == 1 && !kNarrow<S> && !swapped_ && columns_.padded() == N),
        sums_(c && !few_ && !direct_ ? slabs_ * height_ * columns_.padded() : 0),
        total_(direct_ ? reinterpret_cast<C*>(c) : sums_.get()) {}

  bool wanted() const { return c_; }
  explicit operator bool() const { return bool(sums_); }

  // Adds `rows` rows of a [rows, M] and b [rows, N]; not zero if there is no memory for scratch.
  int add(const S* a, const S* b, int64_t rows, int threads) {
    if (swapped_) return add_rows(b, [=](int64_t r) { return a + r * M_; }, rows, threads);
    return add(a, [=](int64_t r) { return b + r * N_; }, rows, threads);
  }
  // The same for a matrix whose rows b_row(r) finds, which is not narrower than a.
  template <class Row>
  int add(const S* a, const Row& b_row, int64_t rows, int threads) {
    if (!few_) return add_rows(a, b_row, rows, threads);
    few_rows_gradient(a, rows, M_, b_row, N_, c_, threads);
    return 0;
  }

  // Writes c.
  void finish(int threads) const {
    if (few_ || direct_) return;
    const int64_t ldt = columns_.padded(), width = columns_.count;
    run_grid({team_for(slabs_ * height_ * width, threads), 1}, [&](int id, Grid g) {
      const Range own = share(height_, 1, id, g.size());
      for (int64_t m = own.begin; m < own.end; ++m)
        for (int64_t n = 0; n < width; n += kLanes<C>) {
          const C* from = total_ + m * ldt + n;
          Vec<C> sum = load(from);
          for (int64_t slab = 1; slab < slabs_; ++slab) sum += load(from + slab * height_ * ldt);
          if (swapped_)
            store(total_ + m * ldt + n, sum);
          else
            store_lanes(c_ + m * N_ + n, sum, width - n < kLanes<C> ? int(width - n) : kLanes<C>);
        }
    });
    if (!swapped_) return;
    constexpr int64_t kLine = 64 / sizeof(S);
    for (int64_t first = 0; first < M_; first += kLine)
      for (int64_t n = 0; n < N_; ++n)
        for (int64_t m = first; m < first + kLine && m < M_; ++m) narrow(total_[n * ldt + m], c_ + m * N_ + n);
  }

 private:
  static int64_t slabs_for(int64_t elements, int64_t rows) {
    int64_t slabs = 1;
    while (elements <= kSlabElements && slabs < kMostSlabs && 2 * slabs * kChunk <= rows) slabs *= 2;
    return slabs;
  }

  template <class Row>
  int add_rows(const S* a, const Row& b_row, int64_t rows, int threads) {
    const int64_t H = height_, ldt = columns_.padded();
    const int team = team_for(rows * H * columns_.count, threads);
    const Grid grid = slabs_ > 1 ? Grid{int(team < slabs_ ? team : slabs_), 1} : square_grid(team, H, columns_.count);
    const int64_t own = (H + ldt) * kChunk;  // at most, of one thread
    const Scratch<C> packed(own * grid.size());
    if (!packed) return 1;
    run_grid(grid, [&](int id, Grid g) {
      C* own_packed = packed.get() + id * own;
      if (slabs_ > 1) {
        const Range mine = share(slabs_, 1, id, g.size());
        const int64_t last = share(rows, kChunk, int(mine.end - 1), int(slabs_)).end;
        for (int64_t slab = mine.begin; slab < mine.end; ++slab)
          sum_slab<S>(a, rows, H, b_row, columns_, share(rows, kChunk, int(slab), int(slabs_)), {0, H},
                      {0, columns_.vectors()}, last, begun_, own_packed, total_ + slab * H * ldt, ldt);
      } else {
        sum_slab<S>(a, rows, H, b_row, columns_, {0, rows}, share(H, max_rows(columns_.width), g.row(id), g.rows),
                    share(columns_.vectors(), columns_.width, g.col(id), g.cols), rows, begun_, own_packed, total_,
                    ldt);
      }
    });
    begun_ = true;
    return 0;
  }

  S* const c_;  // [M, N]
  const int64_t M_, N_;
  const bool few_, swapped_;
  const int64_t height_;      // of the tiles: M, or N if swapped
  const Columns<C> columns_;  // N, or M if swapped
  const int64_t slabs_;
  const bool direct_;  // the only slab is c itself
  const Scratch<C> sums_;
  C* const total_;  // [slabs][height, padded columns]
  bool begun_ = false;
};

// The gradient of the biases, sum over all rows of a[r, m]. Compensated: `lost` is what rounding has taken.
template <class S>
class ColumnSum {
  using C = Compute<S>;

 public:
  ColumnSum(S* sum, int64_t M) : sum_(sum), M_(M), columns_{M, 1}, total_(2 * columns_.padded()) {
    if (total_) memset(total_.get(), 0, size_t(2 * columns_.padded()) * sizeof(C));
  }

  bool wanted() const { return sum_; }
  explicit operator bool() const { return bool(total_); }

  void add(const S* a, int64_t rows, int threads) {  // [rows, M]
    constexpr int kTogether = 4;                     // independent sums hide the latency of each
    run_grid({1, team_for(rows * M_, threads)}, [&](int id, Grid g) {
      const Range mine = share(columns_.vectors(), kTogether, id, g.size());
      for (int64_t v = mine.begin; v < mine.end; v += kTogether) {
        int lanes[kTogether];
        Vec<C> total[kTogether] = {}, lost[kTogether] = {};
        C* state = total_.get() + v * kLanes<C>;
        for (int j = 0; j < kTogether; ++j) {
          const int64_t left = M_ - (v + j) * kLanes<C>;
          lanes[j] = left < 0 ? 0 : left < kLanes<C> ? int(left) : kLanes<C>;
          if (lanes[j] == 0) continue;
          total[j] = load(state + j * kLanes<C>);
          lost[j] = load(state + columns_.padded() + j * kLanes<C>);
        }
        const S* column = a + v * kLanes<C>;
        for (int64_t r = 0; r < rows; ++r, column += M_)
          for (int j = 0; j < kTogether; ++j) {
            if (lanes[j] == 0) continue;
            const Vec<C> next = load_lanes(column + j * kLanes<C>, lanes[j]) - lost[j];
            const Vec<C> sum = total[j] + next;
            lost[j] = (sum - total[j]) - next;
            total[j] = sum;
          }
        for (int j = 0; j < kTogether; ++j) {
          if (lanes[j] == 0) continue;
          store(state + j * kLanes<C>, total[j]);
          store(state + columns_.padded() + j * kLanes<C>, lost[j]);
        }
      }
    });
  }

  void finish() const {
    for (int64_t m = 0; m < M_; ++m) narrow(total_.get()[m], sum_ + m);
  }

 private:
  S* const sum_;  // [M]
  const int64_t M_;
  const Columns<C> columns_;
  const Scratch<C> total_;  // [2, padded M]: the sums, and what they have lost
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
