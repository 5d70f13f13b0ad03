// The recurrence over a whole sequence, forward and backward, in one call.
//
//   forward    h_t    = act(pre_t + h_{t-1} W_hh^T)
//   backward   dpre_t = (dout_t + dpre_{t+1} W_hh) act'(h_t)
//
// Both are the same walk: at each step the carried state is multiplied by a packed weight, a term is added and a
// function applied. The carry is a [B, H] buffer in compute precision, double-buffered. Narrow storage types need no
// code of their own for that reason, nor do sequences that join late, whose rows of the carry hold their h0, or leave
// early, whose rows keep their h_n.
//
// Threads share the batch, each walking all steps on its own rows without synchronisation. If there are too few rows
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
#include "sequences.h"

namespace rnnfast {
namespace RNNFAST_ISA {

constexpr int64_t kNearBytes = 256 * 1024;  // weights up to this size are read from a core's own cache at full speed
constexpr int64_t kOwnBytes = 1024 * 1024;  // weights up to this size stay there: 1 MiB is the smallest in use
constexpr int64_t kApartBytes = 8 * 1024;   // between the carries of two threads
constexpr int64_t kManyRows = 64;           // of a thread in a step: from here on reading any weight costs little
constexpr int64_t kFewSteps = 4;            // walks up to this length do not gain by packing the weight
// What sharing a step costs, in multiply-adds: for every thread at the barrier, where they arrive one after the other,
// and for every row of the carry, which the others have written. On two neighbouring cores of Zen 1, sharing takes 0.76
// (forward) and 0.82 (backward) of one thread's time at B = 1, H = 160, 0.71 and 0.77 at B = 2, H = 128; on two distant
// cores 0.98 and 0.94, 1.03 and 0.92. Layers that these constants leave to one thread would take 0.73 and 0.80, or 1.06
// and 0.97 (B = 1, H = 128), 0.83 and 0.87, or 1.22 and 1.07 (B = 3, H = 96).
constexpr int64_t kBarrierFmas = 4 * 1024;
constexpr int64_t kRowFmas = 4 * 1024;

// How many threads to use for a recurrence and what each owns. A thread with its own rows reads the whole weight at
// every step, so it needs enough rows to spread that over: measured on two threads, 2 rows each at H = 256, 4 at 512.
// At H = 1024 sharing the columns is faster until there are so many rows that waiting at the barrier costs more: on two
// threads of Zen 3, with other load on the machine, own rows reached 76 to 78% of the FMA peak at B = 256 and columns
// 71 to 74.
template <class S>
Grid plan_recurrence(const Walk& walk, int64_t rows, int threads) {
  const int64_t fmas = rows * walk.H * walk.H;
  const int team = team_for(fmas, threads);
  if (team == 1) return {1, 1};
  const int64_t step_rows = rows / walk.T;
  const int64_t weight = walk.H * units<S>(walk.H) * int64_t(sizeof(Unit<S>));
  const int64_t fewest = weight <= kNearBytes ? 2 : 4;
  const int64_t row_teams = walk.B / fewest < team ? walk.B / fewest : team;
  if (row_teams == team && (weight <= kOwnBytes || step_rows >= kManyRows * team)) return {team, 1};
  const int64_t step_fmas = fmas / walk.T / kPerUnit<S>;
  const auto columns = Columns<Compute<S>>::for_rows(walk.H, walk.B);
  const int64_t panels = (columns.vectors() + columns.width - 1) / columns.width;
  int col_teams = 1;
  while (col_teams < team && col_teams < panels && (col_teams + 1) * (col_teams + 1) * kBarrierFmas <= step_fmas)
    ++col_teams;
  const int64_t price = col_teams * kBarrierFmas + step_rows * kRowFmas;
  if (col_teams > 1 && step_fmas - step_fmas / col_teams >= price) return {1, col_teams};
  return {row_teams > 1 ? int(row_teams) : 1, 1};
}

// What one thread owns: sequences, whose carry begins `carry` values into the buffer, and vectors of columns.
struct Slice {
  Range batch, vectors;
  int64_t carry;
};

// The state of a walk: the packed weight, the two carry buffers, and the position. Shared by the team.
template <class S>
struct State {
  using C = Compute<S>;
  const Grid grid;
  const Columns<C> columns;
  const int64_t apart;  // values between the carry rows of one thread and those of the next
  const int64_t K;      // of the weight, in units
  const int64_t ld;     // of the carry: an odd number of cache lines, so that rows do not compete for cache sets
  // [H, H], or null. Where it is given, whole vectors of the weight are read here instead of being packed.
  const Unit<S>* in_place;
  const Scratch<Unit<S>> weight;
  const Scratch<Carried<S>> carry;
  Steps steps;
  Carried<S>*now, *next;
  bool begun = false, backwards = false;

