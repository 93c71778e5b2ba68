//! Vectors of f32 lanes and the driver that walks a kernel over rows and channels.
//!
//! A kernel is written once, against [`Lanes`], and compiled for AVX-512, AVX2 and portable Rust.
//! Every operation is correctly rounded (the multiply-add is fused everywhere) and lanes never mix,
//! so all three give the same bits.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::bf16;
use portable::Array;
use std::ops::Range;

/// The implementation of [`Lanes`] that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// AVX512F, BW, DQ, VL and AVX512-BF16; two registers of 16 lanes.
    Avx512,
    /// AVX2 with FMA; two registers of 8 lanes.
    Avx2,
    /// Plain Rust without special instructions, on any processor.
    Portable,
}

impl Isa {
    /// The fastest implementation that this processor can run.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bf16")
            {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// All implementations that this processor can run, for tests that compare them.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        match Self::detect() {
            Self::Avx512 => vec![Self::Avx512, Self::Avx2, Self::Portable],
            Self::Avx2 => vec![Self::Avx2, Self::Portable],
            Self::Portable => vec![Self::Portable],
        }
    }
}

/// A vector of f32 lanes.
///
/// Two bf16 share a 32-bit word, and separating the low from the high halves of many words costs less than widening
/// them in memory order. So vectors that come from bf16 have their lanes in *split order*, which each type defines;
/// per-channel numbers that meet them are read and written with `load_split` and `store_split`. Vectors that come from
/// f32 are in memory order.
///
/// # Safety
/// Every method may use instructions of the [`Isa`] that the type stands for: the processor must have them. Pointers
/// must be valid for `WIDTH` elements, of any alignment.
pub trait Lanes: Copy {
    /// Number of f32 lanes in the vector.
    const WIDTH: usize;
    /// A vector whose lanes are all `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Reads `WIDTH` f32 in memory order.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes `WIDTH` f32 in memory order.
    unsafe fn store(self, to: *mut f32);
    /// Reads `WIDTH` f32 into split order.
    unsafe fn load_split(from: *const f32) -> Self;
    /// Writes `WIDTH` f32 from split order.
    unsafe fn store_split(self, to: *mut f32);
    /// Reads `WIDTH` bf16 into split order, exact.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// Writes `WIDTH` bf16 from split order, rounded to nearest even; f32 subnormals become zero, as with AVX512-BF16.
    unsafe fn store_bf16(self, to: *mut bf16);
    /// The sum `self + other`, lane by lane.
    unsafe fn add(self, other: Self) -> Self;
    /// The difference `self - other`, lane by lane.
    unsafe fn sub(self, other: Self) -> Self;
    /// The product `self * other`, lane by lane.
    unsafe fn mul(self, other: Self) -> Self;
    /// The quotient `self / other`, lane by lane.
    unsafe fn div(self, other: Self) -> Self;
    /// `self` limited to `low ..= high`: NaN stays NaN.
    unsafe fn clamp(self, low: Self, high: Self) -> Self;
    /// `2^n` for lanes that hold `1.5 * 2^23 + n`, the sum whose last bits are the integer n, `-126 <= n <= 127`.
    unsafe fn power_of_two(self) -> Self;
    /// `self * factor + addend` with one rounding.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// Clears the bits that bf16 does not have.
    unsafe fn truncate(self) -> Self;
    /// `0 > self ? 0 : self`: NaN stays NaN.
    unsafe fn relu(self) -> Self;
    /// `self` where `value` is not `<= 0` (so also where it is NaN), 0 elsewhere.
    unsafe fn gate(self, value: Self) -> Self;
    /// Reads the f32 whose byte at `codes` is `code`, and 0 for the others.
    unsafe fn pick(from: *const f32, codes: *const u8, code: u8) -> Self;
    /// Reads the bf16 whose byte at `codes` is `code`, and 0 for the others, into split order.
    unsafe fn pick_bf16(from: *const bf16, codes: *const u8, code: u8) -> Self;
    /// How this type finds maxima of f32.
    type Race: Race<f32>;
    /// How this type finds maxima of bf16.
    type RaceBf16: Race<bf16>;
}

