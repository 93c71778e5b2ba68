// Binary cross-entropy. Twin: mod.rs.
#include "sigmoid.cuh"

// The exponent is a constant 0, so the compiler leaves out the powers of the focal loss.
extern "C" __global__ void __launch_bounds__(256)
    fovea_bce_loss(const float *logits, const u64 *labels, u32 elements, u32 classes,
                   const float *class_weights, float, const float *scale, u32 loads, u32 wide,
                   float *dlogits, double *partials) {
    __shared__ SigmoidShared shared;
    sigmoid_loss(logits, labels, elements, classes, class_weights, 0.0f, scale, loads, wide,
                 dlogits, partials, shared);
}
