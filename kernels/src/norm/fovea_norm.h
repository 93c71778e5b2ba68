/* Fused passes around the convolutions of a network (fovea-kernels, module norm).
 *
 * Activations are channels-last: an [N, C, H, W] tensor in torch's channels_last memory format is
 * [rows, channels] here with rows = N * H * W. "full" below means rows * channels elements of `dtype`,
 * "small" means n * ceil(h/2) * ceil(w/2) * channels. Per-channel buffers are `channels` floats.
 * A pointer that a call does not name may be null. Outputs must overlap nothing else.
 *
 * Fill a zeroed structure, set `size` to its sizeof, pass its address:
 *
 *     fovea_bn_forward args{};
 *     args.size = sizeof args;
 *     ...
 *     if (fovea_bn_train_forward(&args) != FOVEA_NORM_OK) throw ...(fovea_norm_last_error());
 *
 * Every call returns one of the codes below and never unwinds. The bits of all results depend neither
 * on `threads` nor on `parallel_for` nor on the processor.
 */
#ifndef FOVEA_NORM_H
#define FOVEA_NORM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FOVEA_NORM_OK = 0, FOVEA_NORM_BAD_ARGUMENT = 1, FOVEA_NORM_INTERNAL = 2 };
enum { FOVEA_F32 = 0, FOVEA_BF16 = 1 };
enum { FOVEA_NO_ACTIVATION = 0, FOVEA_RELU = 1, FOVEA_SILU = 2 };

/* Words for the last call of this thread that failed; valid until the next one that fails. */
const char *fovea_norm_last_error(void);

/* A parallel loop of the caller's: must call task(state, i) exactly once for each 0 <= i < tasks, from
 * any threads, and return when all have returned. It must not throw. In a libtorch process give it
 * libtorch's own, or else two pools of threads fight for the same cores:
 *
 *     void loop(int64_t tasks, fovea_task task, void *state) {
 *       at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
 *         for (int64_t i = begin; i < end; ++i) task(state, i);
 *       });
 *     }
 */
typedef void (*fovea_task)(void *state, int64_t index);
typedef void (*fovea_parallel_for)(int64_t tasks, fovea_task task, void *state);

/* In all structures: threads <= 1 runs on the calling thread; more run on `parallel_for`, or, where it
 * is null, on a pool of that many threads that the library keeps. */

typedef struct fovea_bn_forward {
  int64_t size;
  int32_t dtype;
  int32_t activation;         /* one of the three */
  int64_t rows, channels;
  const void *x;              /* full */
  const void *residual;       /* full, or null: added before the activation */
  const float *weight, *bias; /* per channel */
  const float *running_mean, *running_var; /* per channel; eval only */
  void *out;                  /* full */
  float *mean, *invstd;       /* per channel, written; train only: keep them for the backward pass */
  float *var_unbiased;        /* per channel, written; train only: for the running variance */
  fovea_parallel_for parallel_for;
  int32_t threads;
  float eps;
} fovea_bn_forward;

/* out = activation(weight * (x - mean) * invstd + bias (+ residual)), statistics of this batch. rows >= 2. */
int32_t fovea_bn_train_forward(const fovea_bn_forward *args);
/* The same with running statistics. */
int32_t fovea_bn_eval_forward(const fovea_bn_forward *args);

typedef struct fovea_bn_backward {
  int64_t size;
  int32_t dtype;
  int32_t activation;         /* as in the forward pass; SiLU's must have had no residual */
  int64_t rows, channels;
  const void *x;              /* full: input of the forward pass */
  const void *y;              /* full: its output. With ReLU and without a residual it may be null: the
                                 gate is then computed again from x and bias, which is faster
                                 and gives the same bits */
  const void *dy;             /* full */
  const void *second_dy;      /* full, or null: a second gradient of the same output, added to dy;
                                 needs dresidual */
  const float *weight;        /* per channel */
  const float *bias;          /* per channel; read for ReLU when y is null, and for SiLU */
  const float *mean, *invstd; /* per channel: from the forward pass */
  void *dx;                   /* full, written */
  void *dresidual;            /* full, written, or null: the gradient behind the activation */
  float *dweight, *dbias;     /* per channel, written */
  fovea_parallel_for parallel_for;
  int32_t threads;
} fovea_bn_backward;

int32_t fovea_bn_train_backward(const fovea_bn_backward *args);

typedef struct fovea_pool {
  int64_t size;
  int32_t dtype;
  int32_t threads;
  int64_t n, h, w, channels;  /* of the full-size side; rows = n * h * w */
  const void *x;              /* full */
  void *y;                    /* small */
  void *winner;               /* small, `dtype`: the x that won each window */
  uint8_t *codes;             /* small, bytes: where it was */
  const float *weight, *bias; /* per channel */
  const float *running_mean, *running_var; /* per channel */
  float *mean, *invstd, *var_unbiased;     /* per channel */
  const void *dy;             /* small */
  void *dx;                   /* full */
  float *dweight, *dbias;     /* per channel */
  fovea_parallel_for parallel_for;
  float eps;
} fovea_pool;

/* y = maxpool(relu(batch_norm(x))), kernel 3, stride 2, padding 1.
 * Reads x weight bias; writes y winner codes mean invstd var_unbiased. Keep x, winner, codes, mean and
 * invstd for the backward pass; y is not needed there. */
int32_t fovea_stem_train_forward(const fovea_pool *args);
/* Reads x weight bias running_mean running_var; writes y. */
int32_t fovea_stem_eval_forward(const fovea_pool *args);
/* Reads x winner codes dy weight bias mean invstd; writes dx dweight dbias. */
int32_t fovea_stem_train_backward(const fovea_pool *args);

/* Max pooling alone. Reads x; writes y codes. */
int32_t fovea_maxpool_forward(const fovea_pool *args);
/* Reads codes dy; writes dx. */
int32_t fovea_maxpool_backward(const fovea_pool *args);

/* Global average: y is [n, channels]. Reads x; writes y. h * w >= 1. */
int32_t fovea_avgpool_forward(const fovea_pool *args);
/* dy is [n, channels]. Reads dy; writes dx. */
int32_t fovea_avgpool_backward(const fovea_pool *args);

#ifdef __cplusplus
}
#endif
#endif