  State(const Walk& walk, bool backward, const Unit<S>* w, int threads)
      : grid(plan_recurrence<S>(walk, total_rows(walk), threads)),
        columns(Columns<C>::for_rows(walk.H, (walk.B + grid.rows - 1) / grid.rows)),
        apart(grid.rows > 1 ? kApartBytes / int64_t(sizeof(Carried<S>)) : 0),
        K(units<S>(walk.H)),
        ld(((columns.padded() * int64_t(sizeof(Carried<S>)) + 63) / 64 | 1) * 64 / int64_t(sizeof(Carried<S>))),
        in_place(walk.T <= kFewSteps ? w : nullptr),
        weight(columns.padded() * K),
        carry(2 * (walk.B * ld + grid.rows * apart)),
        steps(walk, backward),
        now(carry.get()),
        next(now + walk.B * ld + grid.rows * apart) {}

  explicit operator bool() const { return weight && carry; }

  // Moves past one step. Returns false after the last.
  bool advance() {
    const bool more = steps.next();
    backwards = !backwards;
    Carried<S>* swap = now;
    now = next;
    next = swap;
    return more;
  }

  auto rows_of(const Carried<S>* carry_) const {
    return [this, units = reinterpret_cast<const Unit<S>*>(carry_), stride = ld / kPerUnit<S>](Range tile, int64_t k) {
      return Operand<Unit<S>>{units + tile.begin * stride + k, stride};
    };
  }

  bool is_packed(int64_t column, int vectors) const { return !in_place || column + vectors * kLanes<C> > K; }

