//! What is captured into a CUDA graph reads its scalars anew at every replay. A GPU only.

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode};
use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{DeviceBuffer, FusedAdam, Kernels, StepGate, SumSquares};
use fovea_kernels::flat::{self, AdamParams, AdamScalars, Gate};

use crate::guarded::assert_bits;

const N: usize = 100_003;

fn ok(code: CUresult) {
    assert_eq!(code, CUresult::CUDA_SUCCESS);
}

fn hyper(step: u64) -> AdamParams {
    AdamParams {
        lr: 1e-3 / step as f64,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        decoupled: true,
        step,
        grad_scale: 1.0,
    }
}

#[test]
#[ignore = "needs a GPU: cargo test --release -p fovea-kernels --test cuda -- --ignored"]
fn a_captured_step_reads_its_scalars_anew() {
    let kernels =
        Kernels::load(0, &Search::from_env(), None).unwrap_or_else(|error| panic!("{error}"));
    let grads: Vec<f32> = (0..N).map(|k| (k % 97) as f32 / 97.0 - 0.4).collect();
    let zeros = vec![0.0f32; N];
    let [params, m, v] = [&grads, &zeros, &zeros].map(|x| DeviceBuffer::new(&kernels, x).unwrap());
    let grads_on_device = DeviceBuffer::new(&kernels, &grads).unwrap();
    let mut scalars = DeviceBuffer::new(&kernels, &[AdamScalars::new(&hyper(1)).unwrap()]).unwrap();
    let total = DeviceBuffer::new(&kernels, &[0.0f64]).unwrap();
    let base = DeviceBuffer::new(&kernels, &[1.0f64]).unwrap();
    let gate = DeviceBuffer::new(&kernels, &[0u64]).unwrap();
    let scratch = DeviceBuffer::new(&kernels, &vec![0u8; SumSquares::scratch_bytes(N)]).unwrap();

    let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
    let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: handles are used in the order in which they are made; the buffers outlive the last
    // synchronize and are as long as the operations say.
    unsafe {
        ok(sys::cuDevicePrimaryCtxRetain(&mut context, 0));
        ok(sys::cuCtxSetCurrent(context));
        ok(sys::cuStreamCreate(&mut stream, 1)); // not synchronised with the default stream
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        ok(sys::cuStreamBeginCapture_v2(stream, mode));
        let squares = SumSquares {
            x: grads_on_device.address(),
            n: N,
            total: total.address(),
            scratch: scratch.address(),
        };
        let decide = StepGate {
            sum_squares: total.address(),
            loss: 0,
            base_scale: base.address(),
            clip_norm: 1.0,
            gate: gate.address(),
        };
        let step = FusedAdam {
            params: params.address(),
            grads: grads_on_device.address(),
            m: m.address(),
            v: v.address(),
            working: 0,
            n: N,
            scalars: scalars.address(),
            gate: gate.address(),
        };
        kernels.run(stream as usize, &squares).unwrap();
        kernels.run(stream as usize, &decide).unwrap();
        kernels.run(stream as usize, &step).unwrap();
        ok(sys::cuStreamEndCapture(stream, &mut graph));
        ok(sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        for step in 1..=3 {
            scalars
                .upload(&[AdamScalars::new(&hyper(step)).unwrap()])
                .unwrap();
            ok(sys::cuGraphLaunch(exec, stream));
            kernels.synchronize(stream as usize).unwrap();
        }
        ok(sys::cuGraphExecDestroy(exec));
        ok(sys::cuGraphDestroy(graph));
        ok(sys::cuStreamDestroy_v2(stream));
    }

    let mut decided = [Gate {
        go: 0,
        grad_scale: 0.0,
    }];
    gate.download(&mut decided).unwrap();
    assert_eq!(decided[0].go, 1);
    let mut got = vec![0.0f32; N];
    params.download(&mut got).unwrap();
    let (mut want, mut m, mut v) = (grads.clone(), zeros.clone(), zeros);
    for step in 1..=3 {
        let p = AdamParams {
            grad_scale: f64::from(decided[0].grad_scale),
            ..hyper(step)
        };
        flat::adam(&mut want, &grads, &mut m, &mut v, None, &p).unwrap();
    }
    assert_bits("params", &got, &want);
}
