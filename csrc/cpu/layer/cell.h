// The recurrence of any cell: leaky and ctrnn, noise, resets, activations beyond tanh and relu. Equations are those of
// ../../common.h.
//
// Elman's cell with tanh or relu is a template of its own in recurrence.h. All else is the one operation a pass below,
// a template of the cell, which chooses the activation and whether there are noise and resets at run time, for each
// vector anew. Such branches are predicted, and a template for each choice would make the objects several times as
// large.
//
// What is multiplied by W_hh at a step is the carry, h or r, as it is stored. What else goes from step to step, the
// leak, is in a buffer of its own, [B, H] in compute precision: with a 16-bit dtype and a small alpha, h + alpha (f -
// h) would round to h. Outputs, inner values and gradients are rounded to the dtype as they are stored. A reset step
// finds zeros in both buffers, which the step before has put there; only ctrnn's carry is then act(0).
//
// With alpha = 1 the bits are those of Elman's cell: a product by 1 - alpha = 0 is added to one by 1.
#pragma once

#include "recurrence.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// In place of an activation: the operations of this file.
template <Cell kCell>
struct AnyOf {};
template <class Act>
constexpr bool kPlain = true;
template <Cell kCell>
constexpr bool kPlain<AnyOf<kCell>> = false;

// What the operations of both passes know of a cell.
template <class S>
struct CellTerms {
  using C = Compute<S>;
  Cell cell;
  Activation activation;
  const S* alpha;         // [H], or null of Elman's cell
  const uint8_t* resets;  // [R], or null

  bool leaks() const { return cell != Cell::kElman; }
  INLINE bool is_reset(int64_t row) const { return resets && resets[row]; }

  // What is multiplied by W_hh where the state is `state`.
  INLINE Vec<C> carried(Vec<C> state) const {
    return cell == Cell::kCtrnn ? round_to<S>(activate<C>(activation, state)) : state;
  }
};

// a b, rounded before anything is added to it. Where the compiler may choose which of two products it fuses with their
// sum, the bits of a sequence could depend on its place in the batch.
template <class V>
INLINE V rounded_product(V a, V b) {
  V product = a * b;
#if defined(__x86_64__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#endif
  return product;
}

// The buffer of what leaks from a step to the next, whose rows are those of the carry.
template <class S>
struct Leak {
  using C = Compute<S>;
  C* at;  // [B, H], rows `ld` apart, or null of Elman's cell
  int64_t ld;

  static int64_t row_length(int64_t H) { return ((H * int64_t(sizeof(C)) + 63) / 64 | 1) * 64 / int64_t(sizeof(C)); }
  static int64_t size(const CellTerms<S>& terms, const Sequences& sequences) {
    return terms.leaks() ? sequences.B * row_length(sequences.H) : 0;
  }
  INLINE C* operator()(int64_t b, int64_t column) const { return at + b * ld + column; }
};

template <class S, Cell kCell>
struct ForwardRecurrence<S, AnyOf<kCell>> {
  using C = Compute<S>;
  static constexpr bool kLeaks = kCell != Cell::kElman, kCtrnn = kCell == Cell::kCtrnn;
  static constexpr bool kBackward = false;
  const int64_t H;
  const S* h0;    // [B, H], or null for zeros
  const S* w_hh;  // [H, H]
  S* out;         // [R, H], rows `ld` apart; holds x W_ih^T and the biases on entry, h or r on return
  int64_t ld;
  S* h_n;    // [B, H], or null
  S* inner;  // [R, H], rows `ld` apart, or null if they are not wanted
  CellTerms<S> terms;
  const S* noise;  // [R, H], or null
  Leak<S> leak;
  int64_t R;      // of a dense batch
  int64_t first;  // the row where sequence 0 begins, of a dense batch
  int64_t after;  // from a row to the one of the next step, of a dense batch

