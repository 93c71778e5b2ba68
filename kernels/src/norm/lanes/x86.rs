//! [`Lanes`] with AVX-512 and AVX2: two registers each, because bf16 split into the even and the odd elements. The
//! trait describes each method and states the SAFETY of all: the caller vouches for the instructions and the pointers.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one contract for all of them, stated at the trait and in the module text"
)]

use super::Lanes;
use super::portable::Keys;
use half::bf16;
use std::arch::x86_64::*;

/// Applies an instruction to both registers.
macro_rules! both {
    ($instruction:ident($($operand:expr),+)) => {
        unsafe { Self([$instruction($($operand.0[0]),+), $instruction($($operand.0[1]),+)]) }
    };
}

/// 2 x 16 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512([__m512; 2]);

/// Places of the even elements among 32 f32.
const EVEN: [i32; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
/// Places that bring 16 even and 16 odd elements back to memory order, for the lower half.
const ZIP_LOW: [i32; 16] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
/// The same for 32 elements of 16 bits.
const ZIP_WORDS: [i16; 32] = [
    0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
    13, 29, 14, 30, 15, 31,
];

impl Avx512 {
    /// 32 bf16 in one register to split order.
    #[inline(always)]
    unsafe fn widen(packed: __m512i) -> Self {
        unsafe {
            let even = _mm512_slli_epi32::<16>(packed);
            let odd = _mm512_and_si512(packed, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            Self([_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)])
        }
    }
}

impl Lanes for Avx512 {
    const WIDTH: usize = 32;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self([_mm512_set1_ps(value); 2]) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self([_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))]) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm512_storeu_ps(to, self.0[0]);
            _mm512_storeu_ps(to.add(16), self.0[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_split(from: *const f32) -> Self {
        unsafe {
            let Self([low, high]) = Self::load(from);
            let even = _mm512_loadu_si512(EVEN.as_ptr().cast());
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            Self([
                _mm512_permutex2var_ps(low, even, high),
                _mm512_permutex2var_ps(low, odd, high),
            ])
        }
    }
    #[inline(always)]
    unsafe fn store_split(self, to: *mut f32) {
        unsafe {
            let low = _mm512_loadu_si512(ZIP_LOW.as_ptr().cast());
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            let [even, odd] = self.0;
            Self([
                _mm512_permutex2var_ps(even, low, odd),
                _mm512_permutex2var_ps(even, high, odd),
            ])
            .store(to);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe { Self::widen(_mm512_loadu_si512(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        unsafe {
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(self.0[1], self.0[0]));
            let order = _mm512_loadu_si512(ZIP_WORDS.as_ptr().cast());
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(order, rounded));
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        both!(_mm512_add_ps(self, other))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        both!(_mm512_sub_ps(self, other))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        both!(_mm512_mul_ps(self, other))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        both!(_mm512_div_ps(self, other))
    }
    #[inline(always)]
    unsafe fn clamp(self, low: Self, high: Self) -> Self {
        // Both instructions return their second operand when either is NaN.
        let raised = both!(_mm512_max_ps(low, self));
        both!(_mm512_min_ps(high, raised))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        unsafe {
            let one = _mm512_set1_epi32(127 << 23);
            let [first, second] = self.0;
            let first = _mm512_slli_epi32::<23>(_mm512_castps_si512(first));
            let second = _mm512_slli_epi32::<23>(_mm512_castps_si512(second));
            Self([
                _mm512_castsi512_ps(_mm512_add_epi32(first, one)),
                _mm512_castsi512_ps(_mm512_add_epi32(second, one)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        both!(_mm512_fmadd_ps(self, factor, addend))
    }
    #[inline(always)]
    unsafe fn truncate(self) -> Self {
        let kept = unsafe { Self::splat(f32::from_bits(0xffff_0000)) };
        both!(_mm512_and_ps(self, kept))
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // `max` returns its second operand when either is NaN.
        let zero = unsafe { Self::splat(0.0) };
        both!(_mm512_max_ps(zero, self))
    }
    #[inline(always)]
    unsafe fn gate(self, value: Self) -> Self {
        unsafe {
            let zero = _mm512_setzero_ps();
            let open0 = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(value.0[0], zero);
            let open1 = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(value.0[1], zero);
            Self([
                _mm512_maskz_mov_ps(open0, self.0[0]),
                _mm512_maskz_mov_ps(open1, self.0[1]),
            ])
        }
    }
    #[inline(always)]
    unsafe fn pick(from: *const f32, codes: *const u8, code: u8) -> Self {
        unsafe {
            let codes = _mm256_loadu_si256(codes.cast());
            let hit = _mm256_cmpeq_epi8_mask(codes, _mm256_set1_epi8(code.cast_signed()));
            Self([
                _mm512_maskz_loadu_ps(hit as u16, from),
                _mm512_maskz_loadu_ps((hit >> 16) as u16, from.add(16)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn pick_bf16(from: *const bf16, codes: *const u8, code: u8) -> Self {
        unsafe {
            let codes = _mm256_loadu_si256(codes.cast());
            let hit = _mm256_cmpeq_epi8_mask(codes, _mm256_set1_epi8(code.cast_signed()));
            Self::widen(_mm512_maskz_loadu_epi16(hit, from.cast()))
        }
    }
    type Race = Keys<i32, 32>;
    type RaceBf16 = Keys<i16, 32>;
}

/// 2 x 8 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2([__m256; 2]);

impl Avx2 {
    /// 16 bf16 in one register to split order.
    #[inline(always)]
    unsafe fn widen(packed: __m256i) -> Self {
        unsafe {
            let even = _mm256_slli_epi32::<16>(packed);
            let odd = _mm256_and_si256(packed, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            Self([_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)])
        }
    }

    /// 8 f32 rounded as `round_bf16` rounds them, in the upper halves; the lower ones hold any bits.
    #[inline(always)]
    unsafe fn round(value: __m256) -> __m256i {
        unsafe {
            let bits = _mm256_castps_si256(value);
            let lowest = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(lowest, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_add_epi32(bits, bias);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            let exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f80_0000));
            let tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
            let sign = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN));
            let result = _mm256_blendv_epi8(rounded, quiet, nan);
            _mm256_blendv_epi8(result, sign, tiny)
        }
    }

    /// All ones in the bytes of `codes` that are `code`, else 0.
    #[inline(always)]
    unsafe fn hits(codes: *const u8, code: u8) -> __m128i {
        unsafe {
            let codes = _mm_loadu_si128(codes.cast());
            _mm_cmpeq_epi8(codes, _mm_set1_epi8(code.cast_signed()))
        }
    }
}

impl Lanes for Avx2 {
    const WIDTH: usize = 16;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self([_mm256_set1_ps(value); 2]) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0[0]);
            _mm256_storeu_ps(to.add(8), self.0[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_split(from: *const f32) -> Self {
        unsafe {
            let Self([low, high]) = Self::load(from);
            // 0 2 8 10 | 4 6 12 14, and the middle two pairs exchanged.
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(low, high));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(low, high));
            Self([
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even)),
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn store_split(self, to: *mut f32) {
        unsafe {
            let [even, odd] = self.0;
            let first = _mm256_unpacklo_ps(even, odd);
            let second = _mm256_unpackhi_ps(even, odd);
            Self([
                _mm256_permute2f128_ps::<0x20>(first, second),
                _mm256_permute2f128_ps::<0x31>(first, second),
            ])
            .store(to);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe { Self::widen(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        unsafe {
            let even = _mm256_srli_epi32::<16>(Self::round(self.0[0]));
            let packed = _mm256_blend_epi16::<0b1010_1010>(even, Self::round(self.0[1]));
            _mm256_storeu_si256(to.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        both!(_mm256_add_ps(self, other))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        both!(_mm256_sub_ps(self, other))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        both!(_mm256_mul_ps(self, other))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        both!(_mm256_div_ps(self, other))
    }
    #[inline(always)]
    unsafe fn clamp(self, low: Self, high: Self) -> Self {
        // Both instructions return their second operand when either is NaN.
        let raised = both!(_mm256_max_ps(low, self));
        both!(_mm256_min_ps(high, raised))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        unsafe {
            let one = _mm256_set1_epi32(127 << 23);
            let [first, second] = self.0;
            let first = _mm256_slli_epi32::<23>(_mm256_castps_si256(first));
            let second = _mm256_slli_epi32::<23>(_mm256_castps_si256(second));
            Self([
                _mm256_castsi256_ps(_mm256_add_epi32(first, one)),
                _mm256_castsi256_ps(_mm256_add_epi32(second, one)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        both!(_mm256_fmadd_ps(self, factor, addend))
    }
    #[inline(always)]
    unsafe fn truncate(self) -> Self {
        let kept = unsafe { Self::splat(f32::from_bits(0xffff_0000)) };
        both!(_mm256_and_ps(self, kept))
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // `max` returns its second operand when either is NaN.
        let zero = unsafe { Self::splat(0.0) };
        both!(_mm256_max_ps(zero, self))
    }
    #[inline(always)]
    unsafe fn gate(self, value: Self) -> Self {
        let zero = unsafe { Self::splat(0.0) };
        let open = both!(open256(value, zero));
        both!(_mm256_and_ps(open, self))
    }
    #[inline(always)]
    unsafe fn pick(from: *const f32, codes: *const u8, code: u8) -> Self {
        let open = unsafe {
            let hits = Self::hits(codes, code);
            let low = _mm256_castsi256_ps(_mm256_cvtepi8_epi32(hits));
            let high = _mm256_castsi256_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(hits)));
            Self([low, high])
        };
        let values = unsafe { Self::load(from) };
        both!(_mm256_and_ps(open, values))
    }
    #[inline(always)]
    unsafe fn pick_bf16(from: *const bf16, codes: *const u8, code: u8) -> Self {
        unsafe {
            let open = _mm256_cvtepi8_epi16(Self::hits(codes, code));
            Self::widen(_mm256_and_si256(open, _mm256_loadu_si256(from.cast())))
        }
    }
    type Race = Keys<i32, 16>;
    type RaceBf16 = Keys<i16, 16>;
}

#[inline(always)]
unsafe fn open256(value: __m256, zero: __m256) -> __m256 {
    unsafe { _mm256_cmp_ps::<_CMP_NLE_UQ>(value, zero) }
}