  // Calls f(panel, row stride of the panel, first column, vectors) for each panel in a slice.
  template <class F>
  INLINE void each_panel(const Slice& slice, bool backwards, const F& f) const {
    const auto find = [&](int64_t column, int vectors) {
      if (is_packed(column, vectors))
        f(weight.get() + column * K, int64_t(vectors) * kLanes<C>, column, vectors);
      else
        f(in_place + column, K, column, vectors);
    };
    columns.each_panel(slice.vectors.begin, slice.vectors.end, find, backwards);
  }
};

// Begins a walk: packs the weight and fills the carry. `Op` is the direction. It supplies, for `lanes` columns of
// sequence b:
//   pack(column, vectors, panel)                        packs a panel of the weight
//   in_place()                                          the weight, if it can be read unpacked, or null
//   start(b, column, lanes) -> vector                   what the carry holds before the first step of b
//   soon(row, rows, column, vectors, wanted)            lists the memory that step will touch
//   step(row, b, column, lanes, product, joined) -> vector   one step; returns the new carry
//   leave(state, rows, carry, panel, ldp, column, vectors)   the sequences whose last step has been taken
template <class S, class Op>
void begin_walk(const Walk& walk, const Op& op, const State<S>& state, const Slice& mine, Range to_pack) {
  using C = Compute<S>;
  state.columns.each_panel(to_pack.begin, to_pack.end, [&](int64_t column, int vectors) {
    if (state.is_packed(column, vectors)) op.pack(column, vectors, state.weight.get() + column * state.K);
  });
  for (int64_t b = mine.batch.begin; b < mine.batch.end; ++b)
    for (int64_t v = mine.vectors.begin; v < mine.vectors.end; ++v) {
      const int64_t column = v * kLanes<C>, left = walk.H - column;
      const Vec<C> h = op.start(b, column, left < kLanes<C> ? int(left) : kLanes<C>);
      store(state.now + mine.carry + b * state.ld + column, h);
      store(state.next + mine.carry + b * state.ld + column, h);
    }
}

// Takes `count` steps on a copy of the state. The step after the last one of the walk finds that no sequence is left,
// and calls leave for those that were.
//
// Threads keep out of each other's cache lines. Neighbours in the batch are neighbours in memory, so the hardware
// prefetcher of one core fetches lines that another core is about to write, and such a line moves back and forth. Each
// thread's carry is therefore in pages of its own, and lines are prefetched for writing, in an order without a stride.
// On two cores of Zen 4 the recurrence went from 72 to 79% of the FMA peak at B = 20, H = 128 and from 84 to 86 at B =
// 8, H = 256; with the two cores far apart from 39 to 65 and from 63 to 73.
template <class S, class Op>
void walk_slice(const Op& op, const State<S>& shared, int64_t count, const Slice& mine, Barrier& group,
                int group_size) {
  Steps steps = shared.steps;
  using C = Compute<S>;
  Carried<S>*now = shared.now + mine.carry, *next = shared.next + mine.carry;
  // Every other step goes through the panels from the last to the first: the panels read last are still in the cache,
  // even of a weight that is too large for it.
  for (bool backwards = shared.backwards; count > 0; --count, backwards = !backwards) {
    const bool more = steps.next();
    const int64_t stay = more ? (steps.rows() < steps.previous() ? steps.rows() : steps.previous()) : 0;
    const Range leaving = intersect(mine.batch, stay, steps.previous());
    const Range staying = intersect(mine.batch, 0, stay);
    const Range joining = more ? intersect(mine.batch, stay, steps.rows()) : Range{0, 0};
    shared.each_panel(mine, backwards, [&](const Unit<S>* panel, int64_t ldp, int64_t column, int vectors) {
      if (leaving.size()) op.leave(shared, leaving, now, panel, ldp, column, vectors);
      const auto take = [&](Range rows, int64_t k, bool joined) {
        each_product<Layout::kRows>(
            Tiles(rows, max_rows(vectors)), shared.rows_of(now), panel, ldp, column, vectors, shared.columns.count, k,
            [op = op, offset = steps.offset(), column, vectors](Range tile, Wanted& wanted) {
              wanted.own = true;
              op.soon(offset + tile.begin, tile.size(), column, vectors, wanted);
            },
            [op = op, offset = steps.offset(), joined, next, ld = shared.ld](int64_t b, int64_t col, int lanes,
                                                                             Vec<C> product) {
              const Vec<C> h = op.step(offset + b, b, col, lanes, product, joined);
              store(next + b * ld + col, h);
              // The value that fills up the last unit of a row is multiplied by zero: it must not be infinite or NaN.
              if constexpr (kPerUnit<S> > 1)
                if (lanes < kLanes<C>) next[b * ld + col + lanes] = Carried<S>{};
            });
      };
      take(staying, shared.K, false);
      take(joining, Op::kBackward ? 0 : shared.K, true);
    });
    if (!more) return;
    group.wait(group_size);
    Carried<S>* swap = now;
    now = next;
    next = swap;
  }
}

// Takes the next `count` steps of a walk; a whole walk is T + 1.
template <class S, class Op>
int run_walk(const Walk& walk, const Op& op, State<S>& state, int64_t count) {
  const Grid grid = state.grid;
  Scratch<Barrier> barriers(grid.rows + 1);
  if (!state || !barriers) return 1;
  for (int i = 0; i <= grid.rows; ++i) barriers.get()[i] = Barrier();

  run_grid(grid, [&](int id, Grid g) {
    const int64_t vectors = state.columns.vectors();
    const int width = state.columns.width;
    const bool alone = g.size() < grid.size();  // this thread then does the work of all members in turn
    for (int row = alone ? 0 : g.row(id); row < (alone ? grid.rows : g.row(id) + 1); ++row) {
      const Slice mine{share_batch(walk, row, grid.rows), share(vectors, width, g.col(id), g.cols), row * state.apart};
      if (!state.begun) {
        // Threads that own the same columns pack them together.
        const Range part = share(mine.vectors.size(), width, g.row(id), g.rows);
        begin_walk(walk, op, state, mine, {mine.vectors.begin + part.begin, mine.vectors.begin + part.end});
        barriers.get()[grid.rows].wait(g.size());
      }
      walk_slice(op, state, count, mine, barriers.get()[row], g.cols);
    }
  });
  state.begun = true;
  while (count-- > 0 && state.advance()) {
  }
  return 0;
}

template <class S, class Act>
struct ForwardOp {
  using C = Compute<S>;
  static constexpr bool kBackward = false;
  const int64_t H;
  const S* h0;    // [B, H], or null for zeros
  const S* w_hh;  // [H, H]
  S* out;         // [R, H], rows `ld` apart; holds pre on entry, h on return
  int64_t ld;
  S* h_n;  // [B, H], or null

