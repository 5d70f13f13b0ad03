// One partial sum of the weight gradients: the sums of one thread over a range of rows, which stay in its cache
// meanwhile.
#pragma once

#include "panels.h"
#include "prefetch.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Bytes of sums from which on a tile prefetches those that it will add to. Smaller sums come from the second cache
// level in order, which needs no prefetching. With prefetching always on, H = 256 took 1.02 times as long; without it,
// H = 1024 went from 83 to 78% of the FMA peak (one thread of Zen 4).
constexpr int64_t kFarSums = 1024 * 1024;

// The rows of a matrix [R, width], which need not be adjacent. Without an index, row r is row r of `base`. With one, it
// is row index[r] of `base` or, if that is negative, row ~index[r] of `other`.
template <class S>
struct GatheredRows {
  int64_t width;
  const S* base;  // [.., width], rows `ld` apart
  int64_t ld;
  const int64_t* index = nullptr;  // [R], or null
  const S* other = nullptr;        // [.., width], rows `other_ld` apart, or null without an index
  int64_t other_ld = 0;

  INLINE const S* operator()(int64_t r) const {
    if (!index) return base + r * ld;
    return index[r] >= 0 ? base + index[r] * ld : other + ~index[r] * other_ld;
  }
};

// to[k, i] = from[k, i] in units, for `rows` rows of `height` columns of a matrix that ends at `end`. The height of a
// tile is not a multiple of the vector length: whole vectors are copied and what exceeds the row is overwritten by the
// next row. Only the last rows, which have none after them, are copied lane by lane.
template <class S, class U = Unit<S>>
void pack_tile(const S* from, const S* end, int64_t ld, int64_t rows, int height, U* to) {
  constexpr int L = kLanes<U>, P = kPerUnit<S>, span = (kMaxRows + L - 1) / L * L;
  const int64_t K = units<S>(rows);
  const int64_t readable = end - from < span ? 0 : ((end - from - span) / ld + 1) / P;
  const int64_t writable = K * height < span ? 0 : (K * height - span) / height + 1;
  int64_t whole = rows / P;
  if (readable < whole) whole = readable;
  if (writable < whole) whole = writable;
  int64_t k = 0;
  for (; k < whole; ++k, from += P * ld, to += height)
#pragma GCC unroll 4
    for (int i = 0; i < span; i += L) store(to + i, unite(from + i, from + (P - 1) * ld + i, L));
  for (; k < K; ++k, from += P * ld, to += height) {
    const S* second = P > 1 && k * P + 1 < rows ? from + ld : nullptr;
    for (int i = 0; i < height; i += L) {
      const int lanes = height - i < L ? height - i : L;
      const Vec<U> v = unite(from + i, second ? second + i : nullptr, lanes);
      memcpy(to + i, &v, size_t(lanes) * sizeof(U));
    }
  }
}

// What add_column_sums does for those of `lanes` columns of a whose compensated sum is NaN: a plain sum.
template <class S, class C = Compute<S>>
__attribute__((noinline)) void add_uncompensated(const S* a, int64_t rows, int64_t ld, int lanes, const C* sum,
                                                 Vec<C>* total, Vec<C>* lost) {
  for (int i = 0; i < lanes; ++i) {
    if ((*total)[i] == (*total)[i]) continue;
    C plain = sum[i];
    for (int64_t r = 0; r < rows; ++r) plain += widen(a[r * ld + i]);
    (*total)[i] = plain;
    (*lost)[i] = 0;
  }
}

// sum[m] += a[r, m] over `rows` rows, for the columns m < count of a. Kahan's summation: `lost` holds the rounding
// errors. The error of an infinite sum is inf - inf, which makes the next sum NaN; a plain sum then takes its place.
template <class S, class C = Compute<S>>
void add_column_sums(const S* a, int64_t rows, int64_t ld, int64_t count, C* sum, C* lost) {
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
    Bits<C> nan{};
    for (int j = 0; j < kTogether; ++j) nan |= s[j] != s[j];
    for (int j = 0; j < kTogether; ++j) {
      if (lanes[j] == 0) continue;
      if (any(nan)) add_uncompensated(a + m + j * L, rows, ld, lanes[j], sum + m + j * L, &s[j], &l[j]);
      store_lanes(sum + m + j * L, s[j], lanes[j]);
      store_lanes(lost + m + j * L, l[j], lanes[j]);
    }
  }
}

