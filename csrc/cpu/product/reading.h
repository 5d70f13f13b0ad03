// How a product reads its matrix: packed, or as it is. The choice changes no bit, so it may depend on everything: it is
// the smallest of the costs below, functions of the sizes, the threads and the second cache level of the machine.
//
// Costs are picoseconds of one thread for each byte of its share of the matrix, measured on a Xeon with AVX-512
// (Emerald Rapids, 2 MiB of second cache level) in float32 at H = 64 to 3000. Their ratios count, not their size.
//
//                                        near                   far
//   read a packed matrix                 10 + 4 rows            at least 45
//   read it in place                     1.2 times that         1.5 times that
//   transpose it in registers            37 + 8 rows            the same              up to 4 rows
//   pack it by chunks for some tiles     55 more than to read it near                 up to 4 tiles, then again
//   pack it once                         50                     150
//
// Near is what the second level holds. A recurrence goes through its panels to and fro, so that of a matrix that is too
// large as much comes from there as it holds beside the rest.
#pragma once

#include <unistd.h>

#include "panels.h"

namespace rnnfast {
namespace RNNFAST_ISA {

enum class Reading {
  kPacked,   // packed as a whole, before the first row
  kByPanel,  // each panel is packed, used by all rows and dropped
  kByChunk,  // each chunk of a panel is packed, used and dropped, or transposed in registers for few rows
  kInPlace,  // not packed: panels lie in the matrix as they are, but for the ragged end, which is read by chunk
};

// Bytes of a core's second cache level.
inline int64_t second_level() {
  constexpr int64_t kLeast = 256 * 1024, kUnknown = 1024 * 1024;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  static const int64_t bytes = 0;
#endif
  return bytes > kLeast ? bytes : kUnknown;
}

// What one thread does with a matrix: it reads `bytes` of it for `rows` rows, again and again.
struct ReadingCosts {
  double bytes, rows;

  double far_part() const {  // of the bytes, how many come from beyond the second level
    const double held = 0.75 * double(second_level());
    return bytes > held ? (bytes - held) / bytes : 0;
  }
  double near() const { return 10 + 4 * rows; }
  double far() const { return near() > 45 ? near() : 45; }
  double packed() const { return near() + far_part() * (far() - near()); }
  double in_place() const { return 1.2 * near() + far_part() * (1.5 * far() - 1.2 * near()); }
  double by_chunk(bool transposed) const {
    if (transposed && rows <= kTransposingRows) return 37 + 8 * rows;
    const double groups = double(int64_t(rows - 1) / (kTilesTogether * kMaxRows) + 1);
    return 55 * groups + near();
  }
  double packing() const {  // both the matrix and what is packed should be near
    const double half = 0.5 * double(second_level());
    return 50 + 100 * (bytes < half ? bytes / half : 1);
  }
};

// The reading of a matrix that `grid` shares, `times` times for `rows` rows each.
template <class S>
Reading choose_reading(const Matrix<S>& matrix, ThreadGrid grid, int64_t times, int64_t rows) {
  if (!matrix.w) return Reading::kPacked;
  const double whole = double(units<S>(matrix.K)) * double(matrix.N) * double(sizeof(Unit<S>));
  const ReadingCosts costs{whole / grid.cols, double(rows) / grid.rows};
  const bool as_it_is = !matrix.transposed && !kNarrow<S>;
  const double unpacked = as_it_is ? costs.in_place() : costs.by_chunk(matrix.transposed);
  if (double(times) * (unpacked - costs.packed()) >= costs.packing() / grid.rows) return Reading::kPacked;
  return as_it_is ? Reading::kInPlace : Reading::kByChunk;
}

// The columns of a matrix, in panels that suit the reading and the rows.
template <class S>
Columns<Compute<S>> columns_for(const Matrix<S>& matrix, Reading reading, int64_t rows) {
  auto columns = Columns<Compute<S>>::for_rows(matrix.N, rows);
  constexpr int kWidest = 4;  // vectors of a chunk of kChunk rows, for the nearest cache to hold
  if (reading == Reading::kByChunk) {
    const int widest = matrix.transposed && rows <= kTransposingRows ? 1 : kWidest;
    if (columns.width > widest) columns.width = widest;
  }
  return columns;
}

// A panel of `matrix`: `packed` is where it has been packed, `room` has room for one chunk.
template <class S>
INLINE Panel<S> panel_of(const Matrix<S>& matrix, Reading reading, int64_t column, int vectors, const Unit<S>* packed,
                         Unit<S>* room) {
  const int64_t width = vectors * kLanes<Compute<S>>;
  if (reading == Reading::kInPlace && column + width <= matrix.N)
    return {column, vectors, reinterpret_cast<const Unit<S>*>(matrix.w) + column, matrix.N};
  if (reading == Reading::kInPlace || reading == Reading::kByChunk) return {column, vectors, room, width, &matrix};
  return {column, vectors, packed, width};
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
