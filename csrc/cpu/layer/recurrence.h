// The recurrence over a whole sequence, forward and backward, in one call.
//
//   forward    h_t    = act(pre_t + h_{t-1} W_hh^T)
//   backward   dpre_t = (dout_t + dpre_{t+1} W_hh) act'(h_t)
//
// Both do the same: at each step the carried state is multiplied by a packed weight, a term is added and a
// function applied. The carry is a [B, H] buffer in compute precision, double-buffered. Narrow storage types need no
// code of their own for that reason, nor do sequences that join late, whose rows of the carry hold their h0, or leave
// early, whose rows keep their h_n.
//
// Threads share the batch, each taking all steps on its own rows without synchronisation. If there are too few rows
// for that, or the weight is too large for one core's cache, they share the columns, with one barrier a step: a thread
// that passes it knows that all of the new carry is written and that nobody reads the old one any more.
//
// Measured on two threads of Zen 4 (FMA peak 231 to 234 GF/s), forward: 84 to 88% of the peak at B = 32 and 64 for H >=
// 256, 83% at B = 8, H = 256 and 82% at B = 32, H = 128.
// What limits it, by shape:
//   H = 128           Besides its H multiply-adds a vector of the output takes the time of 42 others, for tanh, adding
//                     pre and three stores. On Zen 1 relu reaches 88 to 89% from H = 256 on, tanh 81 to 86.
//   B = 8             A thread has four rows and reads all of the weight for them from the second cache level.
//   B = 1, H = 1024   The weight comes from the third cache level at every step: 60 to 68% of what it delivers.
#pragma once

#include "../product/panels.h"
#include "../simd/activation.h"
#include "recurrence_state.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Begins a recurrence: packs the weight and fills the carry. `Op` is the forward or the backward one. It supplies, for
// `lanes` columns of sequence b:
//   start(b, column, lanes) -> vector                          what the carry holds before the first step of b
//   list_prefetches(row, rows, column, vectors, prefetches)    lists the memory that a step will touch
//   apply(row, b, column, lanes, product, joined) -> vector    one step; returns the new carry
//   leave(state, rows, carry, panel)                           the sequences whose last step has been taken
template <class S, class Op>
void begin_recurrence(const Sequences& sequences, const Op& op, const RecurrenceState<S>& state, const Slice& mine,
                      Range to_pack) {
  using C = Compute<S>;
  state.pack(to_pack);
  for (int64_t b = mine.batch.begin; b < mine.batch.end; ++b)
    for (int64_t v = mine.vectors.begin; v < mine.vectors.end; ++v) {
      const int64_t column = v * kLanes<C>, left = sequences.H - column;
      const Vec<C> h = op.start(b, column, left < kLanes<C> ? int(left) : kLanes<C>);
      store(state.now + mine.carry + b * state.ld + column, h);
      store(state.next + mine.carry + b * state.ld + column, h);
    }
}

