// Multi-label focal loss. Twin: mod.rs.
#include "sigmoid.cuh"

extern "C" __global__ void __launch_bounds__(256)
    fovea_focal_loss(const float *logits, const u64 *labels, u32 elements, u32 classes,
           const float *class_weights, float gamma, const float *scale, u32 loads, u32 wide,
           float *dlogits, double *partials) {
    __shared__ SigmoidShared shared;
    sigmoid_loss(logits, labels, elements, classes, class_weights, gamma, scale, loads, wide,
                 dlogits, partials, shared);
}