// One thread's part of one weight's gradient: the vectors of columns in `width`.
template <class S>
struct Strip {
  using C = Compute<S>;
  GatheredRows<S> b;
  Columns<C> columns;
  Range width;
  // The sums so far, in panels [M, width] like those of a packed weight, so that a tile of them is contiguous; null if
  // there is only one chunk. With rows 4 KiB apart, which compete for the same cache sets, H = 1024 reached 81 instead
  // of 87% of the FMA peak and H = 512 81 instead of 88 (two threads of Zen 4).
  C* total;
  S* whole;         // [M, columns], the result, where these rows are the last to be added; else null
  Unit<S>* packed;  // room for `room` units of each column
  int64_t room;     // kChunk, or fewer where there are fewer rows

  int64_t first() const { return width.begin * kLanes<C>; }
  int64_t bytes() const {
    const int64_t last = width.end * kLanes<C> < columns.count ? width.end * kLanes<C> : columns.count;
    return last > first() ? (last - first()) * int64_t(sizeof(S)) : 0;
  }
  int64_t panels() const { return (width.size() + columns.width - 1) / columns.width; }
  template <class F>
  INLINE void each_panel(const F& f) const {  // f(first column, vectors, where the panel is packed)
    columns.each_panel(width.begin, width.end,
                       [&](int64_t column, int vectors) { f(column, vectors, packed + (column - first()) * room); });
  }
};

// Packs rows [begin, begin + count) of a strip, at most kChunk units of them. Panels are taken four at a time, so that
// each row, which has to be looked up, is looked up once for four panels. One panel at a time, the gradients took 1.01
// to 1.02 times as long at H = 128 to 1024 (Zen 4).
template <class S>
void pack_strip(const Strip<S>& strip, int64_t begin, int64_t count) {
  constexpr int L = kLanes<Compute<S>>, P = kPerUnit<S>, kTogether = 4;
  const int64_t width = strip.columns.width * L, group = kTogether * width;
  const int64_t whole = strip.width.end * L < strip.columns.count ? strip.width.end * L : strip.columns.count;
  int64_t first = strip.first();
  for (; first + group <= whole; first += group) {
    Unit<S>* to = strip.packed + (first - strip.first()) * strip.room;
    for (int64_t k = 0; k < count; k += P, to += width) {
      const S* row = strip.b(begin + k) + first;
      const S* second = P > 1 && k + 1 < count ? strip.b(begin + k + 1) + first : nullptr;
#pragma GCC unroll 4
      for (int panel = 0; panel < kTogether; ++panel)
        for (int64_t j = 0; j < width; j += L) {
          const int64_t at = panel * width + j;
          store(to + panel * width * strip.room + j, unite(row + at, second ? second + at : nullptr, L));
        }
    }
  }
  strip.columns.each_panel(first / L, strip.width.end, [&](int64_t column, int vectors) {
    pack_rows<S>([&](int64_t k) { return strip.b(begin + k); }, count, strip.columns.count, column, vectors,
                 strip.packed + (column - strip.first()) * strip.room);
  });
}

