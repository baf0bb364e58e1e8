"""Cosines of tokens with unit vectors in Triton: tensors are read once forward, once backward, and not copied."""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def row(x, at, batch, token, column, on):
    """Load a token as float32, zero past its end."""
    return tl.load(x + batch * at[0] + token * at[1] + column, mask=on, other=0.0).to(tl.float32)


@triton.jit
def cosine_forward(x, unit, cosine, inverse, x_at, unit_at, tokens, dim, negligible, BLOCK: tl.constexpr):
    """Write the cosine of each token and the inverse of its norm, zero for a negligible one."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    on = column < dim
    x_t = row(x, x_at, program // tokens, program % tokens, column, on)
    unit_t = row(unit, unit_at, program // tokens, program % tokens, column, on)
    norm = tl.sqrt(tl.sum(x_t * x_t, axis=0))
    inverse_t = tl.where(norm > negligible, 1.0 / tl.maximum(norm, negligible), 0.0)
    tl.store(inverse + program, inverse_t)
    tl.store(cosine + program, tl.sum(x_t * unit_t, axis=0) * inverse_t)


@triton.jit
def cosine_backward(x, unit, cosine, inverse, grad, dx, x_at, unit_at, tokens, dim, BLOCK: tl.constexpr):
    """Write dx (batch, token, dim), contiguous: grad / norm times the part of `unit` orthogonal to x."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    on = column < dim
    x_t = row(x, x_at, program // tokens, program % tokens, column, on)
    unit_t = row(unit, unit_at, program // tokens, program % tokens, column, on)
    inverse_t, cosine_t = tl.load(inverse + program), tl.load(cosine + program)
    dx_t = tl.load(grad + program) * inverse_t * (unit_t - cosine_t * inverse_t * x_t)
    tl.store(dx + program * dim + column, dx_t.to(dx.dtype.element_ty), mask=on)
