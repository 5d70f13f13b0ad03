// A stack of layers in one or two directions.
//
// Layer by layer, all threads share each layer in one direction, one after the other. Where a layer leaves threads idle
// or makes them meet at every step, the layers are shared instead, and each is computed by one thread:
//
//   two directions   are independent of each other within a layer; a thread takes one of them
//   one direction    layers form a pipeline over chunks of steps; a thread takes neighbouring layers, and a layer works
//                    on a chunk as soon as the layer before it has finished it
//
// No bit depends on the choice: a product's and a gradient's order of summation is the same for any chunks and threads.
#pragma once

#include "layer.h"

namespace rnnfast {
namespace RNNFAST_ISA {

constexpr int64_t kChunkRows = 8;   // of a pipeline's chunk at least
constexpr int64_t kChunkSteps = 4;  // of a pipeline's chunk at least, with a whole batch each

// Two directions need no pipeline; their chunks only share the rows of an input gradient.
constexpr int64_t kMeetingChunks = 4;

// How a stack is shared.
struct StackPlan {
  int members;    // threads that share layers or directions; with 1, all threads share each layer
  bool pipeline;  // they share layers
  int64_t chunk_rows;
};

// Times are in multiply-adds of one thread.
template <class S>
StackPlan plan_stack(const Stack& stack, int first, int64_t rows, int threads) {
  const int layers = stack.layers - first, D = stack.directions;
  const bool pipeline = D == 1;
  const int members = pipeline ? (layers < threads ? layers : threads) : threads > 1 ? 2 : 1;
  const StackPlan by_layer{1, false, rows > 0 ? rows : 1};
  if (members <= 1 || rows == 0 || stack.H == 0) return by_layer;

  const Sequences sequences{stack.T, stack.B, stack.H, stack.batch_sizes, false};
  const int64_t least = kChunkSteps * stack.B > kChunkRows ? kChunkSteps * stack.B : kChunkRows;
  const int64_t chunk = pipeline ? least : kMeetingChunks * least;
  const StackPlan shared{members, pipeline, chunk < rows ? chunk : rows};
  const int64_t recurrent = rows * stack.H * stack.H / kPerUnit<S>;
  const int64_t product = rows * stack.H * (D * stack.H) / kPerUnit<S>;  // of a layer but the first
  const int64_t first_product = first == 0 ? rows * stack.H * stack.I / kPerUnit<S> : product;
  const int64_t alone = layers * recurrent + (layers - 1) * product + first_product;  // by one thread, one direction
  if (team_size(alone * D, members) < members) return by_layer;

  const ThreadGrid grid = plan_recurrence<S>(sequences, rows, threads);
  const int64_t barriers = grid.cols > 1 ? stack.T * grid.cols * kBarrierFmas + rows * kRowFmas : 0;
  const auto shared_out = [&](int64_t fmas) { return fmas / team_size(fmas, threads); };
  const int64_t together = D * (layers * (recurrent / grid.size() + barriers) + (layers - 1) * shared_out(product) +
                                shared_out(first_product));
  int64_t apart = alone;
  if (pipeline) {
    const int64_t deepest = (layers + members - 1) / members;
    const int64_t chunks = (rows + shared.chunk_rows - 1) / shared.chunk_rows;
    apart = alone * deepest / layers * (chunks + members - 1) / chunks;
  }
  // Two threads that read a weight each take more of the shared cache than two that read half of one.
  const int64_t weight = stack.H * units<S>(stack.H) * int64_t(sizeof(Unit<S>));
  const bool pays = weight <= kOwnBytes && !pipeline ? apart <= together : apart < together;
  return pays ? shared : by_layer;
}

// How many steps a layer has finished.
struct alignas(64) Progress {
  int64_t steps;

