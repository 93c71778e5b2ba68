//! Whether a step may be taken, from its loss and gradient norm.

use bytemuck::{Pod, Zeroable};

/// What [`gate`] decided.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Gate {
    /// 1: the optimizer may move. 0: loss or gradient is not finite.
    pub go: u32,
    /// Factor on every gradient; NaN may be here where `go` is 0.
    pub grad_scale: f32,
}

/// What a gradient of this `norm` is scaled by so that its norm is at most `clip_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does: `min(1, clip_norm / (norm + 1e-6))`; 1 without a limit (0).
#[must_use]
pub fn clip_scale(norm: f64, clip_norm: f64) -> f64 {
    if clip_norm > 0.0 {
        (clip_norm / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    }
}

/// Lets a step pass whose `loss` and gradient (by its `sum_squares`, see [`super::sum_squares`]) are
/// finite. The gradient is scaled by `base`, and with `clip_norm` above 0 such that its norm is at most
/// that (see [`clip_scale`]).
#[must_use]
pub fn gate(sum_squares: f64, loss: f64, base: f64, clip_norm: f64) -> Gate {
    let clip = clip_scale(sum_squares.sqrt() * base.abs(), clip_norm);
    Gate {
        go: u32::from(sum_squares.is_finite() && loss.is_finite()),
        grad_scale: (base * clip) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_gradients_are_scaled_to_the_limit_and_small_ones_left() {
        let scale = |squares, base, clip| gate(squares, 0.0, base, clip).grad_scale;
        assert_eq!(scale(16.0, 1.0, 0.0), 1.0);
        assert_eq!(scale(16.0, 0.5, 0.0), 0.5);
        assert_eq!(scale(16.0, 1.0, 5.0), 1.0);
        assert!((scale(16.0, 1.0, 2.0) - 0.5).abs() < 1e-6);
        // The norm of the scaled gradient is 2: halved once more.
        assert!((scale(16.0, 0.5, 1.0) - 0.25).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_finite_does_not_pass() {
        for bad in [f64::NAN, f64::INFINITY] {
            assert_eq!(gate(bad, 0.0, 1.0, 1.0).go, 0);
            assert_eq!(gate(1.0, bad, 1.0, 1.0).go, 0);
        }
        assert_eq!(gate(1.0, -3.0, 1.0, 1.0).go, 1);
    }
}
