//! Gives each input the gradients of the windows whose maximum it is.

use super::{PoolShape, TASK_ROWS};
use crate::norm::Element;
use crate::norm::backward::Factors;
use crate::norm::lanes::{Kernel, Lanes, sweep};
use crate::norm::workers::{Exec, Pieces};
use std::ops::Range;

/// Turns the pooled gradient into that of the normalisation's input: `dx = a * g + b * x + c`, each
/// factor `[channels]`.
#[derive(Clone, Copy)]
pub(in crate::norm) struct ThroughNorm<'a, T> {
    pub(in crate::norm) x: &'a [T],
    pub(in crate::norm) factors: &'a Factors,
}

/// The gradient of the input rows under the output rows `rows`, which may span several images.
struct PoolBackward<'a, T> {
    shape: PoolShape,
    dy: &'a [T],
    codes: &'a [u8],
    /// One output row of zeros, for windows below the image.
    closed: &'a [u8],
    norm: Option<ThroughNorm<'a, T>>,
    rows: Range<usize>,
    /// The input rows under `rows`.
    dx: &'a mut [T],
}

/// Where [`PoolBackward`] writes, from the first pixel and channel of a strip on.
struct GradientTarget<T, L, const N: usize, const NORM: bool> {
    dx: *mut T,
    /// Read only with `NORM`, as are the factors.
    x: *const T,
    a: [L; N],
    b: [L; N],
    c: [L; N],
}

impl<T: Element, L: Lanes, const N: usize, const NORM: bool> GradientTarget<T, L, N, NORM> {
    /// Writes the gradient of vector `k` of the strip, `at` elements on.
    ///
    /// # Safety
    /// As for [`Lanes`].
    #[inline(always)]
    unsafe fn write(&self, g: L, at: usize, k: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            let mut value = g;
            if NORM {
                let x = T::load::<L>(self.x.add(at));
                value = g.mul_add(self.a[k], x.mul_add(self.b[k], self.c[k]));
            }
            T::store(value, self.dx.add(at));
        }
    }
}

impl<T: Element> PoolBackward<'_, T> {
    /// # Safety
    /// As [`Kernel::strip`]; `NORM` says whether `norm` is there.
    #[inline(always)]
    unsafe fn row<L: Lanes, const N: usize, const NORM: bool>(
        &mut self,
        row: usize,
        channel: usize,
    ) {
        let PoolShape { h, w, channels, .. } = self.shape;
        let (out_h, out_w) = (self.shape.out_h(), self.shape.out_w());
        let row = self.rows.start + row;
        let (image, i) = (row / out_h, row % out_h);
        let input_row = image * h + 2 * i;
        let two_rows = 2 * i + 1 < h;
        let below = i + 1 < out_h;
        let start = self.shape.first_input_row(self.rows.start);
        // SAFETY: `row` is an output row and `input_row` lies under it, both inside their buffers;
        // the row below is read only where there is one (else its codes are zeros and the gradient
        // read in its place is not used), the second input row written only where there is one.
        unsafe {
            let dy0 = self.dy.as_ptr().add(row * out_w * channels + channel);
            let codes0 = self.codes.as_ptr().add(row * out_w * channels + channel);
            let (dy1, codes1) = if below {
                (dy0.add(out_w * channels), codes0.add(out_w * channels))
            } else {
                (dy0, self.closed.as_ptr().add(channel))
            };
            let dx = self.dx.as_mut_ptr();
            let zeros = [L::splat(0.0); N];
            let mut out = GradientTarget::<T, L, N, NORM> {
                dx: dx.add((input_row - start) * w * channels + channel),
                x: std::ptr::null(),
                a: zeros,
                b: zeros,
                c: zeros,
            };
            if NORM && let Some(ThroughNorm { x, factors }) = self.norm {
                out.x = x.as_ptr().add(input_row * w * channels + channel);
                out.a = T::load_channels(factors.a.as_ptr().add(channel));
                out.b = T::load_channels(factors.b.as_ptr().add(channel));
                out.c = T::load_channels(factors.c.as_ptr().add(channel));
            }
            for j in 0..out_w {
                let beside = j + 1 < out_w;
                let two_columns = 2 * j + 1 < w;
                for k in 0..N {
                    let o = k * L::WIDTH;
                    let (here, at) = (j * channels + o, 2 * j * channels + o);
                    let above = (dy0.add(here), codes0.add(here));
                    let below = (dy1.add(here), codes1.add(here));
                    out.write(pick::<T, L>(above, 5), at, k);
                    if two_rows {
                        let g = pick::<T, L>(above, 8).add(pick(below, 2));
                        out.write(g, at + w * channels, k);
                    }
                    if !two_columns {
                        continue;
                    }
                    let (mut upper, mut lower) = (pick::<T, L>(above, 6), L::splat(0.0));
                    if two_rows {
                        lower = pick::<T, L>(above, 9).add(pick(below, 3));
                    }
                    if beside {
                        let above = (above.0.add(channels), above.1.add(channels));
                        let below = (below.0.add(channels), below.1.add(channels));
                        upper = upper.add(pick(above, 4));
                        if two_rows {
                            lower = lower.add(pick::<T, L>(above, 7).add(pick(below, 1)));
                        }
                    }
                    out.write(upper, at + channels, k);
                    if two_rows {
                        out.write(lower, at + (w + 1) * channels, k);
                    }
                }
            }
        }
    }
}

