//! Summarises many measured times in a few numbers.

use serde::{Deserialize, Serialize};

/// The median, and the range that contains 80 % of the values; in the unit of the values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of the values are below it.
    pub median: f64,
    /// A tenth of the values is below it.
    pub p10: f64,
    /// A tenth of the values is above it.
    pub p90: f64,
}

impl Spread {
    /// Summarises these values, in any order; NaN without any.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            median: quantile(&sorted, 0.5),
            p10: quantile(&sorted, 0.1),
            p90: quantile(&sorted, 0.9),
        }
    }
}

/// The quantile `q`, interpolated linearly between its two neighbours, as numpy does by default; NaN without values.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = q * last as f64;
    let below = place.floor() as usize;
    let above = sorted[(below + 1).min(last)];
    sorted[below] + (above - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        // numpy.quantile([4, 1, 3, 2], [0.5, 0.1, 0.9])
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert!((spread.median - 2.5).abs() < 1e-12);
        assert!((spread.p10 - 1.3).abs() < 1e-12);
        assert!((spread.p90 - 3.7).abs() < 1e-12);
        assert_eq!(Spread::of(&[7.0]).p90, 7.0);
        assert!(Spread::of(&[]).median.is_nan());
    }
}
