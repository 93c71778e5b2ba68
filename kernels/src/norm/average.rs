//! Global average pooling: the mean over the pixels of each image and channel.

use super::Element;
use super::lanes::{Kernel, Lanes, sweep};
use super::workers::{Exec, Pieces};
use crate::error::{Error, Result, check_len, checked_elements};
use std::ops::Range;

/// The mean over the pixels of one image.
struct Mean<'a, T> {
    /// The image's activation, `[pixels, channels]`.
    x: &'a [T],
    /// The means, `[channels]`; written.
    y: &'a mut [T],
}

impl<T: Element> Kernel for Mean<'_, T> {
    const TILE_ROWS: usize = usize::MAX;

    fn extent(&self) -> (usize, usize) {
        (self.x.len() / self.y.len(), self.y.len())
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        let channels = self.y.len();
        // SAFETY: inside the extent, so inside both buffers.
        unsafe {
            let share = L::splat(1.0 / rows.len() as f32);
            let mut sum = [L::splat(0.0); N];
            for r in rows {
                let row = self.x.as_ptr().add(r * channels + channel);
                for (k, sum) in sum.iter_mut().enumerate() {
                    *sum = sum.add(T::load::<L>(row.add(k * L::WIDTH)));
                }
            }
            for (k, sum) in sum.iter().enumerate() {
                let to = self.y.as_mut_ptr().add(channel + k * L::WIDTH);
                T::store(sum.mul(share), to);
            }
        }
    }
}

/// The gradient for one image: the same share for every pixel.
struct GradientSpread<'a, T> {
    /// Gradient of the means, `[channels]`.
    dy: &'a [T],
    /// Gradient of the activation, `[pixels, channels]`; written.
    dx: &'a mut [T],
}

impl<T: Element> Kernel for GradientSpread<'_, T> {
    const TILE_ROWS: usize = usize::MAX;

    fn extent(&self) -> (usize, usize) {
        (self.dx.len() / self.dy.len(), self.dy.len())
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        let channels = self.dy.len();
        // SAFETY: inside the extent, so inside both buffers.
        unsafe {
            let share = L::splat(1.0 / rows.len() as f32);
            for k in 0..N {
                let at = channel + k * L::WIDTH;
                let g = T::load::<L>(self.dy.as_ptr().add(at)).mul(share);
                for r in rows.clone() {
                    T::store(g, self.dx.as_mut_ptr().add(r * channels + at));
                }
            }
        }
    }
}

fn check(
    (n, pixels, channels): (usize, usize, usize),
    (full, full_len): (&'static str, usize),
    (small, small_len): (&'static str, usize),
) -> Result<()> {
    if pixels == 0 {
        return Err(Error::Argument {
            what: "pixels",
            limit: "1 or more",
            actual: "0".into(),
            help: "an image without pixels has no mean; check the size of the input images",
        });
    }
    let elements = checked_elements(full, &[n, pixels, channels])?;
    check_len(full, "[n, pixels, channels]", full_len, elements)?;
    check_len(
        small,
        "[n, channels]",
        small_len,
        checked_elements(small, &[n, channels])?,
    )
}

/// `y` `[n, channels]` = mean of `x` `[n, pixels, channels]` over the pixels, summed in f32 in pixel
/// order.
///
/// # Errors
/// When a buffer does not have its shape's length, or `pixels` is 0.
pub fn avgpool_forward<T: Element>(
    n: usize,
    pixels: usize,
    channels: usize,
    x: &[T],
    y: &mut [T],
) -> Result<()> {
    forward(Exec::current(), (n, pixels, channels), x, y)
}

pub(super) fn forward<T: Element>(
    exec: Exec,
    shape: (usize, usize, usize),
    x: &[T],
    y: &mut [T],
) -> Result<()> {
    check(shape, ("x", x.len()), ("y", y.len()))?;
    let (n, pixels, channels) = shape;
    if x.is_empty() {
        return Ok(());
    }
    let pieces = Pieces::new(y, channels);
    exec.for_each(n, x.len(), |image| {
        let x = &x[image * pixels * channels..(image + 1) * pixels * channels];
        // SAFETY: one task per image.
        let y = unsafe { pieces.get(image) };
        sweep(exec.isa, &mut Mean { x, y });
    });
    Ok(())
}

/// Gradient of [`avgpool_forward`]: `dx` `[n, pixels, channels]` = `dy / pixels`.
///
/// # Errors
/// When a buffer does not have its shape's length, or `pixels` is 0.
pub fn avgpool_backward<T: Element>(
    n: usize,
    pixels: usize,
    channels: usize,
    dy: &[T],
    dx: &mut [T],
) -> Result<()> {
    backward(Exec::current(), (n, pixels, channels), dy, dx)
}

pub(super) fn backward<T: Element>(
    exec: Exec,
    shape: (usize, usize, usize),
    dy: &[T],
    dx: &mut [T],
) -> Result<()> {
    check(shape, ("dx", dx.len()), ("dy", dy.len()))?;
    let (n, pixels, channels) = shape;
    if dx.is_empty() {
        return Ok(());
    }
    let elements = dx.len();
    let pieces = Pieces::new(dx, pixels * channels);
    exec.for_each(n, elements, |image| {
        let dy = &dy[image * channels..(image + 1) * channels];
        // SAFETY: one task per image.
        let dx = unsafe { pieces.get(image) };
        sweep(exec.isa, &mut GradientSpread { dy, dx });
    });
    Ok(())
}
