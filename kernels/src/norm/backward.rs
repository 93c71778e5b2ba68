//! Gradient of batch normalisation, with the activation and the residual branch in the same passes.

use super::forward::TILE_ROWS;
use super::lanes::{Kernel, Lanes, sweep};
use super::silu::silu_gradient;
use super::workers::{Exec, Pieces};
use super::{ActivationGate, Element, block_rows};
use std::ops::Range;

/// The kind of [`ActivationGate`], as a constant of the inner loops.
mod gates {
    pub(super) const OPEN: u8 = 0;
    pub(super) const OUTPUT: u8 = 1;
    pub(super) const INPUT: u8 = 2;
    pub(super) const SILU: u8 = 3;
}

/// The gate of one block, with the data that it needs.
#[derive(Clone, Copy)]
pub(super) enum BlockGate<'a, T> {
    Open,
    Output(&'a [T]),
    /// The scale and shift of the forward pass.
    Input(&'a [f32], &'a [f32]),
    /// The scale and shift of the forward pass, whose activation was SiLU.
    Silu(&'a [f32], &'a [f32]),
}

impl<'a, T: Element> BlockGate<'a, T> {
    pub(super) fn new(gate: ActivationGate<'a, T>, scale: &'a [f32], shift: &'a [f32]) -> Self {
        match gate {
            ActivationGate::Open => Self::Open,
            ActivationGate::Output(y) => Self::Output(y),
            ActivationGate::Input { .. } => Self::Input(scale, shift),
            ActivationGate::Silu { .. } => Self::Silu(scale, shift),
        }
    }

    fn slice(self, span: Range<usize>) -> Self {
        match self {
            Self::Output(y) => Self::Output(&y[span]),
            other => other,
        }
    }

    fn fits(self, elements: usize, channels: usize) -> bool {
        match self {
            Self::Open => true,
            Self::Output(y) => y.len() == elements,
            Self::Input(scale, shift) | Self::Silu(scale, shift) => {
                scale.len() == channels && shift.len() == channels
            }
        }
    }

    /// Pointers that the constant `GATE` of the inner loop reads; dangling where it does not.
    fn pointers(self) -> (*const T, *const f32, *const f32) {
        let nothing = std::ptr::null();
        match self {
            Self::Open => (nothing, nothing.cast(), nothing.cast()),
            Self::Output(y) => (y.as_ptr(), nothing.cast(), nothing.cast()),
            Self::Input(scale, shift) | Self::Silu(scale, shift) => {
                (nothing, scale.as_ptr(), shift.as_ptr())
            }
        }
    }
}

/// Sums per channel `g` and `g * (x - mean)` over one block, where `g` is `dy` (plus the second gradient) behind the
/// activation: for ReLU where the gate is open and 0 elsewhere. Also writes `g` if there is a buffer for it.
struct Reduce<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    second: Option<&'a [T]>,
    gate: BlockGate<'a, T>,
    mean: &'a [f32],
    gated: Option<&'a mut [T]>,
    /// The two sums of each channel, `[2, channels]`; written.
    sums: &'a mut [f32],
}

impl<T: Element> Reduce<'_, T> {
    /// # Safety
    /// As [`Kernel::strip`]; `GATE`, `SECOND` and `KEEP` must match the content of the fields.
    #[inline(always)]
    unsafe fn rows<
        L: Lanes,
        const N: usize,
        const GATE: u8,
        const SECOND: bool,
        const KEEP: bool,
    >(
        &mut self,
        rows: Range<usize>,
        channel: usize,
    ) {
        let channels = self.mean.len();
        let (y, scale, shift) = self.gate.pointers();
        let second = self.second.map_or(std::ptr::null(), <[T]>::as_ptr);
        let gated = self
            .gated
            .as_mut()
            .map_or(std::ptr::null_mut(), |g| g.as_mut_ptr());
        // SAFETY: inside the extent, so inside all the buffers, whose lengths `extent` checked.
        unsafe {
            let mean = T::load_channels::<L, N>(self.mean.as_ptr().add(channel));
            let (mut scales, mut shifts) = (mean, mean);
            if GATE == gates::INPUT || GATE == gates::SILU {
                scales = T::load_channels(scale.add(channel));
                shifts = T::load_channels(shift.add(channel));
            }
            let (mut sum, mut dot) = ([L::splat(0.0); N], [L::splat(0.0); N]);
            for r in rows {
                for i in 0..N {
                    let at = r * channels + channel + i * L::WIDTH;
                    let x = T::load::<L>(self.x.as_ptr().add(at));
                    let mut g = T::load::<L>(self.dy.as_ptr().add(at));
                    if SECOND {
                        g = g.add(T::load::<L>(second.add(at)));
                    }
                    if GATE == gates::OUTPUT {
                        g = g.gate(T::load::<L>(y.add(at)));
                    } else if GATE == gates::INPUT {
                        g = g.gate(x.mul_add(scales[i], shifts[i]));
                    } else if GATE == gates::SILU {
                        g = silu_gradient(g, x.mul_add(scales[i], shifts[i]));
                    }
                    if KEEP {
                        T::store(g, gated.add(at));
                        if SECOND {
                            // The second pass reads the rounded sum, so this one must use it too.
                            g = T::load::<L>(gated.add(at));
                        }
                    }
                    sum[i] = sum[i].add(g);
                    dot[i] = g.mul_add(x.sub(mean[i]), dot[i]);
                }
            }
            for i in 0..N {
                let to = self.sums.as_mut_ptr().add(channel + i * L::WIDTH);
                T::store_channels(sum[i], to);
                T::store_channels(dot[i], to.add(channels));
            }
        }
    }

    /// # Safety
    /// As [`Reduce::rows`].
    #[inline(always)]
    unsafe fn choose<L: Lanes, const N: usize, const GATE: u8>(
        &mut self,
        rows: Range<usize>,
        channel: usize,
    ) {
        // SAFETY: as promised by the caller.
        unsafe {
            match (self.second.is_some(), self.gated.is_some()) {
                (false, false) => self.rows::<L, N, GATE, false, false>(rows, channel),
                (false, true) => self.rows::<L, N, GATE, false, true>(rows, channel),
                (true, false) => self.rows::<L, N, GATE, true, false>(rows, channel),
                (true, true) => self.rows::<L, N, GATE, true, true>(rows, channel),
            }
        }
    }
}

