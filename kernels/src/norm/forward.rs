//! Batch statistics and the normalising pass.

use super::lanes::{Kernel, Lanes, sweep};
use super::silu::silu;
use super::workers::{Exec, Pieces};
use super::{Activation, Element, block_rows};
use std::ops::Range;

/// Rows of a block, evenly spread, whose mean shifts the block's sums.
const SHIFT_ROWS: usize = 8;
/// Rows that a pass without sums handles strip by strip before it continues: they stay in L1.
pub(super) const TILE_ROWS: usize = 8;

/// Shifted sums of one block: with `k` near the mean of some of its rows, writes `k`, `sum(x - k)` and `sum((x - k)^2)`
/// per channel.
struct Moments<'a, T> {
    x: &'a [T],
    channels: usize,
    /// The three numbers of each channel, `[3, channels]`; written.
    sums: &'a mut [f32],
}

impl<T: Element> Kernel for Moments<'_, T> {
    const TILE_ROWS: usize = usize::MAX;

    fn extent(&self) -> (usize, usize) {
        assert_eq!(self.sums.len(), 3 * self.channels);
        (self.x.len() / self.channels, self.channels)
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        // SAFETY: rows and channels lie inside the extent, so inside `x` and `sums`.
        unsafe {
            let first = self.x.as_ptr().add(channel);
            let zero = L::splat(0.0);
            let head = rows.len().min(SHIFT_ROWS);
            let mut shift = [zero; N];
            for sample in 0..head {
                let r = sample * rows.len() / head;
                for (i, k) in shift.iter_mut().enumerate() {
                    *k = k.add(T::load::<L>(first.add(r * self.channels + i * L::WIDTH)));
                }
            }
            let share = L::splat(1.0 / head as f32);
            for k in &mut shift {
                *k = k.mul(share);
                if T::NARROW {
                    *k = k.truncate();
                }
            }
            let (mut sum, mut square) = ([zero; N], [zero; N]);
            for r in rows {
                for i in 0..N {
                    let d = T::load::<L>(first.add(r * self.channels + i * L::WIDTH)).sub(shift[i]);
                    sum[i] = sum[i].add(d);
                    square[i] = d.mul_add(d, square[i]);
                }
            }
            for i in 0..N {
                let to = self.sums.as_mut_ptr().add(channel + i * L::WIDTH);
                T::store_channels(shift[i], to);
                T::store_channels(sum[i], to.add(self.channels));
                T::store_channels(square[i], to.add(2 * self.channels));
            }
        }
    }
}

/// Mean and sum of squared deviations of every channel of `x` `[rows, channels]`.
///
/// Each block of rows is summed in f32 about a shift taken from the block itself: the mean of 8 of its `n` rows. Its
/// distance from the block's mean is at most `sqrt(M2 / 8)`, so the subtraction of its square loses at most `log2(n /
/// 8)` bits, whatever the data. For bf16 the shift is cut to bf16: the differences then lie on the elements' own grid,
/// and their sums are mostly exact. Blocks are joined in f64, in order.
pub(super) fn moments<T: Element>(exec: Exec, x: &[T], channels: usize) -> ChannelMoments {
    let block = block_rows(channels) * channels;
    let blocks = x.len().div_ceil(block);
    let mut sums = vec![0f32; blocks * 3 * channels];
    let pieces = Pieces::new(&mut sums, 3 * channels);
    exec.for_each(blocks, x.len(), |b| {
        let x = &x[b * block..((b + 1) * block).min(x.len())];
        // SAFETY: one task per block.
        let sums = unsafe { pieces.get(b) };
        sweep(exec.isa, &mut Moments { x, channels, sums });
    });
    let mut joined = Join {
        sums: &sums,
        rows: x.len() / channels,
        channels,
        mean: vec![0.0; channels],
        m2: vec![0.0; channels],
    };
    joined.run();
    ChannelMoments {
        mean: joined.mean,
        m2: joined.m2,
    }
}

/// The first two moments of each channel, over all rows.
pub(super) struct ChannelMoments {
    /// Mean of each channel, `[channels]`.
    pub(super) mean: Vec<f64>,
    /// Sum of squared deviations from the mean, `[channels]`.
    pub(super) m2: Vec<f64>,
}

struct Join<'a> {
    sums: &'a [f32],
    rows: usize,
    channels: usize,
    mean: Vec<f64>,
    m2: Vec<f64>,
}

