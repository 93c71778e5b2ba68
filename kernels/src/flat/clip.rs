//! Gradient clipping by norm.

/// The factor that scales a gradient of this `norm` to a norm of at most `clip_norm`, as
/// `torch.nn.utils.clip_grad_norm_` computes it: `min(1, clip_norm / (norm + 1e-6))`; 1 without a limit (0).
#[must_use]
pub fn clip_scale(norm: f64, clip_norm: f64) -> f64 {
    if clip_norm > 0.0 {
        (clip_norm / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_gradients_are_scaled_to_the_limit_and_small_ones_left() {
        assert_eq!(clip_scale(4.0, 0.0), 1.0);
        assert_eq!(clip_scale(4.0, 5.0), 1.0);
        assert!((clip_scale(4.0, 2.0) - 0.5).abs() < 1e-6);
    }
}
