// Autograd nodes around the fused passes of fovea-kernels (fovea_norm.h). Called from src/ops.rs.
//
// Every entry point takes `at::Tensor*` (as tch's C_tensor), returns null or a malloc'ed message, and
// never throws. Activations are made channels-last here, so the kernels can trust their layout.

#include <torch/torch.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <cstring>
#include <string>

#include "fovea_norm.h"
#include "guarded.h"

extern "C" {
// Takes the gradient of the leaf with this number: a new at::Tensor, which the callee owns from now on. Must not
// unwind.
typedef void (*fovea_take_gradient)(void *state, int64_t index, at::Tensor *grad);
}

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void parallel_loop(int64_t tasks, fovea_task task, void *state) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(state, i);
  });
}

int32_t dtype_of(const Tensor &x) {
  if (x.scalar_type() == at::kFloat) return FOVEA_F32;
  if (x.scalar_type() == at::kBFloat16) return FOVEA_BF16;
  TORCH_CHECK(false, "fovea: expected f32 or bf16, got ", x.scalar_type());
}

void check(int32_t code, const char *what) {
  TORCH_CHECK(code == FOVEA_NORM_OK, what, ": ", fovea_norm_last_error());
}

Tensor channels_last(const Tensor &x) {
  TORCH_CHECK(x.dim() == 4 && x.device().is_cpu(), "fovea: expected a 4-d tensor on the CPU, got ", x.sizes());
  return x.contiguous(at::MemoryFormat::ChannelsLast);
}

const float *per_channel(const Tensor &t, int64_t channels, const char *what) {
  TORCH_CHECK(t.scalar_type() == at::kFloat && t.is_contiguous() && t.numel() == channels, "fovea: ", what,
              " must be ", channels, " contiguous floats");
  return t.const_data_ptr<float>();
}

int64_t rows_of(const Tensor &x) { return x.size(0) * x.size(2) * x.size(3); }

fovea_bn_forward forward_args(const Tensor &x, const Tensor &weight, const Tensor &bias, const Tensor &residual,
                              int activation, double eps, Tensor &out) {
  fovea_bn_forward a{};
  const int64_t c = x.size(1);
  a.size = sizeof a;
  a.dtype = dtype_of(x);
  a.activation = activation;
  a.rows = rows_of(x);
  a.channels = c;
  a.x = x.const_data_ptr();
  a.residual = residual.defined() ? residual.const_data_ptr() : nullptr;
  a.weight = per_channel(weight, c, "weight");
  a.bias = per_channel(bias, c, "bias");
  a.out = out.mutable_data_ptr();
  a.parallel_for = parallel_loop;
  a.threads = at::get_num_threads();
  a.eps = static_cast<float>(eps);
  return a;
}

Tensor same_layout(const Tensor &x, const Tensor &residual) {
  if (!residual.defined()) return residual;
  TORCH_CHECK(residual.sizes() == x.sizes() && residual.scalar_type() == x.scalar_type(),
              "fovea: residual ", residual.sizes(), " does not fit ", x.sizes());
  return channels_last(residual);
}