  void publish(int64_t count) { __atomic_store_n(&steps, count, __ATOMIC_RELEASE); }
  void await(int64_t count) const {
    spin_until([&] { return __atomic_load_n(&steps, __ATOMIC_ACQUIRE) >= count; });
  }
};

// The rows of an input gradient, to which two directions contribute, one going up through the rows and one going down.
// Whoever comes to a row first writes it, the other one adds to it: rows below `low` and from `high` on are taken by
// their first writer, those below `low_written` and from `high_written` on are written.
struct alignas(64) Meeting {
  int64_t low, high;
  int64_t low_written, high_written;
  bool locked;

  void begin(int64_t rows) {
    low = low_written = 0;
    high = high_written = rows;
    locked = false;
  }

  // Calls write(rows, add) until `rows` have their contribution of this direction.
  template <class F>
  void pass(Range rows, bool down, const F& write) {
    spin_until([&] { return !__atomic_exchange_n(&locked, true, __ATOMIC_ACQUIRE); });
    const int64_t begin = down ? rows.begin : low, end = down ? high : rows.end;  // of those that this one takes
    const Range mine = down ? Range{begin > low ? begin : low, end} : Range{begin, end < high ? end : high};
    if (mine.size() > 0) (down ? high : low) = down ? mine.begin : mine.end;
    __atomic_store_n(&locked, false, __ATOMIC_RELEASE);

    const Range first = mine.size() > 0 ? mine : down ? Range{rows.end, rows.end} : Range{rows.begin, rows.begin};
    if (first.size() > 0) {
      write(first, false);
      __atomic_store_n(down ? &high_written : &low_written, down ? first.begin : first.end, __ATOMIC_RELEASE);
    }
    const Range second = down ? Range{rows.begin, first.begin} : Range{first.end, rows.end};
    if (second.size() <= 0) return;
    spin_until([&] {
      return down ? __atomic_load_n(&low_written, __ATOMIC_ACQUIRE) >= second.end
                  : __atomic_load_n(&high_written, __ATOMIC_ACQUIRE) <= second.begin;
    });
    write(second, true);
  }
};

// Computes `layers` in direction `d`, chunk by chunk. With `progress` other threads compute the other layers. A failure
// changes nothing for them: they wait for steps, not for results.
template <class S, class Act>
KEPT int sequence(const StackArgs& args, Range layers, int d, int64_t rows, int64_t chunk_rows, Progress* progress,
                  const S* zeros, int threads) {
  const Stack& stack = args.stack;
  const auto layer_at = [&](int64_t l) { return Layer<S>(stack, args.hidden, rows, int(l), d); };
  const auto out_of = [&](const Layer<S>& layer, int64_t l) {
    return l + 1 < stack.layers ? part<S>(args.hidden, l * rows * layer.ld + layer.columns)
                                : part<S>(args.out, layer.columns);
  };
  if (args.stepwise) {
    for (int64_t l = layers.begin; l < layers.end; ++l) {
      const Layer<S> layer = layer_at(l);
      forward_stepwise<S, Act>(layer, out_of(layer, l), part<S>(args.h_n, layer.state), zeros, threads);
    }
    return 0;
  }
  Several<LayerForward<S, Act>> own(int(layers.size()));
  bool fine = bool(own);
  for (int64_t l = layers.begin; fine && l < layers.end; ++l) {
    const Layer<S> layer = layer_at(l);
    fine = bool(own.make(layer, out_of(layer, l), part<S>(args.h_n, layer.state), chunk_rows, threads));
  }
  // What needs no other layer is done while the first chunk of the layer before is being computed.
  for (int i = 0; progress && fine && i < own.size(); ++i) fine = own[i].prepare() == 0;
  ChunkCursor chunk(layer_at(0).sequences, false, rows, chunk_rows);
  for (int64_t steps = 0; chunk.next();) {
    steps += chunk.count();
    if (progress && layers.begin > 0) progress[layers.begin - 1].await(steps);
    for (int i = 0; fine && i < own.size(); ++i) fine = own[i].advance(chunk) == 0;
    if (progress) progress[layers.end - 1].publish(steps);
  }
  return !fine;
}

// What threads that compute a stack share.
template <class S>
struct StackScratch {
  const Scratch<Progress> progress;  // [L], of a pipeline
  const Scratch<Meeting> meetings;   // [L], of a backward pass
  Barrier between_layers;
  int failed = 0;