impl<T: Element> Kernel for Reduce<'_, T> {
    const TILE_ROWS: usize = usize::MAX;

    fn extent(&self) -> (usize, usize) {
        let (elements, channels) = (self.x.len(), self.mean.len());
        assert_eq!(self.dy.len(), elements);
        assert!(self.second.is_none_or(|s| s.len() == elements));
        assert!(self.gated.as_ref().is_none_or(|g| g.len() == elements));
        assert!(self.gate.fits(elements, channels));
        assert_eq!(self.sums.len(), 2 * channels);
        (elements / channels, channels)
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            match self.gate {
                BlockGate::Open => self.choose::<L, N, { gates::OPEN }>(rows, channel),
                BlockGate::Output(_) => self.choose::<L, N, { gates::OUTPUT }>(rows, channel),
                BlockGate::Input(..) => self.choose::<L, N, { gates::INPUT }>(rows, channel),
                BlockGate::Silu(..) => self.choose::<L, N, { gates::SILU }>(rows, channel),
            }
        }
    }
}

/// Per channel, in f64: `sum(g)` and `sum(g * (x - mean))`.
pub(super) struct GradientSums {
    pub(super) sum: Vec<f64>,
    pub(super) dot: Vec<f64>,
}

/// The reducing pass. `gated` receives `g` when it is given.
pub(super) fn reduce<T: Element>(
    exec: Exec,
    x: &[T],
    (dy, second): (&[T], Option<&[T]>),
    gate: BlockGate<'_, T>,
    mean: &[f32],
    gated: Option<&mut [T]>,
) -> GradientSums {
    let channels = mean.len();
    let block = block_rows(channels) * channels;
    let blocks = x.len().div_ceil(block);
    let mut partial = vec![0f32; blocks * 2 * channels];
    let pieces = Pieces::new(&mut partial, 2 * channels);
    let kept = gated.map(|g| Pieces::new(g, block));
    exec.for_each(blocks, x.len(), |b| {
        let span = b * block..((b + 1) * block).min(x.len());
        // SAFETY: one task per block.
        let (sums, gated) = unsafe { (pieces.get(b), kept.as_ref().map(|k| k.get(b))) };
        sweep(
            exec.isa,
            &mut Reduce {
                x: &x[span.clone()],
                dy: &dy[span.clone()],
                second: second.map(|s| &s[span.clone()]),
                gate: gate.slice(span),
                mean,
                gated,
                sums,
            },
        );
    });
    let mut sums = GradientSums {
        sum: vec![0.0; channels],
        dot: vec![0.0; channels],
    };
    for partial in partial.chunks_exact(2 * channels) {
        let (sum, dot) = partial.split_at(channels);
        for (total, part) in sums.sum.iter_mut().zip(sum) {
            *total += f64::from(*part);
        }
        for (total, part) in sums.dot.iter_mut().zip(dot) {
            *total += f64::from(*part);
        }
    }
    sums
}

/// The factors, per channel, of `dx = a * g + b * x + c`.
pub(super) struct Factors {
    pub(super) a: Vec<f32>,
    pub(super) b: Vec<f32>,
    pub(super) c: Vec<f32>,
}

impl Factors {
    /// Number of channels, the length of each factor.
    pub(super) fn len(&self) -> usize {
        self.a.len()
    }

