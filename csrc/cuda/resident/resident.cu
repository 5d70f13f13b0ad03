// Launchers of resident.cuh, which choose the engine by dtype and H.
#include <algorithm>

#include "../launch.cuh"
#include "fma.cuh"
#include "matrix.cuh"
#include "resident.cuh"

namespace rnnfast {
namespace cuda {
namespace {

template <class Engine, template <class> class Act>
int start(const ResidentArgs<ForwardArgs>& all, uintptr_t stream) {
  const Sequences& sequences = all.args.sequences;
  return launch(sequences.offsets ? resident_forward<Engine, Act, true> : resident_forward<Engine, Act, false>,
                (sequences.B + Engine::kTile - 1) / Engine::kTile, Engine::kThreads, sizeof(ForwardShared<Engine>),
                stream, LaunchMode::kIndependent, all);
}
// The activation is part of the chain of dependent instructions of a forward step, so it is a template argument. Its
// derivative is not part of the backward step's chain, and is chosen at run time.
template <class Engine>
int start(const ResidentArgs<ForwardArgs>& all, uintptr_t stream) {
  return all.args.activation == Activation::kTanh ? start<Engine, Tanh>(all, stream) : start<Engine, Relu>(all, stream);
}
template <class Engine>
int start(const ResidentArgs<BackwardArgs>& all, uintptr_t stream) {
  const Sequences& sequences = all.args.sequences;
  return launch(sequences.offsets ? resident_backward<Engine, true> : resident_backward<Engine, false>,
                (sequences.B + Engine::kTile - 1) / Engine::kTile, Engine::kThreads, sizeof(BackwardShared<Engine>),
                stream, LaunchMode::kIndependent, all);
}

// Starts the narrowest engine that holds H. Up to 64 a warp has one block of 16 rows of W, beyond that two: with one,
// twice the warps would read twice as much of the state from shared memory. For 128 units and 512 steps an H100 took
// 134 us that way instead of 108.
template <class T, class Args>
int start_16(const Args& all, uintptr_t stream) {
  const int64_t H = all.args.sequences.H;
  if (H <= 32) return start<MatrixEngine16<T, 32, 2>>(all, stream);
  if (H <= 64) return start<MatrixEngine16<T, 64, 4>>(all, stream);
  if (H <= 128) return start<MatrixEngine16<T, 128, 4>>(all, stream);
  if (H <= 192) return start<MatrixEngine16<T, 192, 6>>(all, stream);
  return start<MatrixEngine16<T, 256, 8>>(all, stream);
}
// The last argument is how many of a lane's columns, 24 or 32, are in registers. The rest of W is in shared memory: 24
// and 48 KB for 192 units, 96 and 160 KB for 256.
using OneOf192 = FmaEngine<192, 1, 20>;
using TwoOf192 = FmaEngine<192, 2, 16>;
using OneOf256 = FmaEngine<256, 1, 20>;
using TwoOf256 = FmaEngine<256, 2, 12>;
constexpr int64_t kSharedOf256 = std::max(sizeof(BackwardShared<OneOf256>), sizeof(BackwardShared<TwoOf256>));

// A block computes one sequence while there are multiprocessors for all, else two, which share the exchange and the
// barrier. TF32 uses the same kernels: tensor cores would need eight sequences a block, and their steps took longer on
// an H100, 0.25 us rather than 0.18 at H = 64, 0.45 rather than 0.23 at H = 128.
template <class Args>
int start_fma(const Args& all, uintptr_t stream) {
  const int64_t H = all.args.sequences.H;
  const bool two = all.args.sequences.B > rnnfast_cuda_current_device().multiprocessors;
  if (H <= 32) return two ? start<FmaEngine<32, 2>>(all, stream) : start<FmaEngine<32, 1>>(all, stream);
  if (H <= 64) return two ? start<FmaEngine<64, 2>>(all, stream) : start<FmaEngine<64, 1>>(all, stream);
  if (H <= 128) return two ? start<FmaEngine<128, 2>>(all, stream) : start<FmaEngine<128, 1>>(all, stream);
  if (H <= 192) return two ? start<TwoOf192>(all, stream) : start<OneOf192>(all, stream);
  return two ? start<TwoOf256>(all, stream) : start<OneOf256>(all, stream);
}

template <class Args>
int start(const Args& args, int64_t stride, uintptr_t stream) {
  const Sequences& sequences = args.sequences;
  const int64_t vector = args.dtype == DType::kFloat32 ? 4 : 8;
  if (sequences.H > rnnfast_cuda_resident_limit(args.dtype)) return kUnsupported;
  if (stride % vector != 0 || stride < sequences.H || stride >= sequences.H + vector) return kUnsupported;
  // Steps are counted in int, rows in uint32_t; there are at most T * B.
  if (sequences.T > INT32_MAX / 2 || sequences.B > UINT32_MAX / sequences.T) return kTooManyRows;
  const ResidentArgs<Args> all{args, uint32_t(stride)};
  switch (args.dtype) {
    case DType::kBFloat16:
      return start_16<bf16>(all, stream);
    case DType::kFloat16:
      return start_16<f16>(all, stream);
    default:
      return start_fma(all, stream);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfast

extern "C" {

int64_t rnnfast_cuda_resident_limit(rnnfast::DType dtype) {
  using namespace rnnfast::cuda;
  switch (dtype) {
    case rnnfast::DType::kBFloat16:
    case rnnfast::DType::kFloat16:
      return 256;
    case rnnfast::DType::kFloat32:
      return kSharedOf256 <= rnnfast_cuda_current_device().shared ? 256 : 192;
    default:
      return 0;
  }
}

int rnnfast_cuda_resident_forward(const rnnfast::cuda::ForwardArgs& args, int64_t stride, uintptr_t stream) {
  return rnnfast::cuda::start(args, stride, stream);
}

int rnnfast_cuda_resident_backward(const rnnfast::cuda::BackwardArgs& args, int64_t stride, uintptr_t stream) {
  return rnnfast::cuda::start(args, stride, stream);
}

}  // extern "C"
