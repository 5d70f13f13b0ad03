// Panels: a matrix W [K, N] cut into column panels of up to NV vectors, each stored as [K, width] so that a tile reads
// it front to back. The ragged end is cut into narrower panels (8, 4, 2, 1 vectors), so at most one vector's worth of
// columns is padding, filled with zeros.
#pragma once

#include "../scratch.h"
#include "../simd/lanes.h"
#include "../team.h"
#include "tile.h"
#include "transposing_tile.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// The columns of a product in units of vectors, and the width of panel that suits the rows that will meet it.
template <class C>
struct Columns {
  int64_t count;  // N
  int width;      // vectors in a full panel: 1, 2, 4 or 8

  int64_t vectors() const { return (count + kLanes<C> - 1) / kLanes<C>; }
  int64_t padded() const { return vectors() * kLanes<C>; }

  // Few rows get wide panels: the accumulators that they leave free hide the latency of the chain.
  static Columns for_rows(int64_t count, int64_t rows) {
    int width = kMaxVectors;
    while (width > 2 && max_rows(width) < rows) width /= 2;
    return {count, width};
  }

  // Calls f(first column, vectors) for each panel in a range of vectors that begins at a multiple of `width`, the
  // ragged end last, or, `backwards`, first.
  template <class F>
  INLINE void each_panel(int64_t begin, int64_t end, const F& f, bool backwards = false) const {
    const int64_t ragged = begin + (end - begin) / width * width;
    if (!backwards)
      for (int64_t v = begin; v < ragged; v += width) f(v * kLanes<C>, width);
    for (int64_t v = ragged, w = width; v < end; v += w) {
      while (w > end - v) w /= 2;
      f(v * kLanes<C>, int(w));
    }
    if (backwards)
      for (int64_t v = ragged; v > begin; v -= width) f((v - width) * kLanes<C>, width);
  }
};

// panel[k, j] = w[(column + j), k] for k < K, in units: a panel of the transpose of w [N, K], rows `ld` apart.
template <class S, class U = Unit<S>>
void pack_transposed(const S* w, int64_t ld, int64_t K, int64_t N, int64_t column, int vectors, U* panel) {
  constexpr int L = kLanes<U>, P = kPerUnit<S>;
  constexpr int64_t kPrefetchDistance = kChunk * P;  // values
  const int64_t width = int64_t(vectors) * L;
  const int64_t filled = N - column < width ? N - column : width;
  for (int64_t j = 0; j < width; j += L) {
    const S* rows = w + (column + j) * ld;
    int64_t k = 0;
    if (j < filled)
      for (; k + L * P <= K; k += L * P) {
        Vec<U> block[L];
        if (j + L <= filled) {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) {
            block[i] = load_units(rows + i * ld + k, L * P);
            __builtin_prefetch(rows + i * ld + k + kPrefetchDistance);
          }
        } else {
          for (int i = 0; i < L; ++i) block[i] = j + i < filled ? load_units(rows + i * ld + k, L * P) : Vec<U>{};
        }
        transpose<U>(block);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(panel + (k / P + i) * width + j, block[i]);
      }
    for (; k < K; k += P)
      for (int i = 0; i < L; ++i)
        panel[k / P * width + j + i] = j + i < filled ? unit_at(rows + i * ld + k, K - k) : U{};
  }
}

// panel[k, j] = row(k)[column + j] for k < K, in units: a panel of a matrix whose rows `row` finds.
template <class S, class Row, class U = Unit<S>>
void pack_rows(const Row& row, int64_t K, int64_t N, int64_t column, int vectors, U* panel) {
  constexpr int L = kLanes<U>, P = kPerUnit<S>;
  constexpr int64_t kPrefetchDistance = 16;  // rows; the hardware does not prefetch across pages
  const int64_t width = int64_t(vectors) * L;
  const int64_t filled = N - column < width ? N - column : width, whole = filled / L * L;
  for (int64_t k = 0; k < K; k += P, panel += width) {
    const S* from = row(k) + column;
    const S* second = P > 1 && k + 1 < K ? row(k + 1) + column : nullptr;
    const auto at = [&](int64_t j) { return second ? second + j : nullptr; };
    for (int i = 0; i < P; ++i)
      if (k + i + kPrefetchDistance < K) __builtin_prefetch(row(k + i + kPrefetchDistance) + column);
    for (int64_t j = 0; j < whole; j += L) store(panel + j, unite(from + j, at(j), L));
    if (whole < width) store(panel + whole, unite(from + whole, at(whole), int(filled - whole)));
  }
}

