"""The reader of compiled programs finds what was planted in small ones, and nothing in
clean ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo_text import Program, listing
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

pytestmark = pytest.mark.optimized

F32 = jax.ShapeDtypeStruct((40, 3), np.float32)
MATRIX = jax.ShapeDtypeStruct((3, 3), np.float32)


def _compiled(function, *arguments, **options) -> Program:
    return Program(jax.jit(function, **options).lower(*arguments).compile().as_text())


def test_a_clean_program_has_none_of_it():
    program = _compiled(lambda x: jnp.sin(x) + 1, F32, donate_argnums=0)
    assert program.aliases == {0: 0}
    assert (
        len(program.kernels) == 1 and program.num_bytes_moved(program.kernels[0]) == 2 * 40 * 3 * 4
    )
    found = (
        program.of_type("f64", "s64"),
        program.transfers(),
        program.collectives(),
        program.sorts(),
        program.copies(),
        program.products(),
    )
    assert not any(found)
    assert "1 kernels and calls (0 calls), 0 sorts, 0 copies, 0.0 MB" in listing(program)


def test_a_double_is_found_also_inside_a_kernel():
    with jax.enable_x64(True):
        program = _compiled(lambda x: (x.astype(jnp.float64) * 3).astype(jnp.float32), F32)
    assert program.of_type("f64") and not program.of_type("s64")
    assert not any(kind == "f64" for kernel in program.kernels for kind, _ in kernel.arrays)


@pytest.mark.parametrize(
    "how", [jax.debug.callback, lambda f, x: jax.experimental.io_callback(f, None, x)]
)
def test_a_call_of_the_host_is_found(how):
    def function(x):
        how(lambda value: None, x)
        return x + 1

    assert _compiled(function, F32).transfers()


def test_what_devices_exchange_is_found():
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))
    function = jax.shard_map(
        lambda x: jax.lax.psum(x, "device"), mesh=mesh, in_specs=P("device"), out_specs=P()
    )
    program = _compiled(function, F32, in_shardings=NamedSharding(mesh, P("device")))
    assert [x.opcode for x in program.collectives()] == ["all-reduce"]


def test_a_copied_argument_is_found_and_donation_spares_it():
    def function(x, row):
        return jax.lax.dynamic_update_index_in_dim(x, row, 3, 0)

    row = jax.ShapeDtypeStruct((3,), np.float32)
    copied, donated = (_compiled(function, F32, row, donate_argnums=donate) for donate in ((), 0))
    assert [shape for _, shape in copied.copies()] == [(40, 3)] and not copied.aliases
    assert not donated.copies() and donated.aliases == {0: 0}


def test_products_and_sorts_are_found():
    program = _compiled(
        lambda x, m: (jnp.matmul(x, m), jnp.argsort(x[:, 0], stable=True)), F32, MATRIX
    )
    assert [product.contracted for product in program.products()] == [3]
    assert len(program.sorts()) == 1


def test_what_only_some_runs_reach_counts_once():
    def function(x):
        x = jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: jnp.cos(x) * 2, x)
        return jax.lax.cond(x[0, 0] > 0, lambda x: jnp.sort(x, axis=0), jnp.tanh, x)

    program = _compiled(function, F32)
    assert len(program.sorts()) == 1
    inner = [
        x.opcode for computation in program.computations.values() for x in computation.values()
    ]
    assert any(x.computation != program.entry for x in program.kernels) and len(
        program.kernels
    ) < len(inner)


# What XLA writes for GPUs and TPUs and a CPU's compiler does not.
OF_A_GPU = """HloModule jit_run, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, \
may-alias) }, entry={}

%triton (p: f32[40,3], m: f32[3,3]) -> f32[40,3] {
  %p = f32[40,3]{1,0} parameter(0)
  %m = f32[3,3]{1,0} parameter(1)
  ROOT %dot.1 = f32[40,3]{1,0} dot(%p, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(f)/turn"}
}

%loop (p: f32[4,4], q: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  %q = f32[4,4]{1,0} parameter(1)
  ROOT %dot.2 = f32[4,4]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%both (p: f32[40,3]) -> (f32[40,3], f32[3,40]) {
  %p = f32[40,3]{1,0:T(8,128)} parameter(0)
  %sine = f32[40,3]{1,0:T(8,128)} sine(%p)
  %bitcast.1 = f32[40,3]{1,0} bitcast(%p)
  %turned = f32[3,40]{1,0} transpose(%bitcast.1), dimensions={1,0}
  ROOT %tuple.1 = (f32[40,3]{1,0:T(8,128)}, f32[3,40]{1,0}) tuple(%sine, %turned)
}

ENTRY %main (a: f32[40,3], b: f32[3,3], c: f32[4,4]) -> (f32[40,3], f32[4,4]) {
  %a = f32[40,3]{1,0} parameter(0)
  %b = f32[3,3]{1,0} parameter(1)
  %c = f32[4,4]{1,0} parameter(2)
  %gemm = f32[40,3]{1,0} fusion(%a, %b), kind=kCustom, calls=%triton, \
backend_config={"kind":"__triton_gemm"}
  %small = f32[4,4]{1,0} fusion(%c, %c), kind=kLoop, calls=%loop
  %library = (f32[40,3]{1,0}, s8[1024]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm"
  %solver = (f32[3,3]{0,1}, s32[3]{0}, s32[]) custom-call(%b), \
custom_call_target="cusolver_getrf_ffi"
  %cub = (f32[40]{0}, s8[99]{0}) custom-call(%a), custom_call_target="__cub$DeviceRadixSort"
  %pair = (f32[40,3]{1,0}, /*index=1*/f32[3,40]{1,0}) fusion(%a), kind=kLoop, calls=%both
  %copied = f32[4,4]{1,0} copy(%small)
  %away = (f32[40,3]{1,0:S(5)}, f32[40,3]{1,0}, u32[]) copy-start(%gemm)
  ROOT %out = (f32[40,3]{1,0}, f32[4,4]{1,0}) tuple(%gemm, %copied)
}
"""


def test_what_a_gpu_would_run_is_read():
    program = Program(OF_A_GPU)
    assert program.aliases == {0: 0, 1: 2}
    kinds = {(x.instruction.name, x.contracted, x.is_fused_loop) for x in program.products()}
    assert kinds == {
        ("dot.1", 3, False),
        ("dot.2", 4, True),
        ("library", 0, False),
        ("solver", 0, False),
    }
    assert (
        next(x for x in program.products() if x.contracted == 3).instruction.source == "jit(f)/turn"
    )
    assert [x.name for x in program.sorts()] == ["cub"]
    assert sorted((kernel.name, shape) for kernel, shape in program.copies()) == [
        ("away", (40, 3)),
        ("copied", (4, 4)),
        ("pair", (3, 40)),
    ]
    assert [x.name for x in program.transfers()] == ["away"]
    assert [x.name for x in program.kernels] == [
        "gemm",
        "small",
        "library",
        "solver",
        "cub",
        "pair",
        "copied",
        "away",
    ]
    assert program.num_bytes_moved(program.kernels[0]) == 4 * (120 + 120 + 9)


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="entry computation"):
        Program("module @jit_f { func.func public @main() }")
