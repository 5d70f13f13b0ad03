// Launchers of resident.cuh: which engine for which dtype and H.
#include "launch.cuh"
#include "resident.cuh"
#include "resident_fma.cuh"
#include "resident_matrix.cuh"

namespace rnnfast {
namespace cuda {
namespace {

template <class Engine, template <class> class Act>
int start(const ForwardArgs& args, uintptr_t stream) {
  return launch(resident_forward<Engine, Act>, (args.walk.B + Engine::kTile - 1) / Engine::kTile, Engine::kThreads,
                sizeof(typename Engine::Shared), stream, Grid::kIndependent, args);
}
// act is a link of the forward chain, so it is known when a kernel is built. The derivative is none of the backward
// chain, and a kernel chooses it.
template <class Engine>
int start(const ForwardArgs& args, uintptr_t stream) {
  return args.activation == Activation::kTanh ? start<Engine, Tanh>(args, stream) : start<Engine, Relu>(args, stream);
}
template <class Engine>
int start(const BackwardArgs& args, uintptr_t stream) {
  return launch(resident_backward<Engine>, (args.walk.B + Engine::kTile - 1) / Engine::kTile, Engine::kThreads,
                sizeof(typename Engine::Shared), stream, Grid::kIndependent, args);
}

// The narrowest engine that H fits. Up to 128 a warp has one block of 16 rows of W; beyond, two, since with twice the
// warps all of them together would read twice as much of the state from shared memory.
template <class T, class Args>
int start_16(const Args& args, uintptr_t stream) {
  const int64_t H = args.walk.H;
  if (H <= 32) return start<MatrixEngine16<T, 32, 2>>(args, stream);
  if (H <= 64) return start<MatrixEngine16<T, 64, 4>>(args, stream);
  if (H <= 128) return start<MatrixEngine16<T, 128, 8>>(args, stream);
  if (H <= 192) return start<MatrixEngine16<T, 192, 6>>(args, stream);
  return start<MatrixEngine16<T, 256, 8>>(args, stream);
}
template <class Args>
int start_tf32(const Args& args, uintptr_t stream) {
  const int64_t H = args.walk.H;
  if (H <= 32) return start<MatrixEngineTf32<32, 2>>(args, stream);
  if (H <= 64) return start<MatrixEngineTf32<64, 4>>(args, stream);
  return start<MatrixEngineTf32<128, 8>>(args, stream);
}
// One sequence a block while there are multiprocessors for all, else two: the exchange and the barrier then serve both.
template <class Args>
int start_fma(const Args& args, uintptr_t stream) {
  const int64_t H = args.walk.H;
  const bool two = args.walk.B > rnnfast_cuda_current_device().multiprocessors;
  if (H <= 32) return two ? start<FmaEngine<32, 2>>(args, stream) : start<FmaEngine<32, 1>>(args, stream);
  if (H <= 64) return two ? start<FmaEngine<64, 2>>(args, stream) : start<FmaEngine<64, 1>>(args, stream);
  if (H <= 128) return two ? start<FmaEngine<128, 2>>(args, stream) : start<FmaEngine<128, 1>>(args, stream);
  return start<FmaEngine<192, 2>>(args, stream);
}

template <class Args>
int start(const Args& args, uintptr_t stream) {
  if (args.walk.H > rnnfast_cuda_resident_limit(args.dtype, args.tf32)) return kUnsupported;
  if (args.walk.T > INT32_MAX / 2) return kUnsupported;  // steps are counted in int
  switch (args.dtype) {
    case DType::kBFloat16:
      return start_16<bf16>(args, stream);
    case DType::kFloat16:
      return start_16<f16>(args, stream);
    default:
      return args.tf32 ? start_tf32(args, stream) : start_fma(args, stream);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfast

extern "C" {

int64_t rnnfast_cuda_resident_limit(rnnfast::DType dtype, bool tf32) {
  switch (dtype) {
    case rnnfast::DType::kBFloat16:
    case rnnfast::DType::kFloat16:
      return 256;
    case rnnfast::DType::kFloat32:
      return tf32 ? 128 : 192;  // an mma's operands must lie in the right lanes, which takes more registers beside W
    default:
      return 0;
  }
}

int rnnfast_cuda_resident_forward(const rnnfast::cuda::ForwardArgs& args, uintptr_t stream) {
  return rnnfast::cuda::start(args, stream);
}

int rnnfast_cuda_resident_backward(const rnnfast::cuda::BackwardArgs& args, uintptr_t stream) {
  return rnnfast::cuda::start(args, stream);
}

}  // extern "C"