  StackScratch(const StackPlan& plan, int layers, bool backward, int64_t rows)
      : progress(plan.pipeline ? layers : 0), meetings(backward ? layers : 0) {
    if (!*this) return;
    for (int l = 0; plan.pipeline && l < layers; ++l) progress.get()[l].steps = 0;
    for (int l = 0; backward && l < layers; ++l) meetings.get()[l].begin(rows);
  }

  explicit operator bool() const { return progress && meetings; }

  // Calls f(layers, direction, threads), which returns nonzero on failure, for everything in [first, last), in the
  // order of a forward or of a backward pass.
  template <class F>
  int each(const StackPlan& plan, int first, int last, int directions, bool backward, int threads, const F& f) {
    run_team({1, plan.members}, [&](int id, ThreadGrid g) {
      const int one = plan.members > 1 ? 1 : threads;
      const auto take = [&](Range layers, int d) {
        if (f(layers, d, one)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      };
      if (plan.pipeline) {
        const Range own = share(last - first, 1, id, g.size());
        if (own.size() > 0) take({first + own.begin, first + own.end}, 0);
        return;
      }
      const Range own = share(directions, 1, id, g.size());
      for (int i = 0; i < last - first; ++i) {
        const int l = backward ? last - 1 - i : first + i;
        if (i > 0) between_layers.wait(g.size());
        for (int64_t d = own.begin; d < own.end; ++d) take({l, l + 1}, int(d));
      }
    });
    return failed;
  }
};

// Fused steps read both weights at every step. From this many bytes of a layer on, which no core's own cache holds,
// more than two steps are faster with a product of its own for the input. The choice changes bits, so it depends on
// neither the batch nor the machine.
constexpr int64_t kStepwiseBytes = 4 * 1024 * 1024;

template <class S>
bool takes_fused_steps(const StackArgs& args) {
  const Stack& stack = args.stack;
  const int64_t inputs =
      stack.layers > 1 && stack.directions * stack.H > stack.I ? stack.directions * stack.H : stack.I;
  return args.stepwise && (stack.T <= 2 || stack.H * (inputs + stack.H) * int64_t(sizeof(S)) <= kStepwiseBytes);
}

template <class S, class Act>
int stack(StackArgs args, int threads) {
  args.stepwise = takes_fused_steps<S>(args);
  const Stack& stack = args.stack;
  const int64_t rows = total_rows({stack.T, stack.B, stack.H, stack.batch_sizes, false});
  StackPlan plan = plan_stack<S>(stack, 0, rows, threads);
  if (args.stepwise && plan.pipeline) plan = {1, false, plan.chunk_rows};
  const bool needs_zeros = args.stepwise && !stack.h0;
  const Scratch<S> zeros(needs_zeros ? stack.H : 0);
  StackScratch<S> shared(plan, stack.layers, false, rows);
  if (!zeros || !shared) return 1;
  if (needs_zeros && stack.H > 0) memset(zeros.get(), 0, size_t(stack.H) * sizeof(S));
  return shared.each(plan, 0, stack.layers, stack.directions, false, threads, [&](Range layers, int d, int one) {
    return sequence<S, Act>(args, layers, d, rows, plan.pipeline ? plan.chunk_rows : rows,
                            plan.pipeline ? shared.progress.get() : nullptr, zeros.get(), one);
  });
}

// The lowest layer of which anything is wanted, or the number of layers.
inline int lowest_wanted(const StackBackwardArgs& args) {
  if (args.dx || args.dh0) return 0;
  const Stack& stack = args.stack;
  const int each = stack.directions * (stack.biases ? 4 : 2);
  int i = 0;
  while (i < stack.layers * each && !args.dweights[i]) ++i;
  return i / each;
}

// The backward pass of `layers` in direction `d`, chunk by chunk.
template <class S, class Act>
KEPT int sequence_backward(const StackBackwardArgs& args, Range layers, int d, int lowest, int64_t rows,
                           int64_t chunk_rows, S* const (&between)[2], StackScratch<S>& shared, Progress* progress,
                           int threads) {
  const Stack& stack = args.stack;
  const int L = stack.layers, D = stack.directions;
  const auto dx_of = [&](int64_t l) {
    return l > lowest ? between[l % D] : l == 0 ? static_cast<S*>(args.dx) : nullptr;
  };
  const int64_t pass_rows = rows_of_pass<S>(rows, stack.H);
  if (chunk_rows > pass_rows) chunk_rows = pass_rows;
  Several<LayerBackward<S, Act>> own(int(layers.size()));  // from the last to the first
  bool fine = bool(own);
  for (int64_t l = layers.end; fine && l-- > layers.begin;) {
    const Layer<S> layer(stack, args.hidden, rows, int(l), d);
    const auto gradient = [&](int i) { return static_cast<S*>(args.dweights[layer.weights + i]); };
    const LayerGradients<S> to{dx_of(l),    part<S>(args.dh0, layer.state),       gradient(0),
                               gradient(1), stack.biases ? gradient(2) : nullptr, stack.biases ? gradient(3) : nullptr};
    const S* out =
        l + 1 < L ? part<S>(args.hidden, l * rows * layer.ld + layer.columns) : part<S>(args.out, layer.columns);
    const S* dout = l + 1 < L ? part<S>(between[(l + 1) % D], layer.columns) : part<S>(args.dout, layer.columns);
    fine = bool(own.make(layer, to, out, dout, part<S>(args.dh_n, layer.state), pass_rows, chunk_rows, threads));
  }
  for (int i = 0; progress && fine && i < own.size(); ++i) fine = own[i].prepare() == 0;
  const Sequences sequences = Layer<S>(stack, args.hidden, rows, 0, d).sequences;
  ChunkCursor chunk(sequences, true, pass_rows, chunk_rows);
  for (int64_t steps = 0; chunk.next();) {
    steps += chunk.count();
    if (progress && layers.end < L) progress[layers.end].await(steps);
    for (int64_t l = layers.end, i = 0; l-- > layers.begin; ++i) {
      if (fine) fine = own[int(i)].advance(chunk) == 0;
      if (dx_of(l))
        shared.meetings.get()[l].pass(chunk.rows(), !sequences.reverse, [&](Range some, bool add) {
          if (fine) own[int(i)].input_gradient(some, add);
        });
    }
    if (progress) progress[layers.begin].publish(steps);
    for (int i = 0; fine && chunk.ends_pass() && i < own.size(); ++i) fine = own[i].weight_gradients(chunk.pass()) == 0;
  }
  for (int i = 0; fine && i < own.size(); ++i) own[i].finish();
  return !fine;
}

template <class S, class Act>
int stack_backward(const StackBackwardArgs& args, int threads) {
  const Stack& stack = args.stack;
  const int lowest = lowest_wanted(args), L = stack.layers, D = stack.directions;
  if (lowest == L) return 0;
  const int64_t rows = total_rows({stack.T, stack.B, stack.H, stack.batch_sizes, false});
  const StackPlan plan = plan_stack<S>(stack, lowest, rows, threads);
  // The gradients between layers. That of one direction's input takes the place of its output's, chunk by chunk; with
  // two directions, which read the output's at different times, it goes to the other half.
  const int64_t values = rows * D * stack.H;
  const int halves = L - lowest - 1 < D ? L - lowest - 1 : D;
  const Scratch<S> scratch(halves * values);
  StackScratch<S> shared(plan, L, true, rows);
  if (!scratch || !shared) return 1;
  S* const between[2] = {scratch.get(), scratch.get() + (halves > 1 ? values : 0)};
  const int64_t chunk_rows = plan.members > 1 ? plan.chunk_rows : rows;
  return shared.each(plan, lowest, L, D, true, threads, [&](Range layers, int d, int one) {
    return sequence_backward<S, Act>(args, layers, d, lowest, rows, chunk_rows, between, shared,
                                     plan.pipeline ? shared.progress.get() : nullptr, one);
  });
}

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
