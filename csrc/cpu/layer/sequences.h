// The rows of a batch of sequences, one step after the other, in either direction.
//
// At each step the batch is a prefix of [0, B). Where prefixes get shorter from step to step, sequences leave; where
// they get longer, sequences join. In a dense batch no sequence does either.
#pragma once

#include "../contract.h"
#include "../team.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// Iterates over the steps.
class StepCursor {
 public:
  // `backward` goes against the direction of the forward pass.
  StepCursor(const Sequences& sequences, bool backward)
      : sequences_(sequences), descending_(sequences.reverse != backward) {
    step_ = descending_ ? sequences.T : -1;
    offset_ = 0;
    if (descending_)
      for (int64_t t = 0; t < sequences.T; ++t) offset_ += rows_at(t);
  }

  bool next() {
    previous_ = rows_;
    if (descending_) {
      if (--step_ < 0) return false;
      rows_ = rows_at(step_);
      offset_ -= rows_;
    } else {
      if (step_ >= 0) offset_ += rows_;
      if (++step_ >= sequences_.T) return false;
      rows_ = rows_at(step_);
    }
    return true;
  }

  int64_t rows() const { return rows_; }          // sequences at this step: [0, rows)
  int64_t previous() const { return previous_; }  // sequences at the step before, 0 at the first
  int64_t offset() const { return offset_; }      // row of sequence 0 at this step

 private:
  int64_t rows_at(int64_t t) const { return sequences_.batch_sizes ? sequences_.batch_sizes[t] : sequences_.B; }

  Sequences sequences_;
  bool descending_;
  int64_t step_, offset_, rows_ = 0, previous_ = 0;
};

inline int64_t total_rows(const Sequences& sequences) {
  if (!sequences.batch_sizes) return sequences.T * sequences.B;
  int64_t rows = 0;
  for (int64_t t = 0; t < sequences.T; ++t) rows += sequences.batch_sizes[t];
  return rows;
}

// index[r] is the place of row r's previous state: a row of out, or ~b for row b of h0.
inline void previous_rows(const Sequences& sequences, int64_t* index) {  // [R]
  StepCursor cursor(sequences, false);
  for (int64_t before = 0; cursor.next(); before = cursor.offset())
    for (int64_t b = 0; b < cursor.rows(); ++b) index[cursor.offset() + b] = b < cursor.previous() ? before + b : ~b;
}

// Iterates over chunks of steps. All steps are cut into passes of at least `pass_rows` rows, and each pass into chunks
// of at least `chunk_rows`. Both end with the step that reaches their size, or with the last step. There is at least
// one chunk, even of no steps.
class ChunkCursor {
 public:
  ChunkCursor(const Sequences& sequences, bool backward, int64_t pass_rows, int64_t chunk_rows)
      : pass_rows_(pass_rows),
        chunk_rows_(chunk_rows),
        passes_{StepCursor(sequences, backward)},
        chunks_{StepCursor(sequences, backward)} {
    passes_.more = passes_.cursor.next();
    chunks_.more = chunks_.cursor.next();
  }

  // Moves to the next chunk. Returns false after the last.
  bool next() {
    if (last_) return false;
    if (left_ == 0) pass_ = passes_.take(pass_rows_, INT64_MAX, &left_);
    rows_ = chunks_.take(chunk_rows_, left_, &count_);
    left_ -= count_;
    last_ = !chunks_.more;
    return true;
  }

  Range rows() const { return rows_; }      // of the chunk
  int64_t count() const { return count_; }  // its steps
  Range pass() const { return pass_; }      // the rows of the pass that it belongs to
  bool ends_pass() const { return left_ == 0; }
  bool last() const { return last_; }

 private:
  struct Groups {
    StepCursor cursor;
    bool more = false;

    // Takes steps up to `rows` rows or `most` steps; returns the rows taken.
    Range take(int64_t rows, int64_t most, int64_t* count) {
      Range taken{0, 0};
      for (*count = 0; more && *count < most && (*count == 0 || taken.size() < rows); ++*count) {
        const int64_t begin = cursor.offset(), end = begin + cursor.rows();
        taken = {*count && taken.begin < begin ? taken.begin : begin, *count && taken.end > end ? taken.end : end};
        more = cursor.next();
      }
      return taken;
    }
  };

  const int64_t pass_rows_, chunk_rows_;
  Groups passes_, chunks_;
  Range pass_{0, 0}, rows_{0, 0};
  int64_t left_ = 0, count_ = 0;  // steps: of the pass, after this chunk; of this chunk
  bool last_ = false;
};

// Part `i` of `parts` of the batch, so that each part has about the same number of rows over all steps. Sequences are
// sorted by length, so equal counts of sequences would leave the last threads idle.
inline Range share_batch(const Sequences& sequences, int i, int parts) {
  if (!sequences.batch_sizes) return share(sequences.B, 1, i, parts);
  const int64_t total = total_rows(sequences);
  Range range{0, sequences.B};
  int64_t rows = 0, length = sequences.T;  // length of sequence b: the number of steps with more than b rows
  for (int64_t b = 0; b < sequences.B; ++b) {
    while (length > 0 && sequences.batch_sizes[length - 1] <= b) --length;
    if (rows < total * i / parts) range.begin = b + 1;
    rows += length;
    if (rows >= total * (i + 1) / parts) {
      range.end = i + 1 == parts ? sequences.B : b + 1;
      break;
    }
  }
  if (i == 0) range.begin = 0;
  return range;
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