/// The gradients of some windows that go to the position `code`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn pick<T: Element, L: Lanes>((dy, codes): (*const T, *const u8), code: u8) -> L {
    // SAFETY: as promised by the caller.
    unsafe { T::pick(dy, codes, code) }
}

impl<T: Element> Kernel for PoolBackward<'_, T> {
    const TILE_ROWS: usize = 1;

    fn extent(&self) -> (usize, usize) {
        let shape = self.shape;
        let (inputs, outputs) = (
            shape.n * shape.h * shape.w * shape.channels,
            shape.outputs(),
        );
        assert!(self.rows.end <= shape.n * shape.out_h());
        assert!(self.dy.len() == outputs && self.codes.len() == outputs);
        assert_eq!(self.closed.len(), shape.out_row());
        let span = shape.first_input_row(self.rows.end) - shape.first_input_row(self.rows.start);
        assert_eq!(self.dx.len(), span * shape.w * shape.channels);
        if let Some(ThroughNorm { x, factors }) = self.norm {
            assert!(x.len() == inputs && factors.len() == shape.channels);
        }
        (self.rows.len(), shape.channels)
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        for row in rows {
            // SAFETY: as promised by the caller.
            unsafe {
                match self.norm {
                    None => self.row::<L, N, false>(row, channel),
                    Some(_) => self.row::<L, N, true>(row, channel),
                }
            }
        }
    }
}

/// The gathering pass; buffers were checked by the caller.
pub(in crate::norm) fn backward<T: Element>(
    exec: Exec,
    shape: PoolShape,
    dy: &[T],
    codes: &[u8],
    norm: Option<ThroughNorm<'_, T>>,
    dx: &mut [T],
) {
    let out_rows = shape.n * shape.out_h();
    let tasks = out_rows.div_ceil(TASK_ROWS);
    let input_row = shape.w * shape.channels;
    let elements = dx.len();
    let closed = vec![0u8; shape.out_row()];
    let pieces = Pieces::new(dx, 1);
    exec.for_each(tasks, elements, |task| {
        let rows = task * TASK_ROWS..((task + 1) * TASK_ROWS).min(out_rows);
        let first = shape.first_input_row(rows.start) * input_row;
        let last = shape.first_input_row(rows.end) * input_row;
        // SAFETY: the input rows under different output rows are disjoint; one task per range.
        let dx = unsafe { pieces.range(first..last) };
        let closed = &closed;
        sweep(
            exec.isa,
            &mut PoolBackward {
                shape,
                dy,
                codes,
                closed,
                norm,
                rows,
                dx,
            },
        );
    });
}