// Takes `count` steps on a copy of the state. The step after the last one finds that no sequence is left,
// and calls leave for those that were.
//
// Threads keep out of each other's cache lines. Neighbours in the batch are neighbours in memory, so the hardware
// prefetcher of one core fetches lines that another core is about to write, and such a line moves back and forth. Each
// thread's carry is therefore in pages of its own, and lines are prefetched for writing, in an order without a stride.
// On two cores of Zen 4 the recurrence went from 72 to 79% of the FMA peak at B = 20, H = 128 and from 84 to 86 at B =
// 8, H = 256; with the two cores far apart from 39 to 65 and from 63 to 73.
template <class S, class Op>
void take_steps(const Op& op, const RecurrenceState<S>& shared, int64_t count, const Slice& mine, Barrier& group,
                int group_size) {
  StepCursor cursor = shared.cursor;
  using C = Compute<S>;
  Carried<S>*now = shared.now + mine.carry, *next = shared.next + mine.carry;
  // Every other step goes through the panels from the last to the first: the panels read last are still in the cache,
  // even of a weight that is too large for it.
  for (bool backwards = shared.backwards; count > 0; --count, backwards = !backwards) {
    const bool more = cursor.next();
    const int64_t stay = more ? (cursor.rows() < cursor.previous() ? cursor.rows() : cursor.previous()) : 0;
    const Range leaving = intersect(mine.batch, stay, cursor.previous());
    const Range staying = intersect(mine.batch, 0, stay);
    const Range joining = more ? intersect(mine.batch, stay, cursor.rows()) : Range{0, 0};
    shared.each_panel(mine, backwards, [&](const Panel<S>& panel) {
      const int64_t column = panel.column;
      const int vectors = panel.vectors;
      if (leaving.size()) op.leave(shared, leaving, now, panel);
      const auto take = [&](Range rows, int64_t k, bool joined) {
        multiply_tiles<Layout::kRows>(
            Tiles(rows, max_rows(vectors)), shared.rows_of(now), panel, shared.columns.count, k,
            [op = op, offset = cursor.offset(), column, vectors](Range tile, PrefetchList& prefetches) {
              prefetches.for_writing = true;
              op.list_prefetches(offset + tile.begin, tile.size(), column, vectors, prefetches);
            },
            [op = op, offset = cursor.offset(), joined, next, ld = shared.ld](int64_t b, int64_t col, int lanes,
                                                                              Vec<C> product) {
              const Vec<C> h = op.apply(offset + b, b, col, lanes, product, joined);
              store(next + b * ld + col, h);
              // The value that fills up the last unit of a row is multiplied by zero: it must not be infinite or NaN.
              if constexpr (kPerUnit<S> > 1)
                if (lanes < kLanes<C>) next[b * ld + col + lanes] = Carried<S>{};
            });
      };
      take(staying, shared.K, false);
      // A sequence that joins in the forward pass has h0 in its row of the carry and is multiplied like the others. In
      // the backward pass it has nothing yet: with K = 0 the product is zero, and `apply` adds dh_n. Multiplying a
      // carry of zeros instead would take as long as any row and make NaN of an infinite weight.
      take(joining, Op::kBackward ? 0 : shared.K, true);
    });
    if (!more) return;
    group.wait(group_size);
    Carried<S>* swap = now;
    now = next;
    next = swap;
  }
}

// Takes the next `count` steps; there are T + 1. A sequence leaves in the step after its last one, when its carry is
// complete: h_n is in it, or dh0 is its product with the weight. For those that stay to the end that step is the extra
// one, which has no rows of its own.
template <class S, class Op>
int run_steps(const Sequences& sequences, const Op& op, RecurrenceState<S>& state, int64_t count) {
  const ThreadGrid grid = state.grid;
  Scratch<Barrier> barriers(grid.rows + 1);
  if (!state || !barriers) return 1;
  for (int i = 0; i <= grid.rows; ++i) barriers.get()[i] = Barrier();

  run_team(grid, [&](int id, ThreadGrid g) {
    const int64_t vectors = state.columns.vectors();
    const int width = state.columns.width;
    const bool alone = g.size() < grid.size();  // this thread then does the work of all members in turn
    for (int row = alone ? 0 : g.row(id); row < (alone ? grid.rows : g.row(id) + 1); ++row) {
      const Slice mine{id, share_batch(sequences, row, grid.rows), share(vectors, width, g.col(id), g.cols),
                       row * state.apart};
      if (!state.begun) {
        // Threads that own the same columns pack them together.
        const Range part = share(mine.vectors.size(), width, g.row(id), g.rows);
        begin_recurrence(sequences, op, state, mine, {mine.vectors.begin + part.begin, mine.vectors.begin + part.end});
        barriers.get()[grid.rows].wait(g.size());
      }
      take_steps(op, state, count, mine, barriers.get()[row], g.cols);
    }
  });
  state.begun = true;
  while (count-- > 0 && state.advance()) {
  }
  return 0;
}

template <class S, class Act>
struct ForwardRecurrence {
  using C = Compute<S>;
  static constexpr bool kBackward = false;
  const int64_t H;
  const S* h0;    // [B, H], or null for zeros
  const S* w_hh;  // [H, H]
  S* out;         // [R, H], rows `ld` apart; holds pre on entry, h on return
  int64_t ld;
  S* h_n;  // [B, H], or null

