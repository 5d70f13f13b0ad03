// How a recurrence is shared among threads, and the state that it carries from step to step.
#pragma once

#include "../product/reading.h"
#include "sequences.h"

namespace rnnfast {
namespace RNNFAST_ISA {

constexpr int64_t kNearBytes = 256 * 1024;  // weights up to this size are read from a core's own cache at full speed
constexpr int64_t kOwnBytes = 1024 * 1024;  // weights up to this size stay there: 1 MiB is the smallest in use
constexpr int64_t kApartBytes = 8 * 1024;   // between the carries of two threads
constexpr int64_t kManyRows = 64;           // of a thread in a step: from here on reading any weight costs little
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
ThreadGrid plan_recurrence(const Sequences& sequences, int64_t rows, int threads) {
  const int64_t fmas = rows * sequences.H * sequences.H;
  const int members = team_size(fmas, threads);
  if (members == 1) return {1, 1};
  const int64_t step_rows = rows / sequences.T;
  const int64_t weight = sequences.H * units<S>(sequences.H) * int64_t(sizeof(Unit<S>));
  const int64_t fewest = weight <= kNearBytes ? 2 : 4;
  const int64_t row_threads = sequences.B / fewest < members ? sequences.B / fewest : members;
  if (row_threads == members && (weight <= kOwnBytes || step_rows >= kManyRows * members)) return {members, 1};
  const int64_t step_fmas = fmas / sequences.T / kPerUnit<S>;
  const auto columns = Columns<Compute<S>>::for_rows(sequences.H, sequences.B);
  const int64_t panels = (columns.vectors() + columns.width - 1) / columns.width;
  int col_threads = 1;
  while (col_threads < members && col_threads < panels &&
         (col_threads + 1) * (col_threads + 1) * kBarrierFmas <= step_fmas)
    ++col_threads;
  const int64_t price = col_threads * kBarrierFmas + step_rows * kRowFmas;
  if (col_threads > 1 && step_fmas - step_fmas / col_threads >= price) return {1, col_threads};
  return {row_threads > 1 ? int(row_threads) : 1, 1};
}

// What one thread owns: sequences, whose carry begins `carry` values into the buffer, and vectors of columns.
struct Slice {
  int id;
  Range batch, vectors;
  int64_t carry;
};

// The state of a recurrence: the packed weight, the two carry buffers, and the position. Shared by the team.
template <class S>
struct RecurrenceState {
  using C = Compute<S>;
  const ThreadGrid grid;
  const Matrix<S> weight;
  const Reading reading;
  const Columns<C> columns;
  const int64_t apart;  // values between the carry rows of one thread and those of the next
  const int64_t K;      // of the weight, in units
  const int64_t ld;     // of the carry: an odd number of cache lines, so that rows do not compete for cache sets
  const Scratch<Unit<S>> packed;  // the weight, if it is packed before the first step
  const int64_t room;             // else units of `rooms` for each thread: one chunk of a panel
  const Scratch<Unit<S>> rooms;
  const Scratch<Carried<S>> carry;
  StepCursor cursor;
  Carried<S>*now, *next;
  bool begun = false, backwards = false;

  // `w` is the weight [H, H], or null if no step needs it. A forward pass multiplies by its transpose.
  RecurrenceState(const Sequences& sequences, bool backward, const S* w, int threads)
      : grid(plan_recurrence<S>(sequences, total_rows(sequences), threads)),
        weight{w, !backward, sequences.H, sequences.H},
        reading(choose_reading(weight, grid, sequences.T, sequences.B)),
        columns(columns_for(weight, reading, (sequences.B + grid.rows - 1) / grid.rows)),
        apart(grid.rows > 1 ? kApartBytes / int64_t(sizeof(Carried<S>)) : 0),
        K(units<S>(sequences.H)),
        // Bytes of a row, rounded up to cache lines of 64; `| 1` makes the number of lines odd; then back to values.
        // With 64 lines (H = 1024 in float32) all rows of a tile, which are read at the same k, would meet in one set
        // of a cache of 64 sets; an odd number spreads them over all sets.
        ld(((columns.padded() * int64_t(sizeof(Carried<S>)) + 63) / 64 | 1) * 64 / int64_t(sizeof(Carried<S>))),
        packed(reading == Reading::kPacked ? columns.padded() * K : 0),
        room(reading == Reading::kPacked ? 0 : columns.width * kLanes<C> * (K < kChunk ? K : kChunk)),
        rooms(grid.size() * room),
        carry(2 * (sequences.B * ld + grid.rows * apart)),
        cursor(sequences, backward),
        now(carry.get()),
        next(now + sequences.B * ld + grid.rows * apart) {}

  explicit operator bool() const { return packed && rooms && carry; }

  // Moves past one step. Returns false after the last.
  bool advance() {
    const bool more = cursor.next();
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

  // Packs panels, of which every thread may then read all.
  void pack(Range vectors) const {
    if (reading != Reading::kPacked || !weight.w) return;
    columns.each_panel(vectors.begin, vectors.end, [&](int64_t column, int width) {
      weight.pack(0, weight.K, column, width, packed.get() + column * K);
    });
  }

  // Calls f(panel) for each panel in a slice.
  template <class F>
  INLINE void each_panel(const Slice& slice, bool backwards, const F& f) const {
    Unit<S>* const own = rooms.get() + slice.id * room;
    columns.each_panel(
        slice.vectors.begin, slice.vectors.end,
        [&](int64_t column, int width) { f(panel_of(weight, reading, column, width, packed.get() + column * K, own)); },
        backwards);
  }
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
