// One slab of the gradients: what one thread adds up over a range of rows, while it is near.
#pragma once

#include "ahead.h"
#include "panels.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Whether a tile asks for the sums that it will add to. With 16 registers it has 6 of them, which come as one, and
// asking costs more: without, H = 1024 went from 78 to 83% of the FMA peak and H = 256 from 77 to 80 (Zen 3).
constexpr bool kAskForSums = kRegisters == 32;

// The rows of a matrix [.., width], which need not follow one another: row r is row r of `base`, or, with an index, row
// index[r] of it, or, if that is negative, row ~index[r] of `other`.
template <class S>
struct Rows {
  const S* base;
  int64_t width;
  const int64_t* index;
  const S* other;

  INLINE const S* operator()(int64_t r) const {
    if (!index) return base + r * width;
    return index[r] >= 0 ? base + index[r] * width : other + ~index[r] * width;
  }
};

// to[k, i] = from[k, i] in units, for `rows` rows of `height` columns of a matrix that ends at `end`. A tile is no
// whole number of vectors high, so whole vectors are copied and what they bring too much is overwritten by the next
// row; only the last rows, with none after them, are copied to the lane.
template <class S, class U = Unit<S>>
void pack_tile(const S* from, const S* end, int64_t ld, int64_t rows, int height, U* to) {
  constexpr int L = kLanes<U>, P = kPerUnit<S>;
  const int span = (height + L - 1) / L * L;
  const U* to_end = to + units<S>(rows) * height;
  for (int64_t k = 0; k < rows; k += P, from += P * ld, to += height) {
    const S* second = P > 1 && k + 1 < rows ? from + ld : nullptr;
    const auto at = [&](int i) { return second ? second + i : nullptr; };
    if (end - (second ? second : from) >= span && to_end - to >= span) {
      for (int i = 0; i < span; i += L) store(to + i, unite(from + i, at(i), L));
    } else {
      for (int i = 0; i < height; i += L) {
        const int lanes = height - i < L ? height - i : L;
        const Vec<U> v = unite(from + i, at(i), lanes);
        memcpy(to + i, &v, size_t(lanes) * sizeof(U));
      }
    }
  }
}

// sum[m] += a[r, m] over `rows` rows, for the columns m < count of a. Compensated: `lost` is what rounding has taken.
template <class S, class C = Compute<S>>
void add_rows(const S* a, int64_t rows, int64_t ld, int64_t count, C* sum, C* lost) {
  constexpr int L = kLanes<C>, kTogether = 4;  // independent sums hide the latency of each
  for (int64_t m = 0; m < count; m += kTogether * L) {
    int lanes[kTogether];
    Vec<C> s[kTogether] = {}, l[kTogether] = {};
    for (int j = 0; j < kTogether; ++j) {
      const int64_t left = count - m - j * L;
      lanes[j] = left < 0 ? 0 : left < L ? int(left) : L;
      if (lanes[j] == 0) continue;
      s[j] = load_lanes(sum + m + j * L, lanes[j]);
      l[j] = load_lanes(lost + m + j * L, lanes[j]);
    }
    const S* row = a + m;
    for (int64_t r = 0; r < rows; ++r, row += ld)
      for (int j = 0; j < kTogether; ++j) {
        if (lanes[j] == 0) continue;
        const Vec<C> next = load_lanes(row + j * L, lanes[j]) - l[j];
        const Vec<C> total = s[j] + next;
        l[j] = (total - s[j]) - next;
        s[j] = total;
      }
    for (int j = 0; j < kTogether; ++j) {
      if (lanes[j] == 0) continue;
      store_lanes(sum + m + j * L, s[j], lanes[j]);
      store_lanes(lost + m + j * L, l[j], lanes[j]);
    }
  }
}

// What one thread does of one weight's gradient: the vectors of columns in `width`.
template <class S>
struct Strip {
  using C = Compute<S>;
  Rows<S> b;
  Columns<C> columns;
  Range width;
  C* total;  // [M, ldt]
  int64_t ldt;
  S* whole;         // [M, columns], or null: the result, if nothing is added to this slab
  Unit<S>* packed;  // room for kChunk units of the strip

  int64_t first() const { return width.begin * kLanes<C>; }
  int64_t bytes() const {
    const int64_t last = width.end * kLanes<C> < columns.count ? width.end * kLanes<C> : columns.count;
    return last > first() ? (last - first()) * int64_t(sizeof(S)) : 0;
  }
  int64_t panels() const { return (width.size() + columns.width - 1) / columns.width; }
  template <class F>
  INLINE void each_panel(const F& f) const {  // f(first column, vectors, where the panel is packed)
    columns.each_panel(width.begin, width.end,
                       [&](int64_t column, int vectors) { f(column, vectors, packed + (column - first()) * kChunk); });
  }
};