/// The running maximum of as many elements as a vector has lanes, with the position of each.
///
/// Elements are compared as integers in the order of IEEE 754's totalOrder, except that any NaN is
/// above all numbers; the first of equals is kept.
///
/// # Safety
/// As for [`Lanes`].
pub trait Race<T>: Copy {
    /// Elements as integers that compare as the elements do.
    type Keys: Copy;
    /// Which lanes are ordered the other way round.
    type Order: Copy;
    /// Reverses the order in lanes whose factor at `scale` is negative; with null, in none.
    unsafe fn order(scale: *const f32) -> Self::Order;
    /// Keys below those of all elements.
    unsafe fn floor() -> Self::Keys;
    /// Reads elements. Without `NAN`, NaN may fall anywhere in the order.
    unsafe fn keys<const NAN: bool>(from: *const T, order: Self::Order) -> Self::Keys;
    /// The race after its first elements, which all have the position `code`.
    unsafe fn start(keys: Self::Keys, code: u8) -> Self;
    /// Enters more elements: where one is greater, it and its code replace the old ones.
    unsafe fn enter(self, keys: Self::Keys, code: u8) -> Self;
    /// Writes the greatest element of each lane to `to`.
    unsafe fn store_winner(self, order: Self::Order, to: *mut T);
    /// Writes the winners' codes; 0 where `y` is not null and its element is zero.
    unsafe fn store_codes(self, y: *const T, to: *mut u8);
}

/// The work of a kernel on one strip of channels. [`sweep`] calls it for tiles of rows and strips of channels, in
/// order, until all are covered; the last channels come one by one.
pub(crate) trait Kernel {
    /// Rows per tile: `usize::MAX` for a kernel that sums over rows.
    const TILE_ROWS: usize;
    /// The (rows, channels) to cover.
    fn extent(&self) -> (usize, usize);
    /// Handles `rows` of the channels `channel .. channel + N * L::WIDTH`.
    ///
    /// # Safety
    /// As for [`Lanes`]; the rows and channels lie inside [`Kernel::extent`].
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize);
}

/// Runs `kernel` over its extent with the instructions of `isa`.
pub(crate) fn sweep<K: Kernel>(isa: Isa, kernel: &mut K) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: outside tests, only `Isa::detect` returns this value, and it found the instructions.
        Isa::Avx512 => unsafe { sweep_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { sweep_avx2(kernel) },
        // SAFETY: plain Rust needs no special instructions.
        _ => unsafe { sweep_generic::<Array<8>, K>(kernel) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn sweep_avx512<K: Kernel>(kernel: &mut K) {
    // SAFETY: the features are enabled here and promised by the caller.
    unsafe { sweep_generic::<x86::Avx512, K>(kernel) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn sweep_avx2<K: Kernel>(kernel: &mut K) {
    // SAFETY: the features are enabled here and promised by the caller.
    unsafe { sweep_generic::<x86::Avx2, K>(kernel) }
}

/// # Safety
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn sweep_generic<L: Lanes, K: Kernel>(kernel: &mut K) {
    let (rows, channels) = kernel.extent();
    let mut start = 0;
    while start < rows {
        let end = start.saturating_add(K::TILE_ROWS).min(rows);
        let mut channel = 0;
        // SAFETY: the loops stay inside the extent; instructions as promised by the caller.
        unsafe {
            while channel + 2 * L::WIDTH <= channels {
                kernel.strip::<L, 2>(start..end, channel);
                channel += 2 * L::WIDTH;
            }
            while channel + 8 <= channels {
                kernel.strip::<Array<8>, 1>(start..end, channel);
                channel += 8;
            }
            while channel < channels {
                kernel.strip::<Array<1>, 1>(start..end, channel);
                channel += 1;
            }
        }
        start = end;
    }
}
