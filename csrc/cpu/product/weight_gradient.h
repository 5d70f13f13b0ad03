// The gradients of a layer's parameters from that of its pre-activations, dpre [R, H]: dW_ih = dpre^T x and dW_hh =
// dpre^T h_prev for the weights, the sum of dpre over its rows for the biases. All are sums over the rows of a
// sequence, added up block by block.
//
// They are computed as one product, dpre^T [x, h_prev, 1], so that dpre is fetched and packed once. The rows of a block
// are cut into parts, whose number depends on the sizes alone. Each part has a partial sum of its own, computed in
// chunks of at most kChunk rows; the partial sums are added up in their order at the end. Threads share the parts or,
// where the gradient is too large for several partial sums, the elements of the gradient. Each thread packs all that it
// needs, even what its neighbour packs as well, so that no thread waits for another. On two threads of Zen 4 this and
// prefetching took B = 64, H = 200 from 42 to 72% of the FMA peak and B = 256, H = 32 from 27 to 54.
//
// Measured on two threads of Zen 4, FMA peak 231 to 234 GF/s: 88 and 86% of the peak at H = 512 and 1024, 73% at B =
// 32, H = 256, 62 to 64% in smaller layers. A likely cause of the rest: half of what one core writes in the recurrence
// is read by the other one here. Not tried: sharing rows here as the recurrence shares the batch.
#pragma once

#include "partial_sum.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Rows that the nearest cache holds side by side even where they are a multiple of a page apart. On Zen 3, not packing
// them takes 0.5 of the time for one row at H = 512 and 0.6 for 8 at H = 256; 16 at H = 1024 would take 3.5. 16-bit
// values are widened again for every row of the gradient, which takes 1.2 times as long with 4 rows.
template <class S>
constexpr int64_t kFewestRows = kNarrow<S> ? 2 : 8;
constexpr int64_t kPartialSumElements = 80 * 1024;  // a core's own cache holds a sum of this size beside the blocks
constexpr int64_t kMostPartialSums = 4;
constexpr int64_t kPartialSumChunks = 6;  // a part has at least half as many: adding up partial sums then costs little