// The inner part of a weight's gradient. For each chunk of rows:
//
//   1. pack the chunk of a in tiles and that of b in panels, which the nearest caches hold from then on
//   2. for each panel, for each tile: total[tile, panel] += a_tile^T b_panel (tile.h), and, while it computes, prefetch
//      a share of the next chunk's lines, so that all of them are on their way when step 1 comes
//   3. after the last chunk of all, store the tile to the gradient as well
//
// Sums a[r, m] b(r)[n] over `rows`, for the columns m of a [R, M] in `height` and two strips, and adds it to `total` if
// `begun`. A chunk of a is packed tile by tile and one of b panel by panel. (Read in place, the rows of a would be 4
// KiB apart at H = 1024 and compete for the same cache sets, which is 1.35 times slower.) While the two are multiplied
// the next chunk is prefetched, up to row `until`, where the thread's next part ends. `beside(a, rows)` is called for
// each chunk while it is in the cache.
template <class S, class Beside>
void add_products(const S* a, int64_t R, int64_t M, const Strip<S> (&strips)[2], Range rows, Range height,
                  int64_t until, bool begun, Unit<S>* a_tiles, const Beside& beside) {
  using C = Compute<S>;
  constexpr int L = kLanes<C>;
  const Tiles tiles(height, max_rows(strips[0].columns.width));
  const int64_t tile_products = tiles.count * (strips[0].panels() + strips[1].panels());
  const int64_t chunks = (units<S>(rows.size()) + kChunk - 1) / kChunk;
  const int64_t chunk = chunks > 0 ? (units<S>(rows.size()) + chunks - 1) / chunks * kPerUnit<S> : 0;
  const bool far =
      height.size() * (strips[0].width.size() + strips[1].width.size()) * L * int64_t(sizeof(C)) > kFarSums;
  const auto prefetch_of = [&](auto row, int64_t bytes) {
    return PrefetchCursor{row, bytes ? rows.begin : until, until, bytes};
  };
  PrefetchCursor a_prefetch =
      prefetch_of([=](int64_t r) { return a + r * M + height.begin; }, height.size() * int64_t(sizeof(S)));
  const auto prefetch_of_strip = [&](const Strip<S>& strip) {
    return prefetch_of([&strip](int64_t r) { return strip.b(r) + strip.first(); }, strip.bytes());
  };
  decltype(prefetch_of_strip(strips[0])) b_prefetch[2] = {prefetch_of_strip(strips[0]), prefetch_of_strip(strips[1])};
  const auto prefetch_until = [&](int64_t r) {
    a_prefetch.end = b_prefetch[0].end = b_prefetch[1].end = r < until ? r : until;
  };
  const auto lines = [&](int64_t bytes) { return tile_products > 0 ? bytes * chunk / 64 / tile_products + 1 : 0; };
  const int64_t a_lines = lines(a_prefetch.bytes),
                b_lines[2] = {lines(b_prefetch[0].bytes), lines(b_prefetch[1].bytes)};

  alignas(64) C product[kAccumulators * L];
  for (int64_t begin = rows.begin; begin < rows.end; begin += chunk) {
    const int64_t count = rows.end - begin < chunk ? rows.end - begin : chunk;
    prefetch_until(begin + count);
    a_prefetch.request_rest();
    for (auto& cursor : b_prefetch) cursor.request_rest();
    if (tile_products > 0)
      for (int64_t t = 0; t < tiles.count; ++t)
        pack_tile(a + begin * M + tiles[t].begin, a + R * M, M, count, int(tiles[t].size()),
                  a_tiles + (tiles[t].begin - height.begin) * strips[0].room);
    beside(a + begin * M, count);
    for (const Strip<S>& strip : strips) pack_strip(strip, begin, count);
    prefetch_until(begin + count + chunk);
    for (const Strip<S>& strip : strips)
      strip.each_panel([&](int64_t column, int vectors, const Unit<S>* panel) {
        for (int64_t t = 0; t < tiles.count; ++t) {
          const Range tile = tiles[t];
          const int64_t N = strip.columns.count, width = vectors * L;
          C* to = strip.total ? strip.total + column * M + tile.begin * width : product;
          S* whole = begin + count == rows.end ? strip.whole : nullptr;
          PrefetchList prefetches;
          if (whole)
            prefetches.add_rows(whole + tile.begin * N + column, N * int64_t(sizeof(S)), tile.size(),
                                width * int64_t(sizeof(S)));
          if (far && strip.total)
            prefetches.add_rows(to, width * int64_t(sizeof(C)), tile.size(), width * int64_t(sizeof(C)));
          a_prefetch.add(a_lines, prefetches);
          for (int i = 0; i < 2; ++i) b_prefetch[i].add(b_lines[i], prefetches);
          pick_tile<Unit<S>, Layout::kColumns>(int(tile.size()), vectors)(
              a_tiles + (tile.begin - height.begin) * strips[0].room, tile.size(), panel, width, units<S>(count),
              begun || begin > rows.begin, to, width, prefetches);
          if (whole)
            each_vector(
                to, tile.begin, int(tile.size()), column, vectors, N,
                [=](int64_t m, int64_t n, int lanes, Vec<C> value) { store_lanes(whole + m * N + n, value, lanes); });
        }
      });
  }
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