// to[i] = from[i] in compute precision, i < count.
template <class S>
INLINE void copy_lanes(const S* from, int64_t count, Compute<S>* to) {
  constexpr int L = kLanes<Compute<S>>;
  for (int64_t i = 0; i < count; i += L) {
    const int lanes = count - i < L ? int(count - i) : L;
    store_lanes(to + i, load_lanes(from + i, lanes), lanes);
  }
}

// Calls f(row, column, lanes, value) for each vector of a finished tile, product [height, vectors].
template <class C, class F>
INLINE void each_vector(const C* product, int64_t row, int height, int64_t column, int vectors, int64_t columns,
                        const F& f) {
  constexpr int L = kLanes<C>;
  if (column + vectors * L <= columns) {
    for (int i = 0; i < height; ++i)
      for (int j = 0; j < vectors; ++j, product += L) f(row + i, column + j * L, L, load(product));
  } else {  // the ragged end
    for (int i = 0; i < height; ++i)
      for (int j = 0; j < vectors; ++j, product += L) {
        const int64_t left = columns - column - j * L;
        f(row + i, column + j * L, left < L ? int(left) : L, load(product));
      }
  }
}

// A, in units, and the stride that goes with it, for one tile from one k on.
template <class U>
struct Operand {
  const U* a;
  int64_t ld;
};

// Rows cut into tiles of nearly equal height. A single tile, the case of a small batch, takes no division.
struct Tiles {
  Range rows;
  int64_t count, height, taller;  // the first `taller` tiles have one more row
  Tiles(Range r, int tallest)
      : rows(r),
        count(r.size() <= tallest ? (r.size() > 0) : (r.size() + tallest - 1) / tallest),
        height(count <= 1 ? r.size() : r.size() / count),
        taller(count <= 1 ? 0 : r.size() % count) {}
  Range operator[](int64_t t) const {
    const int64_t begin = rows.begin + t * height + (t < taller ? t : taller);
    return {begin, begin + height + (t < taller)};
  }
};

// W [K, N] of a product, or its transpose.
template <class S>
struct Matrix {
  const S* w;  // [N, K] if transposed, else [K, N]
  bool transposed;
  int64_t K, N;

  // Packs rows [k, k + count) of columns [column, column + vectors).
  void pack(int64_t k, int64_t count, int64_t column, int vectors, Unit<S>* panel) const {
    if (transposed)
      pack_transposed(w + k, K, count, N, column, vectors, panel);
    else
      pack_rows<S>([&](int64_t r) { return w + (k + r) * N; }, count, N, column, vectors, panel);
  }
};

// A panel: columns [column, column + vectors) of a matrix.
template <class S>
struct Panel {
  int64_t column;
  int vectors;
  const Unit<S>* units;  // [K, vectors], rows `ld` apart: packed before, or part of the matrix itself
  int64_t ld;
  // A panel that is packed whenever it is read, chunk by chunk, has the matrix here and room for one chunk in `units`.
  const Matrix<S>* source = nullptr;

  // Rows [k, k + count), in units; at most kChunk.
  INLINE const Unit<S>* chunk(int64_t k, int64_t count) const {
    return __builtin_expect(source == nullptr, 1) ? units + k * ld : pack_chunk(k, count);
  }
  __attribute__((noinline)) const Unit<S>* pack_chunk(int64_t k, int64_t count) const {
    source->pack(k * kPerUnit<S>, values(k, count), column, vectors, const_cast<Unit<S>*>(units));
    return units;
  }
  // The number of values in these rows.
  int64_t values(int64_t k, int64_t count) const {
    const int64_t left = source->K - k * kPerUnit<S>;
    return count * kPerUnit<S> < left ? count * kPerUnit<S> : left;
  }