  void pack(int64_t column, int vectors, Unit<S>* panel) const { pack_transposed(w_hh, H, H, column, vectors, panel); }
  const Unit<S>* in_place() const { return nullptr; }  // transposed
  INLINE Vec<C> start(int64_t b, int64_t column, int lanes) const {
    return h0 ? load_lanes(h0 + b * H + column, lanes) : Vec<C>{};
  }
  INLINE void soon(int64_t row, int64_t rows, int64_t column, int vectors, Wanted& wanted) const {
    wanted.add_rows(out + row * ld + column, ld * int64_t(sizeof(S)), rows, vectors * kLanes<C> * int64_t(sizeof(S)));
  }
  INLINE Vec<C> step(int64_t row, int64_t, int64_t column, int lanes, Vec<C> product, bool) const {
    S* p = out + row * ld + column;
    const Vec<C> h = round_to<S>(Act::value(load_lanes(p, lanes) + product));
    store_lanes(p, h, lanes);
    return h;
  }
  void leave(const State<S>& state, Range rows, const Carried<S>* carry, const Unit<S>*, int64_t, int64_t column,
             int vectors) const {
    if (!h_n) return;
    for (int64_t b = rows.begin; b < rows.end; ++b)
      for (int64_t j = column; j < column + vectors * kLanes<C> && j < H; ++j)
        narrow(widen(carry[b * state.ld + j]), h_n + b * H + j);
  }
};

template <class S, class Act>
struct BackwardOp {
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

  void pack(int64_t column, int vectors, Unit<S>* panel) const {
    if (w_hh) pack_rows<S>([&](int64_t k) { return w_hh + k * H; }, H, H, column, vectors, panel);
  }
  const Unit<S>* in_place() const {
    if constexpr (kNarrow<S>)
      return nullptr;
    else
      return w_hh;
  }
  INLINE Vec<C> start(int64_t, int64_t, int) const { return Vec<C>{}; }
  INLINE void soon(int64_t row, int64_t rows, int64_t column, int vectors, Wanted& wanted) const {
    const int64_t stride = ld * int64_t(sizeof(S)), bytes = vectors * kLanes<C> * int64_t(sizeof(S));
    wanted.add_rows(out + row * ld + column, stride, rows, bytes);
    if (dout) wanted.add_rows(dout + row * ld + column, stride, rows, bytes);
    wanted.add_rows(dpre + (row - first) * H + column, H * int64_t(sizeof(S)), rows, bytes);
  }
  INLINE Vec<C> step(int64_t row, int64_t b, int64_t column, int lanes, Vec<C> product, bool joined) const {
    if (dout) product += load_lanes(dout + row * ld + column, lanes);
    if (joined && dh_n) product += load_lanes(dh_n + b * H + column, lanes);
    const Vec<C> h = load_lanes(out + row * ld + column, lanes);
    const Vec<C> g = round_to<S>(Act::backward(product, h));
    store_lanes(dpre + (row - first) * H + column, g, lanes);
    return g;
  }
  void leave(const State<S>& state, Range rows, const Carried<S>* carry, const Unit<S>* panel, int64_t ldp,
             int64_t column, int vectors) const {
    if (!dh0) return;
    each_product<Layout::kRows>(
        Tiles(rows, max_rows(vectors)), state.rows_of(carry), panel, ldp, column, vectors, H, state.K,
        [](Range, Wanted&) {},
        [&](int64_t b, int64_t col, int lanes, Vec<C> product) { store_lanes(dh0 + b * H + col, product, lanes); });
  }
};

template <class S, class Act>
int forward(const ForwardArgs& args, int threads) {
  const ForwardOp<S, Act> op{
      args.walk.H, static_cast<const S*>(args.h0), static_cast<const S*>(args.w_hh), static_cast<S*>(args.out),
      args.walk.H, static_cast<S*>(args.h_n)};
  State<S> state(args.walk, op.kBackward, op.in_place(), threads);
  return run_walk(args.walk, op, state, args.walk.T + 1);
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
