//! [`Lanes`] in plain Rust: the fallback, and for every kernel the last channels.

use super::{Lanes, Race};
use half::bf16;

/// `W` lanes; split order is memory order.
#[derive(Clone, Copy)]
pub(crate) struct Array<const W: usize>([f32; W]);

impl<const W: usize> Array<W> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut result = self;
        for (a, b) in result.0.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        result
    }
}

/// Rounds f32 to bf16 exactly as `vcvtneps2bf16` does: to nearest even; subnormal inputs become zero, NaN stays a
/// (quiet) NaN.
#[inline(always)]
pub(super) fn round_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = if value.is_nan() {
        (bits >> 16) | 0x40
    } else if bits & 0x7f80_0000 == 0 {
        (bits >> 16) & 0x8000
    } else {
        (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
    };
    bf16::from_bits(rounded as u16)
}

impl<const W: usize> Lanes for Array<W> {
    const WIDTH: usize = W;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; W])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: valid for W elements; an array of f32 has their layout.
        Self(unsafe { from.cast::<[f32; W]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: valid for W elements.
        unsafe { to.cast::<[f32; W]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_split(from: *const f32) -> Self {
        // SAFETY: as promised by the caller.
        unsafe { Self::load(from) }
    }
    #[inline(always)]
    unsafe fn store_split(self, to: *mut f32) {
        // SAFETY: as promised by the caller.
        unsafe { self.store(to) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: valid for W elements; bf16 is a transparent u16.
        let bits = unsafe { from.cast::<[u16; W]>().read_unaligned() };
        Self(bits.map(|b| f32::from_bits(u32::from(b) << 16)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: valid for W elements; bf16 is a transparent u16.
        unsafe {
            to.cast::<[bf16; W]>()
                .write_unaligned(self.0.map(round_bf16))
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn clamp(self, low: Self, high: Self) -> Self {
        self.zip(low, |v, low| if low > v { low } else { v })
            .zip(high, |v, high| if high < v { high } else { v })
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Self(
            self.0
                .map(|v| f32::from_bits((v.to_bits() << 23).wrapping_add(127 << 23))),
        )
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        let mut result = addend;
        for i in 0..W {
            result.0[i] = self.0[i].mul_add(factor.0[i], addend.0[i]);
        }
        result
    }
    #[inline(always)]
    unsafe fn truncate(self) -> Self {
        Self(self.0.map(|v| f32::from_bits(v.to_bits() & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        Self(self.0.map(|v| if 0.0 > v { 0.0 } else { v }))
    }
    #[inline(always)]
    unsafe fn gate(self, value: Self) -> Self {
        self.zip(value, |g, v| if v <= 0.0 { 0.0 } else { g })
    }
    #[inline(always)]
    unsafe fn pick(from: *const f32, codes: *const u8, code: u8) -> Self {
        // SAFETY: valid for W elements.
        let (mut values, codes) = unsafe { (Self::load(from), bytes::<W>(codes)) };
        for (value, c) in values.0.iter_mut().zip(codes) {
            *value = if c == code { *value } else { 0.0 };
        }
        values
    }
    #[inline(always)]
    unsafe fn pick_bf16(from: *const bf16, codes: *const u8, code: u8) -> Self {
        // SAFETY: valid for W elements.
        let (mut values, codes) = unsafe { (Self::load_bf16(from), bytes::<W>(codes)) };
        for (value, c) in values.0.iter_mut().zip(codes) {
            *value = if c == code { *value } else { 0.0 };
        }
        values
    }
    type Race = Keys<i32, W>;
    type RaceBf16 = Keys<i16, W>;
}

/// # Safety
/// `from` is valid for `W` bytes.
#[inline(always)]
unsafe fn bytes<const W: usize>(from: *const u8) -> [u8; W] {
    // SAFETY: as stated.
    unsafe { from.cast::<[u8; W]>().read_unaligned() }
}

/// [`Race`] on integers `K` that compare as the elements do.
#[derive(Clone, Copy)]
pub(crate) struct Keys<K, const W: usize> {
    keys: [K; W],
    codes: [u8; W],
}

/// The race of one element type; `$int` has its width, `$infinity` the bits of its infinity.
macro_rules! keys {
    ($element:ty, $int:ty, $infinity:literal) => {
        impl<const W: usize> Race<$element> for Keys<$int, W> {
            type Keys = [$int; W];
            /// All ones where reversed, else zero.
            type Order = [$int; W];
            #[inline(always)]
            unsafe fn order(scale: *const f32) -> [$int; W] {
                let mut order = [0; W];
                if !scale.is_null() {
                    // SAFETY: not null, so valid for W elements.
                    let scale = unsafe { scale.cast::<[f32; W]>().read_unaligned() };
                    for (order, scale) in order.iter_mut().zip(scale) {
                        *order = if scale < 0.0 { -1 } else { 0 };
                    }
                }
                order
            }
            #[inline(always)]
            unsafe fn floor() -> [$int; W] {
                [<$int>::MIN; W]
            }
            #[inline(always)]
            unsafe fn keys<const NAN: bool>(from: *const $element, order: [$int; W]) -> [$int; W] {
                // SAFETY: valid for W elements; same size.
                let mut keys = unsafe { from.cast::<[$int; W]>().read_unaligned() };
                for (key, order) in keys.iter_mut().zip(order) {
                    let nan = NAN && *key & <$int>::MAX > $infinity;
                    *key ^= ((*key >> (<$int>::BITS - 1)) & <$int>::MAX) ^ order;
                    *key = if nan { <$int>::MAX } else { *key };
                }
                keys
            }
            #[inline(always)]
            unsafe fn start(keys: [$int; W], code: u8) -> Self {
                let codes = [code; W];
                Self { keys, codes }
            }
            #[inline(always)]
            unsafe fn enter(mut self, keys: [$int; W], code: u8) -> Self {
                for i in 0..W {
                    self.codes[i] = if keys[i] > self.keys[i] {
                        code
                    } else {
                        self.codes[i]
                    };
                    self.keys[i] = self.keys[i].max(keys[i]);
                }
                self
            }
            #[inline(always)]
            unsafe fn store_winner(self, order: [$int; W], to: *mut $element) {
                let mut bits = self.keys;
                for (key, order) in bits.iter_mut().zip(order) {
                    *key ^= order;
                    *key ^= (*key >> (<$int>::BITS - 1)) & <$int>::MAX;
                }
                // SAFETY: valid for W elements; same size.
                unsafe { to.cast::<[$int; W]>().write_unaligned(bits) }
            }
            #[inline(always)]
            unsafe fn store_codes(self, y: *const $element, to: *mut u8) {
                let mut codes = self.codes;
                if !y.is_null() {
                    // SAFETY: not null, so valid for W elements; same size.
                    let y = unsafe { y.cast::<[$int; W]>().read_unaligned() };
                    for (code, y) in codes.iter_mut().zip(y) {
                        *code = if y & <$int>::MAX == 0 { 0 } else { *code };
                    }
                }
                // SAFETY: valid for W bytes.
                unsafe { to.cast::<[u8; W]>().write_unaligned(codes) }
            }
        }
    };
}
keys!(f32, i32, 0x7f80_0000);
keys!(bf16, i16, 0x7f80);
