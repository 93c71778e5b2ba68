//! exp and logarithms in f64, as the losses need them. They consist of additions, multiplications and divisions only, so they
//! vectorise and give the same bits on every machine, which libm does not guarantee.

/// exp(x) for x <= 0; below -700 it is exp(-700), about 1e-304. NaN stays NaN.
///
/// x = k ln 2 + r with |r| <= ln(2) / 2, then the Taylor series of exp(r), whose first dropped term
/// is below 5e-18 of the result, then 2^k in the exponent bits.
#[inline(always)]
pub(in crate::loss) fn exp_nonpositive(x: f64) -> f64 {
    /// ln 2 in two parts. The first has 33 bits, so k times it is exact.
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// 1.5 * 2^52: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// 1/k! from k = 13 down to 0.
    const TAYLOR: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    // f64::max would turn NaN into the limit.
    let x = if x < -700.0 { -700.0 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    let mut series = TAYLOR[0];
    for coefficient in &TAYLOR[1..] {
        series = series * r + coefficient;
    }
    // The low 11 bits of `shifted` are k in two's complement.
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    series * power
}

/// ln(1 + e) for e in [0, 1]. NaN stays NaN.
///
/// 2 atanh(f) with f = e / (2 + e) <= 1/3; the first dropped term is below 1e-17 of the result.
#[inline(always)]
pub(in crate::loss) fn log1p_unit(e: f64) -> f64 {
    /// 1 / (2 k + 1) from k = 15 down to 0.
    const ATANH: [f64; 16] = [
        1.0 / 31.0,
        1.0 / 29.0,
        1.0 / 27.0,
        1.0 / 25.0,
        1.0 / 23.0,
        1.0 / 21.0,
        1.0 / 19.0,
        1.0 / 17.0,
        1.0 / 15.0,
        1.0 / 13.0,
        1.0 / 11.0,
        1.0 / 9.0,
        1.0 / 7.0,
        1.0 / 5.0,
        1.0 / 3.0,
        1.0,
    ];
    let f = e / (2.0 + e);
    let square = f * f;
    let mut series = ATANH[0];
    for coefficient in &ATANH[1..] {
        series = series * square + coefficient;
    }
    2.0 * f * series
}

/// ln(x) for a normal x of at least 1. NaN stays NaN.
///
/// x = m 2^k with m in [1, 2), so ln x = k ln 2 + ln m.
#[inline(always)]
pub(in crate::loss) fn log_from_one(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    let k = (bits >> 52) as f64 - 1023.0;
    let m = f64::from_bits(bits & MANTISSA | 1023 << 52);
    k * std::f64::consts::LN_2 + log1p_unit(m - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_libm() {
        for i in 0..=700_000 {
            let x = -f64::from(i) / 1000.0;
            let (got, want) = (exp_nonpositive(x), x.exp());
            assert!(
                (got / want - 1.0).abs() < 5e-16,
                "exp({x}): {got:e} {want:e}"
            );
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(f64::NEG_INFINITY), exp_nonpositive(-700.0));
        assert!(exp_nonpositive(f64::NAN).is_nan());
    }

    #[test]
    fn log1p_is_within_two_ulp_of_libm() {
        for i in 0..=100_000 {
            let e = (f64::from(i) / 100_000.0).powi(3);
            let (got, want) = (log1p_unit(e), e.ln_1p());
            assert!(
                (got - want).abs() <= 5e-16 * want,
                "log1p({e}): {got:e} {want:e}"
            );
        }
        assert_eq!(log1p_unit(1e-300), 1e-300);
        assert!(log1p_unit(f64::NAN).is_nan());
    }

    #[test]
    fn log_is_within_two_ulp_of_libm() {
        for i in 0..=100_000 {
            let x = 1.0 + f64::from(i) / 1000.0;
            let (got, want) = (log_from_one(x), x.ln());
            assert!(
                (got - want).abs() <= 5e-16 * want,
                "ln({x}): {got:e} {want:e}"
            );
        }
        assert!(log_from_one(f64::NAN).is_nan());
    }
}
