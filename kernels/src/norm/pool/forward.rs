//! Finds the maximum of each window.

use super::{PoolShape, TASK_ROWS};
use crate::norm::Element;
use crate::norm::lanes::{Kernel, Lanes, Race, sweep};
use crate::norm::workers::{Exec, Pieces};
use std::ops::Range;

/// Normalisation and ReLU before the pooling, per channel.
#[derive(Clone, Copy)]
pub(in crate::norm) struct NormRelu<'a> {
    pub(in crate::norm) scale: &'a [f32],
    pub(in crate::norm) shift: &'a [f32],
}

/// The outputs of a pooling pass, as a constant of the inner loops.
mod modes {
    /// Largest input and its position.
    pub(in crate::norm) const PLAIN: u8 = 0;
    /// Winning input, its position, and its normalised value.
    pub(in crate::norm) const TRAIN: u8 = 1;
    /// The normalised value alone.
    pub(in crate::norm) const EVAL: u8 = 2;
}

/// Pools `rows` output rows of `x` `[n, h, w, channels]` from `first_row` on.
struct PoolForward<'a, T> {
    shape: PoolShape,
    x: &'a [T],
    affine: Option<NormRelu<'a>>,
    first_row: usize,
    rows: usize,
    out: Pooled<'a, T>,
}

impl<T: Element> PoolForward<'_, T> {
    /// # Safety
    /// As [`Kernel::strip`]; `MODE` says which fields are there.
    #[inline(always)]
    unsafe fn row<L: Lanes, const N: usize, const MODE: u8>(&mut self, row: usize, channel: usize) {
        let PoolShape { h, w, channels, .. } = self.shape;
        let out_w = self.shape.out_w();
        let image = (self.first_row + row) / self.shape.out_h();
        let i = (self.first_row + row) % self.shape.out_h();
        // The centre row stands in for a row outside the image, under that row's code: the centre's own entries have
        // the same values, so the winner and its code do not change.
        let slots = [
            if i == 0 { 1 } else { 0 },
            1,
            if 2 * i + 1 < h { 2 } else { 1 },
        ];
        // SAFETY: slot 0 is used only with i > 0 and slot 2 only when the row exists, so all rows
        // lie inside the image, and so do the columns. Outputs and factors as `extent` checked.
        unsafe {
            let mut rows = [std::ptr::null(); 3];
            for (from, slot) in rows.iter_mut().zip(slots) {
                let input_row = image * h + 2 * i + slot - 1;
                *from = self.x.as_ptr().add(input_row * w * channels + channel);
            }
            let mut orders = [T::Race::<L>::order(std::ptr::null()); N];
            let (mut scale, mut shift) = ([L::splat(0.0); N], [L::splat(0.0); N]);
            if MODE != modes::PLAIN
                && let Some(affine) = self.affine
            {
                // The value is monotone in x, so the race can compare x itself.
                let factors = affine.scale.as_ptr().add(channel);
                for (k, order) in orders.iter_mut().enumerate() {
                    *order = T::Race::<L>::order(factors.add(k * L::WIDTH));
                }
                scale = T::load_channels(factors);
                shift = T::load_channels(affine.shift.as_ptr().add(channel));
            }
            // The left column of a window is the right one of the window before.
            let mut left = [[T::Race::<L>::floor(); 3]; N];
            for j in 0..out_w {
                let two_columns = 2 * j + 1 < w;
                for k in 0..N {
                    let centre = 2 * j * channels + k * L::WIDTH;
                    let mut race = T::Race::<L>::start(left[k][0], (slots[0] * 3 + 1) as u8);
                    for (slot, from) in rows.iter().enumerate() {
                        let code = (slots[slot] * 3 + 1) as u8;
                        if slot > 0 {
                            race = race.enter(left[k][slot], code);
                        }
                        let middle = keys::<T, L, MODE>(from.add(centre), orders[k]);
                        race = race.enter(middle, code + 1);
                        left[k][slot] = T::Race::<L>::floor();
                        if two_columns {
                            let right = from.add(centre + channels);
                            left[k][slot] = keys::<T, L, MODE>(right, orders[k]);
                            race = race.enter(left[k][slot], code + 2);
                        }
                    }
                    let at = (row * out_w + j) * channels + channel + k * L::WIDTH;
                    let mut y = std::ptr::null_mut();
                    if MODE != modes::PLAIN {
                        y = self.out.y.as_mut_ptr().add(at);
                    }
                    let winner = if MODE == modes::EVAL {
                        y
                    } else {
                        self.out.winner.as_mut_ptr().add(at)
                    };
                    race.store_winner(orders[k], winner);
                    if MODE != modes::PLAIN {
                        let x = T::load::<L>(winner);
                        T::store(x.mul_add(scale[k], shift[k]).relu(), y);
                    }
                    if MODE != modes::EVAL {
                        race.store_codes(y, self.out.codes.as_mut_ptr().add(at));
                    }
                }
            }
        }
    }
}

