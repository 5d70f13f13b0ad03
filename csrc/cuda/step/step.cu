// Launchers of the fused step.
#include "../launch.cuh"
#include "backward.cuh"
#include "fma.cuh"
#include "step.cuh"

namespace rnnfast {
namespace cuda {
namespace {

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Kind, int kBlocks, int kTiles>
int forward(const StepArgs& args, uintptr_t stream) {
  using S = StepForward<Kind, kBlocks, kTiles>;
  constexpr int kElement = sizeof(typename S::T);
  const StepLaunch with_alignment{args,
                                  aligned_rows(args.x, args.I, kElement) && aligned_rows(args.w_ih, args.I, kElement),
                                  aligned_rows(args.h, args.H, kElement) && aligned_rows(args.w_hh, args.H, kElement)};
  return launch(step_forward<Kind, kBlocks, kTiles>,
                ceil_divide(args.H, S::kUnits) * ceil_divide(args.B, S::kSequences), S::kThreads,
                sizeof(typename S::Shared), stream, LaunchMode::kIndependent, with_alignment);
}
// With few sequences as many blocks as possible share the weights. With more, a block computes more of them.
template <class Kind>
int forward(const StepArgs& args, uintptr_t stream) {
  return args.B <= 8 ? forward<Kind, 1, 1>(args, stream) : forward<Kind, 2, 4>(args, stream);
}
template <class T>
int forward_fma(const StepArgs& args, uintptr_t stream) {
  const int64_t blocks = ceil_divide(args.H, kOutputs * kFmaWarps) * ceil_divide(args.B, kOutputs);
  return launch(step_forward_fma<T>, blocks, 32 * kFmaWarps, 0, stream, LaunchMode::kIndependent, args);
}

// The first tile stores dpre, so there is one even if neither dx nor dh is asked for.
int64_t tiles_for_h(const StepBackwardArgs& args) {
  return args.dh ? ceil_divide(args.H, kBackwardUnits) : args.dx && args.I > 0 ? 0 : 1;
}
int64_t tiles_for_x(const StepBackwardArgs& args) { return args.dx ? ceil_divide(args.I, kBackwardUnits) : 0; }

template <class Kind, int kTiles>
int backward(const StepBackwardArgs& args, uintptr_t stream) {
  constexpr int kElement = sizeof(typename Product<Kind>::Element);
  const bool h_aligned = aligned_rows(args.w_hh, args.H, kElement) && aligned_rows(args.dout, args.H, kElement) &&
                         aligned_rows(args.out, args.H, kElement) && aligned_rows(args.dpre, args.H, kElement);
  const StepBackwardLaunch with_tiles{args, tiles_for_x(args), tiles_for_h(args),
                                      aligned_rows(args.w_ih, args.I, kElement), h_aligned};
  return launch(step_backward<Kind, kTiles>,
                (with_tiles.x_tiles + with_tiles.h_tiles) * ceil_divide(args.B, 8 * kTiles), 32 * kStepWarps,
                sizeof(Partial<8 * kTiles, kBackwardUnits, kStepWarps>), stream, LaunchMode::kIndependent, with_tiles);
}
template <class Kind>
int backward(const StepBackwardArgs& args, uintptr_t stream) {
  return args.B <= 8 ? backward<Kind, 1>(args, stream) : backward<Kind, 4>(args, stream);
}
template <class T>
int backward_fma(const StepBackwardArgs& args, uintptr_t stream) {
  const StepBackwardFmaLaunch with_tiles{args, tiles_for_x(args), tiles_for_h(args)};
  return launch(step_backward_fma<T>, (with_tiles.x_tiles + with_tiles.h_tiles) * ceil_divide(args.B, kOutputs),
                32 * kFmaWarps, sizeof(FmaBackwardShared<T>), stream, LaunchMode::kIndependent, with_tiles);
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfast

extern "C" {

int rnnfast_cuda_step(const rnnfast::cuda::StepArgs& args, uintptr_t stream) {
  using namespace rnnfast::cuda;
  switch (args.dtype) {
    case rnnfast::DType::kBFloat16:
      return forward<bf16>(args, stream);
    case rnnfast::DType::kFloat16:
      return forward<f16>(args, stream);
    case rnnfast::DType::kFloat32:
      return args.tf32 ? forward<Tf32>(args, stream) : forward_fma<float>(args, stream);
    case rnnfast::DType::kFloat64:
      return forward_fma<double>(args, stream);
  }
  return kUnsupported;
}

int rnnfast_cuda_step_backward(const rnnfast::cuda::StepBackwardArgs& args, uintptr_t stream) {
  using namespace rnnfast::cuda;
  switch (args.dtype) {
    case rnnfast::DType::kBFloat16:
      return backward<bf16>(args, stream);
    case rnnfast::DType::kFloat16:
      return backward<f16>(args, stream);
    case rnnfast::DType::kFloat32:
      return args.tf32 ? backward<Tf32>(args, stream) : backward_fma<float>(args, stream);
    case rnnfast::DType::kFloat64:
      return backward_fma<double>(args, stream);
  }
  return kUnsupported;
}

}  // extern "C"
