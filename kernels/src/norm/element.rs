//! The element types of activations.

use super::lanes::{Lanes, Race};
use half::bf16;

mod sealed {
    use super::{Lanes, Race};

    /// How kernels read and write an element type.
    ///
    /// # Safety
    /// Of every method: as for [`Lanes`].
    pub trait Access: Copy + Send + Sync + 'static {
        /// Whether elements have only the bits of bf16.
        const NARROW: bool;
        /// How this type finds maxima.
        type Race<L: Lanes>: Race<Self>;
        /// Reads `L::WIDTH` elements from `from` on, widened to f32.
        unsafe fn load<L: Lanes>(from: *const Self) -> L;
        /// Writes `L::WIDTH` elements, rounded to nearest even.
        unsafe fn store<L: Lanes>(value: L, to: *mut Self);
        /// Reads `N * L::WIDTH` per-channel f32 numbers, in the lane order that `load` gives.
        unsafe fn load_channels<L: Lanes, const N: usize>(from: *const f32) -> [L; N];
        /// Writes `L::WIDTH` per-channel f32 numbers from that order.
        unsafe fn store_channels<L: Lanes>(value: L, to: *mut f32);
        /// Reads the elements whose byte at `codes` is `code`, and 0 for the others.
        unsafe fn pick<L: Lanes>(from: *const Self, codes: *const u8, code: u8) -> L;
    }
}

/// Element type of an activation: `f32` or `half::bf16`.
pub trait Element: sealed::Access {}

impl Element for f32 {}
impl Element for bf16 {}

/// Implements [`sealed::Access`] for one element type by methods of [`Lanes`]. (The kernels use functions, not
/// closures: only a function can be made to inline, and outside a function with the instructions enabled a vector
/// operation is a call.)
macro_rules! access {
    ($element:ty, $narrow:literal, $race:ident, $load:ident, $store:ident, $channels:ident, $back:ident, $pick:ident) => {
        impl sealed::Access for $element {
            const NARROW: bool = $narrow;
            type Race<L: Lanes> = L::$race;
            #[inline(always)]
            unsafe fn load<L: Lanes>(from: *const Self) -> L {
                // SAFETY: as promised by the caller.
                unsafe { L::$load(from) }
            }
            #[inline(always)]
            unsafe fn store<L: Lanes>(value: L, to: *mut Self) {
                // SAFETY: as promised by the caller.
                unsafe { value.$store(to) }
            }
            #[inline(always)]
            unsafe fn load_channels<L: Lanes, const N: usize>(from: *const f32) -> [L; N] {
                // SAFETY: as promised by the caller.
                unsafe {
                    let mut vectors = [L::splat(0.0); N];
                    for (i, v) in vectors.iter_mut().enumerate() {
                        *v = L::$channels(from.add(i * L::WIDTH));
                    }
                    vectors
                }
            }
            #[inline(always)]
            unsafe fn store_channels<L: Lanes>(value: L, to: *mut f32) {
                // SAFETY: as promised by the caller.
                unsafe { value.$back(to) }
            }
            #[inline(always)]
            unsafe fn pick<L: Lanes>(from: *const Self, codes: *const u8, code: u8) -> L {
                // SAFETY: as promised by the caller.
                unsafe { L::$pick(from, codes, code) }
            }
        }
    };
}
access!(f32, false, Race, load, store, load, store, pick);
access!(
    bf16,
    true,
    RaceBf16,
    load_bf16,
    store_bf16,
    load_split,
    store_split,
    pick_bf16
);