/// Keys of a race. With batch statistics one NaN spreads over its whole channel, so only the other modes need to look
/// for it.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn keys<T: Element, L: Lanes, const MODE: u8>(
    from: *const T,
    order: <T::Race<L> as Race<T>>::Order,
) -> <T::Race<L> as Race<T>>::Keys {
    // SAFETY: as promised by the caller.
    unsafe {
        if MODE == modes::TRAIN {
            T::Race::<L>::keys::<false>(from, order)
        } else {
            T::Race::<L>::keys::<true>(from, order)
        }
    }
}

impl<T: Element> Kernel for PoolForward<'_, T> {
    const TILE_ROWS: usize = 1;

    fn extent(&self) -> (usize, usize) {
        let (shape, channels) = (self.shape, self.shape.channels);
        let (inputs, elements) = (
            shape.n * shape.h * shape.w * channels,
            self.rows * shape.out_row(),
        );
        assert!(self.first_row + self.rows <= shape.n * shape.out_h());
        assert_eq!(self.x.len(), inputs);
        let out = &self.out;
        if let Some(NormRelu { scale, shift }) = self.affine {
            assert_eq!(out.y.len(), elements);
            assert!(scale.len() == channels && shift.len() == channels);
        }
        if self.affine.is_none() || !out.winner.is_empty() {
            assert!(out.winner.len() == elements && out.codes.len() == elements);
        }
        (self.rows, channels)
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        for row in rows {
            // SAFETY: as promised by the caller.
            unsafe {
                match (self.affine, self.out.winner.is_empty()) {
                    (None, _) => self.row::<L, N, { modes::PLAIN }>(row, channel),
                    (Some(_), false) => self.row::<L, N, { modes::TRAIN }>(row, channel),
                    (Some(_), true) => self.row::<L, N, { modes::EVAL }>(row, channel),
                }
            }
        }
    }
}

/// Buffers that a pooling forward pass writes, each `[n, ceil(h / 2), ceil(w / 2), channels]`.
pub(in crate::norm) struct Pooled<'a, T> {
    /// The largest input of each window (behind a normalisation: the one whose value is largest).
    /// Empty, as `codes`, when no backward pass will follow.
    pub(in crate::norm) winner: &'a mut [T],
    pub(in crate::norm) codes: &'a mut [u8],
    /// `relu(winner * scale + shift)`; empty without normalisation.
    pub(in crate::norm) y: &'a mut [T],
}

/// The pooling pass; buffers were checked by the caller.
pub(in crate::norm) fn forward<T: Element>(
    exec: Exec,
    shape: PoolShape,
    x: &[T],
    affine: Option<NormRelu<'_>>,
    out: Pooled<'_, T>,
) {
    let piece = TASK_ROWS * shape.out_row();
    let out_rows = shape.n * shape.out_h();
    let tasks = out_rows.div_ceil(TASK_ROWS);
    let Pooled { winner, codes, y } = out;
    let winner = Pieces::new(winner, piece);
    let codes = Pieces::new(codes, piece);
    let y = Pieces::new(y, piece);
    exec.for_each_again(tasks, x.len(), |task| {
        // SAFETY: one task per piece.
        let (winner, codes, y) = unsafe { (winner.get(task), codes.get(task), y.get(task)) };
        let first_row = task * TASK_ROWS;
        sweep(
            exec.isa,
            &mut PoolForward {
                shape,
                x,
                affine,
                first_row,
                rows: TASK_ROWS.min(out_rows - first_row),
                out: Pooled { winner, codes, y },
            },
        );
    });
}