    /// From `dx = weight * invstd * (g - sum(g) / n - xhat * sum(g * xhat) / n)` with `xhat = (x - mean) * invstd`.
    pub(super) fn new(
        weight: &[f32],
        mean: &[f32],
        invstd: &[f32],
        sums: &GradientSums,
        rows: usize,
    ) -> Self {
        let channels = weight.len();
        let (mut a, mut b, mut c) = (
            vec![0.0; channels],
            vec![0.0; channels],
            vec![0.0; channels],
        );
        let share = 1.0 / rows as f64;
        for i in 0..channels {
            let inv = f64::from(invstd[i]);
            let of_g = f64::from(weight[i]) * inv;
            let of_x = -of_g * inv * inv * sums.dot[i] * share;
            a[i] = of_g as f32;
            b[i] = of_x as f32;
            c[i] = (-of_g * sums.sum[i] * share - of_x * f64::from(mean[i])) as f32;
        }
        Self { a, b, c }
    }
}

/// `dx = a * g + b * x + c` for one block.
struct InputGradient<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    gate: BlockGate<'a, T>,
    factors: &'a Factors,
    dx: &'a mut [T],
}

impl<T: Element> InputGradient<'_, T> {
    /// # Safety
    /// As [`Kernel::strip`]; `GATE` says what `gate` holds.
    #[inline(always)]
    unsafe fn rows<L: Lanes, const N: usize, const GATE: u8>(
        &mut self,
        rows: Range<usize>,
        channel: usize,
    ) {
        let channels = self.factors.a.len();
        let (y, scale, shift) = self.gate.pointers();
        // SAFETY: inside the extent, so inside all the buffers, whose lengths `extent` checked.
        unsafe {
            let a = T::load_channels::<L, N>(self.factors.a.as_ptr().add(channel));
            let b = T::load_channels::<L, N>(self.factors.b.as_ptr().add(channel));
            let c = T::load_channels::<L, N>(self.factors.c.as_ptr().add(channel));
            let (mut scales, mut shifts) = (a, a);
            if GATE == gates::INPUT || GATE == gates::SILU {
                scales = T::load_channels(scale.add(channel));
                shifts = T::load_channels(shift.add(channel));
            }
            for r in rows {
                for i in 0..N {
                    let at = r * channels + channel + i * L::WIDTH;
                    let x = T::load::<L>(self.x.as_ptr().add(at));
                    let mut g = T::load::<L>(self.dy.as_ptr().add(at));
                    if GATE == gates::OUTPUT {
                        g = g.gate(T::load::<L>(y.add(at)));
                    } else if GATE == gates::INPUT {
                        g = g.gate(x.mul_add(scales[i], shifts[i]));
                    } else if GATE == gates::SILU {
                        g = silu_gradient(g, x.mul_add(scales[i], shifts[i]));
                    }
                    let dx = g.mul_add(a[i], x.mul_add(b[i], c[i]));
                    T::store(dx, self.dx.as_mut_ptr().add(at));
                }
            }
        }
    }
}

impl<T: Element> Kernel for InputGradient<'_, T> {
    const TILE_ROWS: usize = TILE_ROWS;

    fn extent(&self) -> (usize, usize) {
        let (elements, channels) = (self.x.len(), self.factors.a.len());
        assert_eq!(self.dy.len(), elements);
        assert_eq!(self.dx.len(), elements);
        assert!(self.gate.fits(elements, channels));
        (elements / channels, channels)
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            match self.gate {
                BlockGate::Open => self.rows::<L, N, { gates::OPEN }>(rows, channel),
                BlockGate::Output(_) => self.rows::<L, N, { gates::OUTPUT }>(rows, channel),
                BlockGate::Input(..) => self.rows::<L, N, { gates::INPUT }>(rows, channel),
                BlockGate::Silu(..) => self.rows::<L, N, { gates::SILU }>(rows, channel),
            }
        }
    }
}

/// The pass that writes `dx`.
pub(super) fn input_gradient<T: Element>(
    exec: Exec,
    x: &[T],
    dy: &[T],
    gate: BlockGate<'_, T>,
    factors: &Factors,
    dx: &mut [T],
) {
    let channels = factors.a.len();
    let block = block_rows(channels) * channels;
    let blocks = x.len().div_ceil(block);
    let pieces = Pieces::new(dx, block);
    exec.for_each_again(blocks, x.len(), |b| {
        let span = b * block..((b + 1) * block).min(x.len());
        // SAFETY: one task per block.
        let dx = unsafe { pieces.get(b) };
        sweep(
            exec.isa,
            &mut InputGradient {
                x: &x[span.clone()],
                dy: &dy[span.clone()],
                gate: gate.slice(span),
                factors,
                dx,
            },
        );
    });
}
