// The gradient of alpha, a sum over rows: of dh_t (f_t - h_{t-1}), of ctrnn's dv_t (a_t - v_{t-1}).
//
// a_t is computed anew by the two products. (v_t - (1 - alpha) v_{t-1} - n_t) / alpha would need none, and would be
// wrong by 1 / alpha times the rounding error of v.
#pragma once

#include "../product/gemm.h"
#include "../product/partial_sum.h"

namespace rnnfast {
namespace RNNFAST_ISA {

template <class S>
class AlphaGradient {
  using C = Compute<S>;

 public:
  static void* operator new(size_t, void* place) { return place; }

  // `input` and `recurrent` are the factors of the two products, null of the leaky cell.
  AlphaGradient(S* dalpha,  // [H]
                int64_t H, const Factor<S>* input, const Factor<S>* recurrent, int threads)
      : to_(dalpha),
        H_(H),
        threads_(threads),
        products_(input != nullptr),
        sums_(2 * H),
        terms_(kRows * H),
        a_(products_ ? kRows * H : 0),
        carried_(products_ ? kRows * H : 0),
        input_(products_ ? *input : Factor<S>{}, kRows, true, threads),
        recurrent_(products_ ? *recurrent : Factor<S>{}, kRows, true, threads) {
    if (*this && H > 0) memset(sums_.get(), 0, size_t(2 * H) * sizeof(C));
  }

  explicit operator bool() const { return sums_ && terms_ && a_ && carried_ && input_ && recurrent_; }

  // Adds rows of the gradient of h or v, dstate [rows, H]. `states` finds the states that the steps started from and,
  // of ctrnn, `carried` what W_hh was multiplied by; x [rows, I]. `inner` [rows, H], rows `ld` apart, is read of the
  // leaky cell.
  void add(const S* dstate, const S* inner, int64_t ld, const GatheredRows<S>& states, const S* x, int64_t I,
           const GatheredRows<S>& carried, int64_t rows) {
    for (int64_t begin = 0; H_ > 0 && begin < rows; begin += kRows) {
      const int64_t count = rows - begin < kRows ? rows - begin : kRows;
      if (products_) {
        for (int64_t r = 0; r < count; ++r) memcpy(carried_.get() + r * H_, carried(begin + r), size_t(H_) * sizeof(S));
        input_.multiply(x + begin * I, count, a_.get(), H_, false);
        recurrent_.multiply(carried_.get(), count, a_.get(), H_, true);
      }
      const S* value = products_ ? a_.get() : inner + begin * ld;
      const int64_t value_ld = products_ ? H_ : ld;
      run_team({team_size(count * H_ * kFmas, threads_), 1}, [&](int id, ThreadGrid g) {
        const Range own = share(H_, kLanes<C>, id, g.size());
        for (int64_t r = 0; r < count; ++r)
          for (int64_t n = own.begin; n < own.end; n += kLanes<C>) {
            const int lanes = own.end - n < kLanes<C> ? int(own.end - n) : kLanes<C>;
            const Vec<C> difference =
                load_lanes(value + r * value_ld + n, lanes) - load_lanes(states(begin + r) + n, lanes);
            store_lanes(terms_.get() + r * H_ + n, load_lanes(dstate + (begin + r) * H_ + n, lanes) * difference,
                        lanes);
          }
        add_column_sums(terms_.get() + own.begin, count, H_, own.size(), sums_.get() + own.begin,
                        sums_.get() + H_ + own.begin);
      });
    }
  }

  void finish() const {
    for (int64_t n = 0; n < H_; ++n) narrow(sums_.get()[n], to_ + n);
  }

 private:
  static constexpr int64_t kRows = 256;  // that stay in a core's own cache
  static constexpr int64_t kFmas = 8;    // what a value costs, in multiply-adds

  S* const to_;
  const int64_t H_;
  const int threads_;
  const bool products_;
  const Scratch<C> sums_;     // [2, H]: the sums, and what they have lost
  const Scratch<C> terms_;    // [kRows, H]
  const Scratch<S> a_;        // [kRows, H]
  const Scratch<S> carried_;  // [kRows, H]
  Gemm<S> input_, recurrent_;
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
