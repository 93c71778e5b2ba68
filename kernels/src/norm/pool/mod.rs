//! Max pooling with kernel 3, stride 2, padding 1, alone or after a normalisation with ReLU.
//!
//! Window `(i, j)` is centred on pixel `(2i, 2j)`; there are `ceil(h / 2) x ceil(w / 2)` of them. One byte gives the
//! position of a window's maximum: 1..=9 in row-major order over the window, 0 when the ReLU after it is closed. The
//! backward pass gathers, so no two threads write the same element.

mod backward;
mod forward;

pub(super) use backward::{ThroughNorm, backward};
pub(super) use forward::{NormRelu, Pooled, forward};

use super::Element;
use super::workers::Exec;
use crate::error::{Result, check_len, checked_elements};

/// Input shape of a 3x3, stride 2 pooling, channels-last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Number of images, N.
    pub n: usize,
    /// Input rows of an image.
    pub h: usize,
    /// Input columns of an image.
    pub w: usize,
    /// Number of channels, C.
    pub channels: usize,
}

impl PoolShape {
    /// Output rows of an image.
    #[must_use]
    pub fn out_h(&self) -> usize {
        self.h.div_ceil(2)
    }

    /// Output columns of an image.
    #[must_use]
    pub fn out_w(&self) -> usize {
        self.w.div_ceil(2)
    }

    /// Elements of the input, `n * h * w * channels`.
    pub(super) fn inputs(&self) -> Result<usize> {
        checked_elements("x", &[self.n, self.h, self.w, self.channels])
    }

    /// Elements of the output, `n * out_h * out_w * channels`.
    pub(super) fn outputs(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.channels
    }

    /// Elements of an output row.
    fn out_row(&self) -> usize {
        self.out_w() * self.channels
    }

    pub(super) fn check_out(&self, what: &'static str, actual: usize) -> Result<()> {
        check_len(
            what,
            "[n, ceil(h / 2), ceil(w / 2), channels]",
            actual,
            self.outputs(),
        )
    }

    pub(super) fn check_in(&self, what: &'static str, actual: usize) -> Result<()> {
        check_len(what, "[n, h, w, channels]", actual, self.inputs()?)
    }

    /// First input row (counted over all images) under output row `row`.
    fn first_input_row(&self, row: usize) -> usize {
        (row / self.out_h()) * self.h + 2 * (row % self.out_h())
    }
}

/// Output rows that one task computes.
const TASK_ROWS: usize = 4;

/// Max pooling (kernel 3, stride 2, padding 1): `y` and the position byte of each maximum, both
/// `[n, ceil(h / 2), ceil(w / 2), channels]`. The first maximum in row-major order wins, NaN wins over
/// numbers, as in PyTorch; but +0 wins over -0.
///
/// # Errors
/// When a buffer does not have its shape's length.
pub fn maxpool3x3s2_forward<T: Element>(
    shape: PoolShape,
    x: &[T],
    y: &mut [T],
    codes: &mut [u8],
) -> Result<()> {
    maxpool_forward(Exec::current(), shape, x, y, codes)
}

pub(super) fn maxpool_forward<T: Element>(
    exec: Exec,
    shape: PoolShape,
    x: &[T],
    y: &mut [T],
    codes: &mut [u8],
) -> Result<()> {
    shape.check_in("x", x.len())?;
    shape.check_out("y", y.len())?;
    shape.check_out("codes", codes.len())?;
    if x.is_empty() {
        return Ok(());
    }
    let out = Pooled {
        winner: y,
        codes,
        y: &mut [],
    };
    forward(exec, shape, x, None, out);
    Ok(())
}

/// Gradient of [`maxpool3x3s2_forward`]: `dx` `[n, h, w, channels]` from `dy` and the position bytes.
///
/// # Errors
/// When a buffer does not have its shape's length.
pub fn maxpool3x3s2_backward<T: Element>(
    shape: PoolShape,
    dy: &[T],
    codes: &[u8],
    dx: &mut [T],
) -> Result<()> {
    maxpool_backward(Exec::current(), shape, dy, codes, dx)
}

pub(super) fn maxpool_backward<T: Element>(
    exec: Exec,
    shape: PoolShape,
    dy: &[T],
    codes: &[u8],
    dx: &mut [T],
) -> Result<()> {
    shape.check_in("dx", dx.len())?;
    shape.check_out("dy", dy.len())?;
    shape.check_out("codes", codes.len())?;
    if dx.is_empty() {
        return Ok(());
    }
    backward(exec, shape, dy, codes, None, dx);
    Ok(())
}