  INLINE Vec<C> start(int64_t b, int64_t column, int lanes) const {
    return h0 ? load_lanes(h0 + b * H + column, lanes) : Vec<C>{};
  }
  INLINE void list_prefetches(int64_t row, int64_t rows, int64_t column, int vectors, PrefetchList& prefetches) const {
    prefetches.add_rows(out + row * ld + column, ld * int64_t(sizeof(S)), rows,
                        vectors * kLanes<C> * int64_t(sizeof(S)));
  }
  INLINE Vec<C> apply(int64_t row, int64_t, int64_t column, int lanes, Vec<C> product, bool) const {
    S* p = out + row * ld + column;
    const Vec<C> h = round_to<S>(Act::value(load_lanes(p, lanes) + product));
    store_lanes(p, h, lanes);
    return h;
  }
  void leave(const RecurrenceState<S>& state, Range rows, const Carried<S>* carry, const Panel<S>& panel) const {
    if (!h_n) return;
    for (int64_t b = rows.begin; b < rows.end; ++b)
      for (int64_t j = panel.column; j < panel.column + panel.vectors * kLanes<C> && j < H; ++j)
        narrow(widen(carry[b * state.ld + j]), h_n + b * H + j);
  }
};

template <class S, class Act>
struct BackwardRecurrence {
  using C = Compute<S>;
  static constexpr bool kBackward = true;
  const int64_t H;
  const S* dout;  // [R, H], rows `ld` apart, or null
  const S* dh_n;  // [B, H], or null
  const S* w_hh;  // [H, H], or null: a single step whose dh0 is not wanted reads none
  const S* out;   // [R, H], rows `ld` apart
  int64_t ld;
  S* dh0;   // [B, H], or null
  S* dpre;  // [rows of the pass, H]; its first row is row `first` of the sequence
  int64_t first;

  INLINE Vec<C> start(int64_t, int64_t, int) const { return Vec<C>{}; }
  INLINE void list_prefetches(int64_t row, int64_t rows, int64_t column, int vectors, PrefetchList& prefetches) const {
    const int64_t stride = ld * int64_t(sizeof(S)), bytes = vectors * kLanes<C> * int64_t(sizeof(S));
    prefetches.add_rows(out + row * ld + column, stride, rows, bytes);
    if (dout) prefetches.add_rows(dout + row * ld + column, stride, rows, bytes);
    prefetches.add_rows(dpre + (row - first) * H + column, H * int64_t(sizeof(S)), rows, bytes);
  }
  INLINE Vec<C> apply(int64_t row, int64_t b, int64_t column, int lanes, Vec<C> product, bool joined) const {
    if (dout) product += load_lanes(dout + row * ld + column, lanes);
    if (joined && dh_n) product += load_lanes(dh_n + b * H + column, lanes);
    const Vec<C> h = load_lanes(out + row * ld + column, lanes);
    const Vec<C> g = round_to<S>(Act::backward(product, h));
    store_lanes(dpre + (row - first) * H + column, g, lanes);
    return g;
  }
  void leave(const RecurrenceState<S>& state, Range rows, const Carried<S>* carry, const Panel<S>& panel) const {
    if (!dh0) return;
    multiply_tiles<Layout::kRows>(
        Tiles(rows, max_rows(panel.vectors)), state.rows_of(carry), panel, H, state.K, [](Range, PrefetchList&) {},
        [&](int64_t b, int64_t col, int lanes, Vec<C> product) { store_lanes(dh0 + b * H + col, product, lanes); });
  }
};

template <class S, class Act>
int recurrence(const RecurrenceArgs& args, int threads) {
  const ForwardRecurrence<S, Act> op{
      args.sequences.H, static_cast<const S*>(args.h0), static_cast<const S*>(args.w_hh), static_cast<S*>(args.out),
      args.sequences.H, static_cast<S*>(args.h_n)};
  RecurrenceState<S> state(args.sequences, op.kBackward, op.w_hh, threads);
  return run_steps(args.sequences, op, state, args.sequences.T + 1);
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
