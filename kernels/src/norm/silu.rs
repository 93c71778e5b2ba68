//! SiLU, `z * sigmoid(z)` (Elfwing, Uchibe and Doya 2018; also called swish), and its derivative, on [`Lanes`].
//!
//! Only correctly rounded operations, so all instruction sets give the same bits.

use super::lanes::Lanes;

/// `ln 2` in two parts: the first has few enough bits that its product with an integer below 2^9 is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Adding it to a number below 2^22 rounds that number to an integer, which stands in the last bits of the sum.
const ROUNDING: f32 = 12_582_912.0; // 1.5 * 2^23
/// Coefficients of `(exp(r) - 1 - r) / r^2` for `|r| <= ln 2 / 2`, highest first (Cephes, `expf`).
const SERIES: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];
/// Limit of the exponent, so that `2^n` is a normal number.
const LIMIT: f32 = 87.0;

/// `exp(x)` within two units of the last place; `x` is limited to +-87 and NaN stays NaN.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: as promised by the caller.
    unsafe {
        let x = x.clamp(L::splat(-LIMIT), L::splat(LIMIT));
        let rounding = L::splat(ROUNDING);
        let shifted = x.mul_add(L::splat(std::f32::consts::LOG2_E), rounding);
        let n = shifted.sub(rounding);
        let r = n.mul_add(L::splat(-LN_2_HIGH), x);
        let r = n.mul_add(L::splat(-LN_2_LOW), r);
        let mut series = L::splat(SERIES[0]);
        for coefficient in &SERIES[1..] {
            series = series.mul_add(r, L::splat(*coefficient));
        }
        let part = series.mul_add(r.mul(r), r).add(L::splat(1.0));
        part.mul(shifted.power_of_two())
    }
}

/// `1 / (1 + exp(-z))`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn sigmoid<L: Lanes>(z: L) -> L {
    // SAFETY: as promised by the caller.
    unsafe {
        let one = L::splat(1.0);
        one.div(one.add(exp(L::splat(0.0).sub(z))))
    }
}

/// `z * sigmoid(z)`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn silu<L: Lanes>(z: L) -> L {
    // SAFETY: as promised by the caller.
    unsafe { z.mul(sigmoid(z)) }
}

/// `gradient * d silu(z) / dz`, where the derivative is `s + z * s * (1 - s)` with `s = sigmoid(z)`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn silu_gradient<L: Lanes>(gradient: L, z: L) -> L {
    // SAFETY: as promised by the caller.
    unsafe {
        let s = sigmoid(z);
        let rest = L::splat(1.0).sub(s);
        gradient.mul(z.mul(s).mul_add(rest, s))
    }
}
