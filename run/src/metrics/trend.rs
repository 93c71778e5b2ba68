//! The quadratic trend line through a metric's history.

/// `a + b t + c t^2` with `t = (x - centre) / scale`, fitted by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quadratic {
    centre: f64,
    scale: f64,
    /// Coefficients on 1, `t - shift_1`, and the second orthogonal polynomial.
    weights: [f64; 3],
    /// Recurrence constants of the orthogonal polynomials.
    shift: [f64; 2],
    ratio: f64,
}

impl Quadratic {
    /// Fits `points` of `(x, y)`. `None` with fewer than three different `x`, or values that are not
    /// finite: a parabola through two points would be an invention.
    ///
    /// Uses polynomials orthogonal over the given points (Forsythe 1957) instead of normal
    /// equations, so that epochs 1000..1010 fit as well as 0..10.
    #[must_use]
    pub fn fit(points: &[(f64, f64)]) -> Option<Self> {
        if points.iter().any(|p| !p.0.is_finite() || !p.1.is_finite()) {
            return None;
        }
        let mut xs: Vec<f64> = points.iter().map(|p| p.0).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        let (low, high) = (*xs.first()?, *xs.last()?);
        if xs.len() < 3 {
            return None;
        }
        let (centre, scale) = ((low + high) / 2.0, (high - low) / 2.0);
        let t: Vec<f64> = points.iter().map(|p| (p.0 - centre) / scale).collect();
        let count = points.len() as f64;

        let shift_1 = t.iter().sum::<f64>() / count;
        let p1: Vec<f64> = t.iter().map(|t| t - shift_1).collect();
        let norm_1: f64 = p1.iter().map(|p| p * p).sum();
        let shift_2 = t.iter().zip(&p1).map(|(t, p)| t * p * p).sum::<f64>() / norm_1;
        let ratio = norm_1 / count;
        let p2: Vec<f64> = t
            .iter()
            .zip(&p1)
            .map(|(t, p)| (t - shift_2) * p - ratio)
            .collect();
        let norm_2: f64 = p2.iter().map(|p| p * p).sum();
        let dot = |p: &[f64]| {
            p.iter()
                .zip(points)
                .map(|(p, point)| p * point.1)
                .sum::<f64>()
        };
        let weights = [
            points.iter().map(|p| p.1).sum::<f64>() / count,
            dot(&p1) / norm_1,
            dot(&p2) / norm_2,
        ];
        Some(Self {
            centre,
            scale,
            weights,
            shift: [shift_1, shift_2],
            ratio,
        })
    }

    /// The trend at `x`.
    #[must_use]
    pub fn at(&self, x: f64) -> f64 {
        let t = (x - self.centre) / self.scale;
        let p1 = t - self.shift[0];
        let p2 = (t - self.shift[1]) * p1 - self.ratio;
        self.weights[0] + self.weights[1] * p1 + self.weights[2] * p2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovers_a_parabola_far_from_the_origin() {
        let f = |x: f64| 3.0 - 0.5 * (x - 1000.0) + 0.25 * (x - 1000.0) * (x - 1000.0);
        let points: Vec<_> = (1000..1012)
            .map(|x| (f64::from(x), f(f64::from(x))))
            .collect();
        let fit = Quadratic::fit(&points).unwrap();
        for (x, y) in points {
            assert!((fit.at(x) - y).abs() < 1e-9, "{x}: {} {y}", fit.at(x));
        }
    }

    #[test]
    fn leaves_the_least_residual() {
        let points = [(1.0, 0.2), (2.0, 0.5), (3.0, 0.4), (4.0, 0.7), (7.0, 0.6)];
        let fit = Quadratic::fit(&points).unwrap();
        // At the optimum the residual is orthogonal to 1, x and x^2.
        for power in 0..3 {
            let dot: f64 = points
                .iter()
                .map(|p| (p.1 - fit.at(p.0)) * p.0.powi(power))
                .sum();
            assert!(dot.abs() < 1e-12, "{power}: {dot}");
        }
    }

    #[test]
    fn too_little_to_fit() {
        assert!(Quadratic::fit(&[]).is_none());
        assert!(Quadratic::fit(&[(1.0, 0.1), (2.0, 0.2), (2.0, 0.3)]).is_none());
        assert!(Quadratic::fit(&[(1.0, 0.1), (2.0, f64::NAN), (3.0, 0.3)]).is_none());
    }
}