  INLINE Vec<C> start(int64_t b, int64_t column, int lanes) const {
    const bool zero = !h0 || terms.is_reset(first + b);
    const Vec<C> state = zero ? Vec<C>{} : load_lanes(h0 + b * H + column, lanes);
    if constexpr (kLeaks) store(leak(b, column), state);
    return terms.carried(state);
  }
  INLINE void list_prefetches(int64_t row, int64_t rows, int64_t column, int vectors, PrefetchList& prefetches) const {
    const int64_t stride = ld * int64_t(sizeof(S)), bytes = vectors * kLanes<C> * int64_t(sizeof(S));
    prefetches.add_rows(out + row * ld + column, stride, rows, bytes);
    if (inner) prefetches.add_rows(inner + row * ld + column, stride, rows, bytes);
    if (noise) prefetches.add_rows(noise + row * H + column, H * int64_t(sizeof(S)), rows, bytes);
  }
  INLINE Vec<C> apply(int64_t row, int64_t b, int64_t column, int lanes, Vec<C> product, bool) const {
    S* p = out + row * ld + column;
    Vec<C> a = load_lanes(p, lanes) + product, h, state{};
    if constexpr (kCtrnn) {
      const Vec<C> alpha = load_lanes(terms.alpha + column, lanes);
      state = rounded_product(C(1) - alpha, load(leak(b, column))) + alpha * a;
      if (noise) state += load_lanes(noise + row * H + column, lanes);
      if (inner) store_lanes(inner + row * ld + column, state, lanes);
      h = activate<C>(terms.activation, state);
    } else {
      if (noise) a += load_lanes(noise + row * H + column, lanes);
      h = activate<C>(terms.activation, a);
      if constexpr (kLeaks) {
        const Vec<C> alpha = load_lanes(terms.alpha + column, lanes);
        if (inner) store_lanes(inner + row * ld + column, h, lanes);
        state = h = rounded_product(C(1) - alpha, load(leak(b, column))) + alpha * h;
      }
    }
    h = round_to<S>(h);
    store_lanes(p, h, lanes);
    if (terms.resets) {
      const int64_t next = row + after;
      if (next >= 0 && next < R && terms.resets[next]) {
        state = Vec<C>{};
        h = terms.carried(state);
      }
    }
    if constexpr (kLeaks) store(leak(b, column), state);
    return h;
  }
  void leave(const RecurrenceState<S>& carries, Range rows, const Carried<S>* carry, const Panel<S>& panel) const {
    if (!h_n) return;
    for (int64_t b = rows.begin; b < rows.end; ++b)
      for (int64_t j = panel.column; j < panel.column + panel.vectors * kLanes<C> && j < H; ++j)
        narrow(kLeaks ? *leak(b, j) : C(widen(carry[b * carries.ld + j])), h_n + b * H + j);
  }
};

template <class S, Cell kCell>
struct BackwardRecurrence<S, AnyOf<kCell>> {
  using C = Compute<S>;
  static constexpr bool kLeaks = kCell != Cell::kElman, kCtrnn = kCell == Cell::kCtrnn;
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
  const S* inner;   // [R, H], rows `ld` apart, or null of Elman's cell
  const S* dinner;  // [R, H], rows `ld` apart, or null
  CellTerms<S> terms;
  const S* h0;  // [B, H], or null for zeros
  Leak<S> leak;
  S* dstate;  // [rows of the pass, H], the gradient of h or v, or null if it is not wanted

  INLINE Vec<C> start(int64_t b, int64_t column, int) const {
    if constexpr (kLeaks) store(leak(b, column), Vec<C>{});
    return Vec<C>{};
  }
  // Where the value is from which act' is computed.
  INLINE const S* values() const { return kCell == Cell::kLeaky ? inner : out; }
  INLINE void list_prefetches(int64_t row, int64_t rows, int64_t column, int vectors, PrefetchList& prefetches) const {
    const int64_t stride = ld * int64_t(sizeof(S)), bytes = vectors * kLanes<C> * int64_t(sizeof(S));
    prefetches.add_rows(values() + row * ld + column, stride, rows, bytes);
    if (dout) prefetches.add_rows(dout + row * ld + column, stride, rows, bytes);
    if (dinner) prefetches.add_rows(dinner + row * ld + column, stride, rows, bytes);
    prefetches.add_rows(dpre + (row - first) * H + column, H * int64_t(sizeof(S)), rows, bytes);
    if (dstate) prefetches.add_rows(dstate + (row - first) * H + column, H * int64_t(sizeof(S)), rows, bytes);
  }
  INLINE Vec<C> apply(int64_t row, int64_t b, int64_t column, int lanes, Vec<C> product, bool joined) const {
    const Vec<C> value = load_lanes(values() + row * ld + column, lanes);
    if (dout) product += load_lanes(dout + row * ld + column, lanes);
    Vec<C> g = kCtrnn ? differentiate<C>(terms.activation, product, value) : product;
    if (joined && dh_n) g += load_lanes(dh_n + b * H + column, lanes);
    if (dinner) g += load_lanes(dinner + row * ld + column, lanes);
    if constexpr (kLeaks) g += load(leak(b, column));
    Vec<C> own = kCtrnn ? g : differentiate<C>(terms.activation, g, value);
    if (dstate) store_lanes(dstate + (row - first) * H + column, g, lanes);
    const bool cut = terms.is_reset(row);
    if constexpr (kLeaks) {
      const Vec<C> alpha = load_lanes(terms.alpha + column, lanes);
      own = rounded_product(alpha, own);
      store(leak(b, column), cut ? Vec<C>{} : rounded_product(C(1) - alpha, g));
    }
    own = round_to<S>(own);
    store_lanes(dpre + (row - first) * H + column, own, lanes);
    return cut ? Vec<C>{} : own;
  }
  void leave(const RecurrenceState<S>& carries, Range rows, const Carried<S>* carry, const Panel<S>& panel) const {
    if (!dh0) return;
    multiply_tiles<Layout::kRows>(
        Tiles(rows, max_rows(panel.vectors)), carries.rows_of(carry), panel, H, carries.K, [](Range, PrefetchList&) {},
        [&](int64_t b, int64_t col, int lanes, Vec<C> product) {
          if constexpr (kCtrnn)
            product = differentiate<C>(terms.activation, product,
                                       terms.carried(h0 ? load_lanes(h0 + b * H + col, lanes) : Vec<C>{}));
          if constexpr (kLeaks) product += load(leak(b, col));
          store_lanes(dh0 + b * H + col, product, lanes);
        });
  }
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