impl Join<'_> {
    /// Joins the blocks in order: the mean first, then each block's own squares plus those of its
    /// distance from the mean (Chan, Golub and LeVeque 1979, for all blocks at once).
    fn run(&mut self) {
        let c = self.channels;
        let per_block = block_rows(c);
        let count = |b: usize| per_block.min(self.rows - b * per_block) as f64;
        for (b, sums) in self.sums.chunks_exact(3 * c).enumerate() {
            let n = count(b);
            for (i, total) in self.mean.iter_mut().enumerate() {
                *total += n * f64::from(sums[i]) + f64::from(sums[c + i]);
            }
        }
        let share = 1.0 / self.rows as f64;
        for mean in &mut self.mean {
            *mean *= share;
        }
        for (b, sums) in self.sums.chunks_exact(3 * c).enumerate() {
            let n = count(b);
            let per_row = 1.0 / n;
            for (i, (m2, mean)) in self.m2.iter_mut().zip(&self.mean).enumerate() {
                let off = f64::from(sums[c + i]) * per_row;
                let distance = f64::from(sums[i]) + off - mean;
                let own = f64::from(sums[2 * c + i]) - n * off * off;
                *m2 += own.max(0.0) + n * distance * distance;
            }
        }
    }
}

/// The [`Activation`], as a constant of the inner loops.
mod activations {
    pub(super) const NONE: u8 = 0;
    pub(super) const RELU: u8 = 1;
    pub(super) const SILU: u8 = 2;
}

/// Computes `y = x * scale + shift (+ residual)`, then the activation, for one block.
struct Apply<'a, T> {
    x: &'a [T],
    residual: Option<&'a [T]>,
    activation: Activation,
    scale: &'a [f32],
    shift: &'a [f32],
    out: &'a mut [T],
}

impl<T: Element> Apply<'_, T> {
    /// # Safety
    /// As [`Kernel::strip`].
    #[inline(always)]
    unsafe fn rows<L: Lanes, const N: usize, const ADD: bool, const ACTIVATION: u8>(
        &mut self,
        rows: Range<usize>,
        channel: usize,
    ) {
        let channels = self.scale.len();
        // SAFETY: inside the extent, so inside all the buffers, whose lengths `extent` checked.
        unsafe {
            let scale = T::load_channels::<L, N>(self.scale.as_ptr().add(channel));
            let shift = T::load_channels::<L, N>(self.shift.as_ptr().add(channel));
            for r in rows {
                for i in 0..N {
                    let at = r * channels + channel + i * L::WIDTH;
                    let x = T::load::<L>(self.x.as_ptr().add(at));
                    let mut y = x.mul_add(scale[i], shift[i]);
                    if ADD && let Some(residual) = self.residual {
                        y = y.add(T::load::<L>(residual.as_ptr().add(at)));
                    }
                    if ACTIVATION == activations::RELU {
                        y = y.relu();
                    } else if ACTIVATION == activations::SILU {
                        y = silu(y);
                    }
                    T::store(y, self.out.as_mut_ptr().add(at));
                }
            }
        }
    }

    /// # Safety
    /// As [`Kernel::strip`].
    #[inline(always)]
    unsafe fn choose<L: Lanes, const N: usize, const ACTIVATION: u8>(
        &mut self,
        rows: Range<usize>,
        channel: usize,
    ) {
        // SAFETY: as promised by the caller.
        unsafe {
            match self.residual {
                None => self.rows::<L, N, false, ACTIVATION>(rows, channel),
                Some(_) => self.rows::<L, N, true, ACTIVATION>(rows, channel),
            }
        }
    }
}

impl<T: Element> Kernel for Apply<'_, T> {
    const TILE_ROWS: usize = TILE_ROWS;

    fn extent(&self) -> (usize, usize) {
        assert_eq!(self.x.len(), self.out.len());
        assert_eq!(self.scale.len(), self.shift.len());
        assert!(self.residual.is_none_or(|r| r.len() == self.x.len()));
        (self.x.len() / self.scale.len(), self.scale.len())
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            match self.activation {
                Activation::None => self.choose::<L, N, { activations::NONE }>(rows, channel),
                Activation::Relu => self.choose::<L, N, { activations::RELU }>(rows, channel),
                Activation::Silu => self.choose::<L, N, { activations::SILU }>(rows, channel),
            }
        }
    }
}

/// The normalising pass over the whole of `x`.
pub(super) fn apply<T: Element>(
    exec: Exec,
    x: &[T],
    residual: Option<&[T]>,
    activation: Activation,
    (scale, shift): (&[f32], &[f32]),
    out: &mut [T],
) {
    let channels = scale.len();
    let block = block_rows(channels) * channels;
    let blocks = x.len().div_ceil(block);
    let pieces = Pieces::new(out, block);
    exec.for_each_again(blocks, x.len(), |b| {
        let span = b * block..((b + 1) * block).min(x.len());
        // SAFETY: one task per block.
        let out = unsafe { pieces.get(b) };
        sweep(
            exec.isa,
            &mut Apply {
                x: &x[span.clone()],
                residual: residual.map(|r| &r[span]),
                activation,
                scale,
                shift,
                out,
            },
        );
    });
}