  // Whether few rows meet rows of a transposed matrix, which are then multiplied without being packed at all.
  INLINE bool is_transposed(const Tiles& tiles) const {
    return __builtin_expect(source != nullptr, 0) && source->transposed && vectors == 1 &&
           tiles.rows.size() <= kTransposingRows;
  }
  const S* rows_of_source(int64_t k) const { return source->w + column * source->K + k * kPerUnit<S>; }
  int filled() const { return source->N - column < kLanes<Compute<S>> ? int(source->N - column) : kLanes<Compute<S>>; }
};

// What multiply_tiles does for few rows, which are one tile, and a panel that is_transposed.
template <class S, class Find, class ListPrefetches, class F>
__attribute__((noinline)) void multiply_transposed(Range rows, const Find& operand, const Panel<S>& panel,
                                                   int64_t columns, int64_t K, const ListPrefetches& list_prefetches,
                                                   const F& f) {
  using C = Compute<S>;
  alignas(64) C product[kTransposingRows * kLanes<C>];
  if (rows.size() == 0) return;
  PrefetchList prefetches;
  list_prefetches(rows, prefetches);
  for (int64_t i = 0; i < prefetches.count; ++i) prefetches.request(i);
  for (int64_t k = 0; k == 0 || k < K; k += kChunk) {
    const int64_t chunk = K - k < kChunk ? K - k : kChunk;
    const Operand<Unit<S>> from = operand(rows, k);
    pick_transposing_tile<S>(int(rows.size()))(from.a, from.ld, panel.rows_of_source(k), panel.source->K,
                                               panel.filled(), panel.values(k, chunk), k > 0, product);
  }
  each_vector(product, rows.begin, int(rows.size()), panel.column, 1, columns, f);
}

// Multiplies tiles of A [tiles.rows, K] by one panel [K, vectors]. `operand(tile, k)` finds A;
// `list_prefetches(tile, prefetches)` lists the memory that is needed when a tile is done; `f(row, column, lanes,
// value)` is called for each vector of the product. `lanes` is less than a full vector only at the ragged end. K = 0
// gives zeros.
//
// A few tiles go through k together, chunk by chunk, so that a chunk of the panel comes from the second cache level
// once for all of them.
constexpr int kTilesTogether = 4;
template <Layout layout, class S, class Find, class ListPrefetches, class F>
INLINE void multiply_tiles(const Tiles& tiles, const Find& operand, const Panel<S>& panel, int64_t columns, int64_t K,
                           const ListPrefetches& list_prefetches, const F& f) {
  using U = Unit<S>;
  using C = Compute<U>;
  const int vectors = panel.vectors;
  if (panel.is_transposed(tiles))
    return multiply_transposed(tiles.rows, operand, panel, columns, K, list_prefetches, f);
  constexpr int kTile = kAccumulators * kLanes<C>;
  alignas(64) C products[kTilesTogether * kTile];
  for (int64_t first = 0; first < tiles.count; first += kTilesTogether) {
    const int64_t last = first + kTilesTogether < tiles.count ? first + kTilesTogether : tiles.count;
    for (int64_t k = 0; k == 0 || k < K; k += kChunk) {
      const bool done = K - k <= kChunk;
      const int64_t chunk = done ? K - k : kChunk;
      const U* w = panel.chunk(k, chunk);
      for (int64_t t = first; t < last; ++t) {
        const Range tile = tiles[t];
        PrefetchList prefetches;
        if (done) list_prefetches(tile, prefetches);
        for (int64_t i = chunk; i < prefetches.count && i < PrefetchList::kCapacity; ++i) prefetches.request(i);
        const Operand<U> from = operand(tile, k);
        C* product = products + (t - first) * kTile;
        pick_tile<U, layout>(int(tile.size()), vectors)(from.a, from.ld, w, panel.ld, chunk, k > 0, product,
                                                        int64_t(vectors) * kLanes<C>, prefetches);
        if (done) each_vector(product, tile.begin, int(tile.size()), panel.column, vectors, columns, f);
      }
    }
  }
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
