//! What is captured into a CUDA graph reads its scalars anew at every replay. A GPU only.

use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{
    DeviceBuffer, Error, FusedAdam, Graph, Kernels, StepGate, Stream, SumSquares,
};
use fovea_kernels::flat::{self, AdamParams, AdamScalars, Gate};

use crate::guarded::assert_bits;

const N: usize = 100_003;

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
    let stream = Stream::new(&kernels).unwrap();
    // SAFETY: the buffers outlive the last synchronize and are as long as the operations say.
    let captured = unsafe {
        Graph::capture(&kernels, stream.handle(), || {
            kernels.run(stream.handle(), &squares)?;
            kernels.run(stream.handle(), &decide)?;
            kernels.run(stream.handle(), &step)?;
            Ok::<_, Error>(())
        })
    };
    let (graph, ()) = captured.unwrap();
    for step in 1..=3 {
        let now = AdamScalars::new(&hyper(step)).unwrap();
        scalars.upload(&[now]).unwrap();
        // SAFETY: as above.
        unsafe { graph.launch(stream.handle()).unwrap() };
        stream.synchronize().unwrap();
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
