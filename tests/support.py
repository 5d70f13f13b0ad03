"""The support matrix: what torch.nn.RNN does, what rnnfast does, and the test that shows it.

    python -m tests.support

writes it into tests/README.md, between the markers. test_support.py fails if a test that is named here does
not exist, and if the file is stale.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BEGIN, END = "<!-- support:begin -->", "<!-- support:end -->"
TESTS = Path(__file__).parent
README = TESTS / "README.md"


@dataclass(frozen=True)
class Row:
    feature: str
    theirs: str  # what torch.nn.RNN and RNNCell do
    ours: str
    shown_by: str  # file::function, without test_ and .py
    theirs_shown_by: str = ""  # the test that shows what torch does not do


ROWS = [
    Row("tanh and relu, with and without bias", "yes", "yes", "functional::dense"),
    Row("float64, float32, bfloat16, float16", "yes", "yes", "functional::dense"),
    Row("complex numbers", "yes", "`auto` leaves them to torch", "dtypes::complex"),
    Row("same weights from the same seed", "yes", "yes", "torch_module_info::same_initialisation"),
    Row(
        "state_dict, pickle, deepcopy, save and load",
        "yes",
        "yes",
        "torch_module_info::pickle_deepcopy_save_and_load",
    ),
    Row("torch's exception types and messages", "yes", "yes", "errors::call"),
    Row("batched, unbatched, batch_first, hx or none", "yes", "yes", "inputs::batched_and_unbatched"),
    Row("empty batches", "yes", "yes", "inputs::smallest_sizes"),
    Row("non-contiguous and expanded tensors", "yes", "yes", "inputs::strided"),
    Row(
        "frozen weights, gradients for some arguments only",
        "yes",
        "yes",
        "inputs::requires_grad_in_every_combination",
    ),
    Row("PackedSequence, sorted or not", "yes", "yes, never padded", "packed::unsorted"),
    Row(
        "layers, directions, dropout with torch's masks", "yes", "yes", "stacks::dropout_draws_torch_s_masks"
    ),
    Row("autocast", "yes", "yes", "dtypes::autocast_gives_torch_s_dtype"),
    Row("double backward, gradgradcheck", "on the CPU", "yes", "autograd::every_mode_of_gradgradcheck"),
    Row("forward-mode AD", "yes", "yes", "func::forward_ad_with_dual_numbers"),
    Row(
        "in-place change of the output before backward",
        "on the CPU",
        "raises: change a clone",
        "autograd::modification_of_the_output_is_detected",
    ),
    Row("checkpoint, hooks, anomaly mode, retain_graph", "yes", "yes", "autograd::checkpoint"),
    Row("`torch.func` grad, jvp, vjp, jacrev, jacfwd, hessian", "yes", "yes", "func::jacobians"),
    Row("`torch.func.vmap`", "no", "yes", "func::vmap_over_inputs", "support::torch_can_t_vmap"),
    Row(
        "per-sample gradients",
        "no",
        "yes",
        "func::per_sample_gradients",
        "support::torch_can_t_compute_per_sample_gradients",
    ),
    Row("`torch.compile(fullgraph=True)`", "no", "yes", "graphs::compile", "support::torch_can_t_compile"),
    Row(
        "no recompilation when T or B changes", "no", "yes", "graphs::compile", "support::torch_can_t_compile"
    ),
    Row("PackedSequence in a compiled graph", "no", "yes", "packed::compile", "support::torch_can_t_compile"),
    Row(
        "`torch.export` with dynamic T and B",
        "no",
        "yes, and trainable; `import rnnfast` where it is loaded",
        "graphs::export_with_dynamic_sizes",
        "support::torch_can_t_export_a_dynamic_length",
    ),
    Row(
        "ahead-of-time compiled (AOTInductor)",
        "fixed T",
        "yes; `import rnnfast` where it is loaded, so not from C++",
        "graphs::ahead_of_time_compiled_saved_and_reloaded",
    ),
    Row(
        "exports that run without rnnfast",
        "yes",
        '`backend="aten"`, with a fixed T',
        "traces::export_of_the_aten_backend_is_loaded_without_rnnfast",
    ),
    Row("`make_fx`", "unrolled", "one operator", "graphs::make_fx"),
    Row("`torch.onnx.export(dynamo=True)`", "yes", "yes, in float32 as ONNX's RNN operator", "onnx::rnn"),
    Row("`torch.onnx.export(dynamo=False)`", "yes", "yes", "onnx::exporter_that_traces"),
    Row(
        "PackedSequence in ONNX",
        "no",
        "no: export with padded sequences",
        "onnx::packed_rows_have_no_counterpart",
    ),
    Row(
        "`torch.jit.script`",
        "yes",
        "compiles torch's module in its place",
        "graphs::torchscript_compiles_torch_s_module_in_our_place",
    ),
    Row("calling an operator of ours with bad arguments", "", "torch's errors", "operators::forward"),
    Row(
        "`torch.jit.trace`, loaded anywhere",
        "yes",
        "yes: traces hold torch's operators",
        "traces::a_trace_is_loaded_without_rnnfast",
    ),
    Row(
        "traced PackedSequence, other batches",
        "yes",
        "yes",
        "traces::a_trace_of_packed_sequences_takes_other_batches",
    ),
    Row("leaf in `torch.fx.symbolic_trace`", "yes", "yes", "graphs::fx_leaf"),
    Row("pruning, tied weights, parametrizations", "yes", "yes", "ecosystem::parametrizations"),
    Row(
        "meta device, deferred initialisation",
        "yes",
        "yes",
        "ecosystem::meta_device_and_deferred_initialisation",
    ),
    Row(
        "`torch.nn.utils.skip_init`",
        "no",
        "yes",
        "torch_module_info::factory_keywords",
        "support::torch_can_t_skip_init",
    ),
    Row("DistributedDataParallel, FSDP2", "yes", "yes", "distributed::two_processes_train_like_one"),
    Row(
        "DataLoader workers by fork",
        "yes",
        "yes",
        "ecosystem::data_loader_workers_forked_after_a_parallel_region",
    ),
    Row(
        "fork, and parallel in parent and child",
        "if the parent wasn't parallel before",
        "yes, and then torch too",
        "processes::fork",
        "support::torch_hangs_in_a_child_of_a_parallel_parent",
    ),
    Row(
        "`set_flush_denormal` on all threads",
        "no: the calling one",
        "yes",
        "processes::subnormal_numbers_on_any_number_of_threads",
        "support::torch_flushes_on_the_calling_thread_alone",
    ),
    Row(
        "several Python threads on one module",
        "yes",
        "yes, exact",
        "ecosystem::eight_python_threads_on_one_module",
    ),
    Row("FlopCounterMode", "yes", "yes, the same count", "ecosystem::flop_counter_agrees_with_torch_s_count"),
    Row("profiler", "its operators", "our operators, by name", "ecosystem::profiler_shows_our_operators"),
    Row("`torch.use_deterministic_algorithms(True)`", "yes", "yes", "ecosystem::deterministic_algorithms"),
    Row("attributes set after construction", "obeyed or raises", "the same", "attributes::set_later"),
    Row("`torch.nn.RNN = rnnfast.RNN`", "", "yes, but for `fullgraph=True`", "replacement::swapped_in"),
    Row("`rnnfast.convert` of whole models", "", "yes", "convert::same_results_same_parameters"),
    Row(
        "lists, bound methods and hooks that hold the modules",
        "",
        "see ours: the objects stay the same",
        "convert_in_place::every_way_of_holding_a_module_sees_the_same_one",
    ),
    Row("`rnnfast.revert`: back to torch's classes", "", "yes", "convert_in_place::revert"),
    Row(
        "`isinstance(m, nn.RNN)`, tables by class",
        "yes",
        "`nn.RNNCell` and `nn.RNNBase`: initialise, count and quantise before `convert` or after `revert`",
        "convert_in_place::a_cell_is_one_of_torch_s_cells_and_a_layer_one_of_its_base",
    ),
    Row(
        "`convert` of subclasses and parametrized RNNs",
        "",
        "left alone",
        "convert::subclasses_and_other_recurrent_modules_are_left_alone",
    ),
    Row("leaky and continuous-time cells (LeakyRNN, CTRNN)", "no", "yes", "leaking::results_and_gradients"),
    Row("sigmoid, softplus, identity", "no", "LeakyRNN, CTRNN, `rnn_sequence`", "cells::dense"),
    Row("alpha: a number, one for each unit, learned", "", "yes", "leaking::a_learned_alpha_stays_inside"),
    Row("noise in every step, repeated by a seed", "no", "yes", "leaking::noise"),
    Row("resets inside of a batch", "no", "yes, in dense batches", "cells::resets"),
    Row("resets of packed sequences", "no", "no: an error", "leaking_errors::resets_of_modules"),
    Row(
        "the cells under gradgradcheck, vmap and forward-mode AD",
        "",
        "yes",
        "cells_derived::vmap_and_jvp",
    ),
    Row("the cells under `torch.compile(fullgraph=True)`", "", "yes", "cells_derived::compile"),
    Row("the cells in `torch.export`", "", "yes, any T and B", "cells_derived::export_with_dynamic_sizes"),
    Row("the cells in traces and ONNX", "", "unrolled for one T", "cells_derived::a_trace_is_a_loop"),
    Row("masks, Dale's law, low rank by parametrizations", "yes", "yes", "documents::constrained_weights"),
    Row("LSTM, GRU, proj_size", "own modules", "no: torch's own", "errors::constructor"),
]


def table() -> str:
    lines = ["| feature | torch.nn.RNN | rnnfast | shown by (tests/) |", "|---|---|---|---|"]
    for row in ROWS:
        file, function = row.shown_by.split("::")
        lines.append(f"| {row.feature} | {row.theirs} | {row.ours} | test_{file}.py::test_{function} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """`text` with what is between its markers replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


@cache
def existing_tests() -> set[str]:
    """All tests of this folder, in the form of `Row.shown_by`."""
    return {
        f"{path.stem.removeprefix('test_')}::{node.name.removeprefix('test_')}"
        for path in TESTS.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