// A gradient over few rows costs little more than its stores: without packing, each vector is summed and stored.
template <class S>
void few_rows_gradient(const S* a, int64_t R, int64_t M, const GatheredRows<S>& b_row, S* c, int threads) {
  using C = Compute<S>;
  const int64_t N = b_row.width;
  constexpr int L = kLanes<C>;
  constexpr int kTogether = 4;  // vectors that share a broadcast
  const int members = team_size(M * R * N, threads);
  run_team({members, 1}, [&](int id, ThreadGrid g) {
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

// The cut of a team into rows x cols for which its members pack least.
inline ThreadGrid square_grid(int members, int64_t M, int64_t N) {
  ThreadGrid best{members, 1};
  for (int cols = 1; cols <= members; ++cols)
    if (members % cols == 0 && M * cols / members + N / cols < M / best.rows + N / best.cols)
      best = {members / cols, cols};
  return best;
}

// Computes dw_ih, dw_hh and db, or those of them that are wanted.
template <class S>
class WeightGradients {
  using C = Compute<S>;

 public:
  // The results are dw_ih [H, I], dw_hh [H, H] and db [H], each null if it is not wanted. `rows` counts those of all
  // blocks, `first` those of the first block, which is the largest except for a block that ends within a step.
  WeightGradients(S* dw_ih, S* dw_hh, S* db, int64_t I, int64_t H, int64_t rows, int64_t first)
      : db_(db),
        H_(H),
        few_(rows <= kFewestRows<S>),
        left_(rows),
        partial_sums_(count_partial_sums(H * (I + H), first)),
        matrices_{{dw_ih, I, H, partial_sums_, rows, few_}, {dw_hh, H, H, partial_sums_, rows, few_}},
        bias_(db ? 2 * partial_sums_ * H : 0) {
    if (bias_) memset(bias_.get(), 0, size_t(db ? 2 * partial_sums_ * H : 0) * sizeof(C));
  }

  explicit operator bool() const { return matrices_[0].sums && matrices_[1].sums && bias_; }

  // Adds `rows` rows of dpre [rows, H], x and h_prev. Returns nonzero if there is no memory for scratch.
  //
  //   dpre^T [H, rows] times [x | h_prev], of which a thread has `height` of the rows H, some vectors of the columns
  //   and the rows of its parts to add up:
  //
  //                     strip of dw_ih      strip of dw_hh         The columns are numbered through both weights, dw_hh
  //                   +-----------------+-----------------+        from `second` on, so that a thread may have the end
  //                   of
  //     height of H   |    x part       |   h_prev part   |        one and the beginning of the other: two strips, of
  //                   +-----------------+-----------------+        which one may be empty.
  //                                     ^ second
  //
  //   Few elements     several partial sums: threads share the rows that are added up, then the columns
  //   Many elements    one partial sum: threads share H and the columns, and all add up all rows
  //
  // In the last call with one partial sum a strip writes its result at once; otherwise `finish` does.
  int add(const S* dpre, const GatheredRows<S>& x, const GatheredRows<S>& h_prev, int64_t rows, int threads) {
    const GatheredRows<S>* const b[2] = {&x, &h_prev};
    if (few_)
      for (int i = 0; i < 2; ++i)
        if (matrices_[i].c) few_rows_gradient(dpre, rows, H_, *b[i], matrices_[i].c, threads);
    left_ -= rows;
    const int64_t V[2] = {few_ ? 0 : matrices_[0].vectors(), few_ ? 0 : matrices_[1].vectors()};
    // Both strips begin with a panel of their weight, wherever they are cut: the next rows may meet another team.
    const int64_t second = (V[0] + kPanel - 1) / kPanel * kPanel;
    const int64_t width = (second + V[1]) * kLanes<C>;  // of both strips
    const int members = team_size(rows * H_ * (width + 1), threads);
    const int row_threads = int(members < partial_sums_ ? members : partial_sums_);
    const ThreadGrid grid =
        partial_sums_ > 1 ? ThreadGrid{row_threads, members / row_threads} : square_grid(members, H_, width);
    const int64_t chunk = units<S>(rows) < kChunk ? units<S>(rows) : kChunk;
    const int64_t own = (H_ + width) * chunk;  // at most, of one thread
    const Scratch<Unit<S>> packed(own * grid.size());
    if (!packed) return 1;
    run_team(grid, [&](int id, ThreadGrid g) {
      Unit<S>* own_packed = packed.get() + id * own;
      const bool by_rows = partial_sums_ > 1;
      const Range partials = by_rows ? share(partial_sums_, 1, g.row(id), g.rows) : Range{0, 1};
      const Range height = by_rows ? Range{0, H_} : share(H_, kMaxRows, g.row(id), g.rows);
      const Range all = share(second + V[1], kPanel, g.col(id), g.cols);
      const Range biases = share(height.size(), kLanes<C>, g.col(id), g.cols);
      const int64_t until = share(rows, 1, int(partials.end - 1), int(partial_sums_)).end;
      for (int64_t part = partials.begin; part < partials.end; ++part) {
        const auto strip = [&](int i, int64_t before, Unit<S>* room) {
          const Range mine = intersect(all, before, before + V[i]);
          return Strip<S>{*b[i],
                          matrices_[i].columns,
                          mine.size() ? Range{mine.begin - before, mine.end - before} : Range{0, 0},
                          matrices_[i].total(part),
                          partial_sums_ == 1 && left_ == 0 ? matrices_[i].c : nullptr,
                          room,
                          chunk};
        };
        Unit<S>* strip_room = own_packed + height.size() * chunk;
        const Strip<S> first = strip(0, 0, strip_room);
        const Strip<S> strips[2] = {first, strip(1, second, strip_room + first.width.size() * kLanes<C> * chunk)};
        add_products(dpre, rows, H_, strips, share(rows, 1, int(part), int(partial_sums_)), height, until, begun_,
                     own_packed, [&](const S* a, int64_t count) {
                       C* sum = bias_.get() + 2 * part * H_ + height.begin + biases.begin;
                       if (db_)
                         add_column_sums(a + height.begin + biases.begin, count, H_, biases.size(), sum, sum + H_);
                     });
      }
    });
    begun_ = true;
    return 0;
  }

  // Writes the results.
  void finish(int threads) const {
    for (const MatrixGradient& matrix : matrices_) matrix.reduce(threads);
    for (int64_t m = 0; db_ && m < H_; ++m) {
      C sum = 0;
      for (int64_t part = 0; part < partial_sums_; ++part) sum += bias_.get()[2 * part * H_ + m];
      narrow(sum, db_ + m);
    }
  }

 private:
  static constexpr int kPanel = 2;  // vectors

  struct MatrixGradient {
    S* const c;  // [H, N], or null
    const int64_t H;
    const Columns<C> columns;  // N
    const int64_t partial_sums;
    const bool once;        // there is but one chunk, or nothing to add up
    const Scratch<C> sums;  // [partial_sums], each the panels of [H, N]

    MatrixGradient(S* to, int64_t N, int64_t height, int64_t parts, int64_t rows, bool few)
        : c(to),
          H(height),
          columns{N, kPanel},
          partial_sums(parts),
          once(!to || few || (partial_sums == 1 && units<S>(rows) <= kChunk)),
          sums(once ? 0 : partial_sums * H * columns.padded()) {}

    int64_t vectors() const { return c ? columns.vectors() : 0; }
    C* total(int64_t part) const { return once ? nullptr : sums.get() + part * H * columns.padded(); }

    void reduce(int threads) const {
      if (once || partial_sums == 1) return;
      run_team({team_size(partial_sums * H * columns.count, threads), 1}, [&](int id, ThreadGrid g) {
        const Range vectors = share(columns.vectors(), kPanel, id, g.size());
        columns.each_panel(vectors.begin, vectors.end, [&](int64_t column, int width) {
          C* first = total(0) + column * H;
          for (int64_t i = 0; i < H * width * kLanes<C>; i += kLanes<C>) {
            Vec<C> sum = load(first + i);
            for (int64_t part = 1; part < partial_sums; ++part) sum += load(first + part * H * columns.padded() + i);
            store(first + i, sum);
          }
          each_vector(first, 0, int(H), column, width, columns.count, [&](int64_t m, int64_t n, int lanes, Vec<C> sum) {
            store_lanes(c + m * columns.count + n, sum, lanes);
          });
        });
      });
    }
  };

  static int64_t count_partial_sums(int64_t elements, int64_t rows) {
    int64_t partial_sums = 1;
    while (elements <= kPartialSumElements && partial_sums < kMostPartialSums &&
           kPartialSumChunks * partial_sums * kChunk <= rows)
      partial_sums *= 2;
    return partial_sums;
  }

  S* const db_;  // [H], or null
  const int64_t H_;
  const bool few_;
  int64_t left_;  // rows that are still to be added
  const int64_t partial_sums_;
  const MatrixGradient matrices_[2];
  const Scratch<C> bias_;  // [partial_sums_][2, H]: the sums, and what they have lost
  bool begun_ = false;
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