// total[m, n] = sum over `rows` of a[r, m] b(r)[n], added to what it is if `begun`, for the columns m of a [R, M] in
// `height` and two strips. A chunk of a is packed tile by tile (read where it lies, its rows would be 4 KiB apart at H
// = 1024 and compete for the same cache sets: 1.35 times slower) and one of b panel by panel; while they meet, the next
// chunk is asked for, up to row `until`, where the next slab of the same thread ends. `beside`(a, rows) is called for
// each chunk, while it is near.
template <class S, class Beside>
void sum_slab(const S* a, int64_t R, int64_t M, const Strip<S> (&strips)[2], Range rows, Range height, int64_t until,
              bool begun, Unit<S>* a_tiles, const Beside& beside) {
  using C = Compute<S>;
  constexpr int L = kLanes<C>;
  const Tiles tiles(height, max_rows(strips[0].columns.width));
  const int64_t meetings = tiles.count * (strips[0].panels() + strips[1].panels());
  const int64_t chunks = (units<S>(rows.size()) + kChunk - 1) / kChunk;
  const int64_t chunk = chunks > 0 ? (units<S>(rows.size()) + chunks - 1) / chunks * kPerUnit<S> : 0;
  const auto ahead_of = [&](auto row, int64_t bytes) { return Ahead{row, bytes ? rows.begin : until, until, bytes}; };
  Ahead a_ahead = ahead_of([=](int64_t r) { return a + r * M + height.begin; }, height.size() * int64_t(sizeof(S)));
  const auto strip_ahead = [&](const Strip<S>& strip) {
    return ahead_of([&strip](int64_t r) { return strip.b(r) + strip.first(); }, strip.bytes());
  };
  decltype(strip_ahead(strips[0])) b_ahead[2] = {strip_ahead(strips[0]), strip_ahead(strips[1])};
  const auto look_ahead_to = [&](int64_t r) { a_ahead.end = b_ahead[0].end = b_ahead[1].end = r < until ? r : until; };
  const auto lines = [&](int64_t bytes) { return meetings > 0 ? bytes * chunk / 64 / meetings + 1 : 0; };
  const int64_t a_lines = lines(a_ahead.bytes), b_lines[2] = {lines(b_ahead[0].bytes), lines(b_ahead[1].bytes)};

  alignas(64) C product[kAccumulators * L];
  for (int64_t begin = rows.begin; begin < rows.end; begin += chunk) {
    const int64_t count = rows.end - begin < chunk ? rows.end - begin : chunk;
    look_ahead_to(begin + count);
    a_ahead.ask();
    for (auto& ahead : b_ahead) ahead.ask();
    if (meetings > 0)
      for (int64_t t = 0; t < tiles.count; ++t)
        pack_tile(a + begin * M + tiles[t].begin, a + R * M, M, count, int(tiles[t].size()),
                  a_tiles + (tiles[t].begin - height.begin) * kChunk);
    beside(a + begin * M, count);
    for (const Strip<S>& strip : strips)
      strip.each_panel([&](int64_t column, int vectors, Unit<S>* panel) {
        pack_rows<S>([&](int64_t k) { return strip.b(begin + k); }, count, strip.columns.count, column, vectors, panel);
      });
    look_ahead_to(begin + count + chunk);
    for (const Strip<S>& strip : strips)
      strip.each_panel([&](int64_t column, int vectors, const Unit<S>* panel) {
        for (int64_t t = 0; t < tiles.count; ++t) {
          const Range tile = tiles[t];
          const int64_t N = strip.columns.count;
          C* to = strip.whole ? product : strip.total + tile.begin * strip.ldt + column;
          const int64_t ldt = strip.whole ? vectors * L : strip.ldt;
          Wanted wanted;
          if (strip.whole)
            wanted.add_rows(strip.whole + tile.begin * N + column, N * int64_t(sizeof(S)), tile.size(),
                            vectors * L * int64_t(sizeof(S)));
          else if (kAskForSums)
            wanted.add_rows(to, ldt * int64_t(sizeof(C)), tile.size(), vectors * L * int64_t(sizeof(C)));
          a_ahead.add(a_lines, wanted);
          for (int i = 0; i < 2; ++i) b_ahead[i].add(b_lines[i], wanted);
          pick_tile<Unit<S>, Layout::kColumns>(int(tile.size()), vectors)(
              a_tiles + (tile.begin - height.begin) * kChunk, tile.size(), panel, int64_t(vectors) * L, units<S>(count),
              begun || begin > rows.begin, to, ldt, wanted);
          if (strip.whole)
            each_vector(product, tile.begin, int(tile.size()), column, vectors, N,
                        [to = strip.whole, N](int64_t m, int64_t n, int lanes, Vec<C> value) {
                          store_lanes(to + m * N + n, value, lanes);
                        });
        }
      });
  }
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