// activation(batch_norm(x) + residual?). With a residual there are two outputs, because two layers read the end of a block:
// backward then adds both gradients inside its own pass.
struct BatchNorm : public torch::autograd::Function<BatchNorm> {
  static variable_list forward(AutogradContext *ctx, const Tensor &input, const Tensor &weight, const Tensor &bias,
                               const std::optional<Tensor> &residual_in, Tensor mean, Tensor var, int64_t activation, double eps) {
    const Tensor x = channels_last(input);
    const Tensor residual = same_layout(x, residual_in.value_or(Tensor()));
    const int64_t c = x.size(1);
    Tensor y = at::empty_like(x);
    Tensor invstd = at::empty({c}, x.options().dtype(at::kFloat));
    fovea_bn_forward a = forward_args(x, weight, bias, residual, activation, eps, y);
    per_channel(mean, c, "mean");
    per_channel(var, c, "variance");
    a.mean = mean.mutable_data_ptr<float>();
    a.var_unbiased = var.mutable_data_ptr<float>();
    a.invstd = invstd.mutable_data_ptr<float>();
    check(fovea_bn_train_forward(&a), "batch_norm forward");
    // The next virtual shard overwrites the caller's buffer, so backward keeps a copy of the mean.
    const bool gate = activation == FOVEA_RELU && residual.defined();
    ctx->save_for_backward({x, weight, bias, mean.clone(), invstd, gate ? y : Tensor()});
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["residual"] = residual.defined();
    if (residual.defined()) return {y, y.detach()};
    return {y};
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &y = saved[5];
    const bool residual = ctx->saved_data["residual"].toBool();
    const int64_t c = x.size(1);
    Tensor dy = grads[0], second = grads.size() > 1 ? grads[1] : Tensor();
    if (!dy.defined()) std::swap(dy, second);
    TORCH_CHECK(dy.defined(), "fovea: batch_norm backward without a gradient");
    dy = channels_last(dy);
    if (second.defined()) second = channels_last(second);
    Tensor dx = at::empty_like(x);
    Tensor dresidual = residual ? at::empty_like(x) : Tensor();
    Tensor dweight = at::empty_like(weight), dbias = at::empty_like(bias);
    fovea_bn_backward a{};
    a.size = sizeof a;
    a.dtype = dtype_of(x);
    a.activation = ctx->saved_data["activation"].toInt();
    a.rows = rows_of(x);
    a.channels = c;
    a.x = x.const_data_ptr();
    a.y = y.defined() ? y.const_data_ptr() : nullptr;
    a.dy = dy.const_data_ptr();
    a.second_dy = second.defined() ? second.const_data_ptr() : nullptr;
    a.weight = weight.const_data_ptr<float>();
    a.bias = bias.const_data_ptr<float>();
    a.mean = saved[3].const_data_ptr<float>();
    a.invstd = saved[4].const_data_ptr<float>();
    a.dx = dx.mutable_data_ptr();
    a.dresidual = residual ? dresidual.mutable_data_ptr() : nullptr;
    a.dweight = dweight.mutable_data_ptr<float>();
    a.dbias = dbias.mutable_data_ptr<float>();
    a.parallel_for = parallel_loop;
    a.threads = at::get_num_threads();
    check(fovea_bn_train_backward(&a), "batch_norm backward");
    return {dx, dweight, dbias, dresidual, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

fovea_pool pool_args(const Tensor &x, const Tensor &weight, const Tensor &bias, double eps) {
  fovea_pool a{};
  const int64_t c = x.size(1);
  a.size = sizeof a;
  a.dtype = dtype_of(x);
  a.threads = at::get_num_threads();
  a.n = x.size(0);
  a.h = x.size(2);
  a.w = x.size(3);
  a.channels = c;
  a.x = x.const_data_ptr();
  a.weight = per_channel(weight, c, "weight");
  a.bias = per_channel(bias, c, "bias");
  a.parallel_for = parallel_loop;
  a.eps = static_cast<float>(eps);
  return a;
}

Tensor pooled_like(const Tensor &x, at::ScalarType dtype) {
  const int64_t h = (x.size(2) + 1) / 2, w = (x.size(3) + 1) / 2;
  return at::empty({x.size(0), x.size(1), h, w}, x.options().dtype(dtype), at::MemoryFormat::ChannelsLast);
}

// maxpool(relu(batch_norm(x))).
struct Stem : public torch::autograd::Function<Stem> {
  static Tensor forward(AutogradContext *ctx, const Tensor &input, const Tensor &weight, const Tensor &bias,
                        Tensor mean, Tensor var, double eps) {
    const Tensor x = channels_last(input);
    const int64_t c = x.size(1);
    Tensor y = pooled_like(x, x.scalar_type());
    Tensor winner = pooled_like(x, x.scalar_type());
    Tensor codes = pooled_like(x, at::kByte);
    Tensor invstd = at::empty({c}, x.options().dtype(at::kFloat));
    fovea_pool a = pool_args(x, weight, bias, eps);
    per_channel(mean, c, "mean");
    per_channel(var, c, "variance");
    a.y = y.mutable_data_ptr();
    a.winner = winner.mutable_data_ptr();
    a.codes = codes.mutable_data_ptr<uint8_t>();
    a.mean = mean.mutable_data_ptr<float>();
    a.var_unbiased = var.mutable_data_ptr<float>();
    a.invstd = invstd.mutable_data_ptr<float>();
    check(fovea_stem_train_forward(&a), "stem forward");
    ctx->save_for_backward({x, weight, bias, mean.clone(), invstd, winner, codes});
    ctx->saved_data["eps"] = eps;
    return y;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    Tensor mean = saved[3], invstd = saved[4], winner = saved[5], codes = saved[6];
    const Tensor dy = channels_last(grads[0]);
    Tensor dx = at::empty_like(x);
    Tensor dweight = at::empty_like(weight), dbias = at::empty_like(bias);
    fovea_pool a = pool_args(x, weight, bias, ctx->saved_data["eps"].toDouble());
    a.winner = winner.mutable_data_ptr();
    a.codes = codes.mutable_data_ptr<uint8_t>();
    a.mean = mean.mutable_data_ptr<float>();
    a.invstd = invstd.mutable_data_ptr<float>();
    a.dy = dy.const_data_ptr();
    a.dx = dx.mutable_data_ptr();
    a.dweight = dweight.mutable_data_ptr<float>();
    a.dbias = dbias.mutable_data_ptr<float>();
    check(fovea_stem_train_backward(&a), "stem backward");
    return {dx, dweight, dbias, Tensor(), Tensor(), Tensor()};
  }
};

Tensor *give(Tensor t) { return new Tensor(std::move(t)); }

// Where the gradients of a backward pass go, as soon as each is complete. The CPU part of a pass runs on the thread
// that started it, so passes on several threads have takers of their own. The GPU part runs on a thread of autograd's
// own, one per GPU, so only one such pass runs at a time.
struct Taker {
  fovea_take_gradient take;
  void *state;
};
thread_local const Taker *taker = nullptr;
std::atomic<const Taker *> gpu_taker{nullptr};

class Watching {
public:
  Watching(const Taker &t, bool on_gpu) : on_gpu_(on_gpu) {
    taker = &t;
    if (!on_gpu) return;
    const Taker *none = nullptr;
    if (!gpu_taker.compare_exchange_strong(none, &t)) {
      taker = nullptr;
      TORCH_CHECK(false, "fovea: two backward passes on GPUs at once");
    }
  }
  ~Watching() {
    taker = nullptr;
    if (on_gpu_) gpu_taker = nullptr;
  }

private:
  bool on_gpu_;
};

} // namespace

extern "C" {

// Makes backward hand the leaf's gradient to the taker of `fovea_op_backward`. Call it once per leaf.
char *fovea_op_watch(const Tensor *leaf, int64_t index) {
  return guarded([&] {
    leaf->register_hook([index](const Tensor &grad) {
      const Taker *here = taker ? taker : gpu_taker.load();
      if (here) here->take(here->state, index, give(grad));
    });
  });
}

// Backward from a scalar to watched leaves. It keeps no gradient: `take` owns those that it gets.
char *fovea_op_backward(const Tensor *root, const Tensor *const *leaves, int64_t count, fovea_take_gradient take,
                        void *state) {
  return guarded([&] {
    variable_list inputs;
    inputs.reserve(count);
    for (int64_t i = 0; i < count; ++i) inputs.push_back(*leaves[i]);
    const Taker here{take, state};
    const Watching watching(here, root->is_cuda());
    torch::autograd::grad({*root}, inputs, {}, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
  });
}

// Gives GPU `index` a new stream for all work of this thread and of the backward passes that it starts; returns its
// handle.
char *fovea_op_own_stream(int32_t index, void **handle) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    guard.setDevice(device);
    const c10::Stream stream = guard.getNewStream(device);
    guard.exchangeStream(stream);
    *handle = guard.getStreamNativeHandle(stream);
  });
}

// Makes f32 convolutions on GPUs run without TF32.
void fovea_op_no_tf32() { at::globalContext().setAllowTF32CuDNN(false); }

// Whether cuDNN measures which of its algorithms is fastest for a convolution of a size that it has not seen before.
void fovea_op_measure(int32_t on) { at::globalContext().setBenchmarkCuDNN(on != 0); }

void fovea_op_free_message(char *message) { free(message); }

char *fovea_op_batch_norm_train(const Tensor *x, const Tensor *weight, const Tensor *bias, const Tensor *residual,
                                const Tensor *mean, const Tensor *var, int activation, double eps, Tensor **out,
                                Tensor **second) {
  return guarded([&] {
    const std::optional<Tensor> added = residual ? std::optional<Tensor>(*residual) : std::nullopt;
    variable_list y = BatchNorm::apply(*x, *weight, *bias, added, *mean, *var, static_cast<int64_t>(activation), eps);
    *out = give(y[0]);
    *second = y.size() > 1 ? give(y[1]) : nullptr;
  });
}

char *fovea_op_batch_norm_eval(const Tensor *x, const Tensor *weight, const Tensor *bias, const Tensor *residual,
                               const Tensor *mean, const Tensor *var, int activation, double eps, Tensor **out,
                               Tensor **second) {
  return guarded([&] {
    const Tensor none;
    const Tensor input = channels_last(*x);
    const Tensor added = same_layout(input, residual ? *residual : none);
    Tensor y = at::empty_like(input);
    fovea_bn_forward a = forward_args(input, *weight, *bias, added, activation, eps, y);
    a.running_mean = per_channel(*mean, input.size(1), "running mean");
    a.running_var = per_channel(*var, input.size(1), "running variance");
    check(fovea_bn_eval_forward(&a), "batch_norm");
    *out = give(y);
    *second = added.defined() ? give(y) : nullptr;
  });
}

char *fovea_op_stem_train(const Tensor *x, const Tensor *weight, const Tensor *bias, const Tensor *mean,
                          const Tensor *var, double eps, Tensor **out) {
  return guarded([&] { *out = give(Stem::apply(*x, *weight, *bias, *mean, *var, eps)); });
}

char *fovea_op_stem_eval(const Tensor *x, const Tensor *weight, const Tensor *bias, const Tensor *mean,
                         const Tensor *var, double eps, Tensor **out) {
  return guarded([&] {
    const Tensor input = channels_last(*x);
    Tensor y = pooled_like(input, input.scalar_type());
    fovea_pool a = pool_args(input, *weight, *bias, eps);
    a.running_mean = per_channel(*mean, input.size(1), "running mean");
    a.running_var = per_channel(*var, input.size(1), "running variance");
    a.y = y.mutable_data_ptr();
    check(fovea_stem_eval_forward(&a), "stem");
    *out = give(y);
  });
}

} // extern "C"
