//! Stream capture: on the stand-in for the driver and on a GPU.

use std::sync::Arc;

use fovea_kernels::cuda::{
    AccumulateBf16, DeviceBuffer, Error, Event, FusedAdam, Graph, Kernels, PinnedBuffer, Stream,
    SumSquares, ToBf16, wait_event,
};
use fovea_kernels::flat::{self, AdamParams, AdamScalars};

use crate::guarded::assert_bits;

const N: usize = 100_003;

fn gradients() -> Vec<f32> {
    (0..N).map(|k| (k % 97) as f32 / 97.0 - 0.4).collect()
}

fn code(error: &Error) -> u32 {
    match error {
        Error::Driver { code, .. } => *code,
        other => panic!("{other}"),
    }
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

/// A captured step reads its scalars again at every replay.
pub fn a_captured_step_reads_its_scalars_anew(kernels: &Arc<Kernels>) {
    let grads = gradients();
    let zeros = vec![0.0f32; N];
    let [params, m, v] = [&grads, &zeros, &zeros].map(|x| DeviceBuffer::new(kernels, x).unwrap());
    let grads_on_device = DeviceBuffer::new(kernels, &grads).unwrap();
    let mut scalars = DeviceBuffer::new(kernels, &[AdamScalars::new(&hyper(1)).unwrap()]).unwrap();
    let total = DeviceBuffer::new(kernels, &[0.0f64]).unwrap();
    let scratch = DeviceBuffer::uninit(kernels, SumSquares::scratch_bytes(N)).unwrap();

    let squares = SumSquares {
        x: grads_on_device.address(),
        n: N,
        total: total.address(),
        scratch: scratch.address(),
    };
    let step = FusedAdam {
        params: params.address(),
        grads: grads_on_device.address(),
        m: m.address(),
        v: v.address(),
        working: 0,
        n: N,
        scalars: scalars.address(),
    };
    let stream = Stream::new(kernels).unwrap();
    // SAFETY: the buffers outlive the last synchronize and are as long as the operations say.
    let captured = unsafe {
        Graph::capture(kernels, stream.handle(), || {
            kernels.run(stream.handle(), &squares)?;
            kernels.run(stream.handle(), &step)?;
            Ok::<_, Error>("captured")
        })
    };
    let (graph, returned) = captured.unwrap();
    assert_eq!(returned, "captured");
    let mut got = vec![0.0f32; N];
    params.download(&mut got).unwrap();
    assert_bits("nothing was run yet", &got, &grads);
    for step in 1..=3 {
        let now = AdamScalars::new(&hyper(step)).unwrap();
        scalars.upload(&[now]).unwrap();
        // SAFETY: as above.
        unsafe { graph.launch(stream.handle()).unwrap() };
        stream.synchronize().unwrap();
    }

    let mut squares = [0.0f64];
    total.download(&mut squares).unwrap();
    let expected = flat::sum_squares(&grads);
    assert!((squares[0] - expected).abs() <= 1e-13 * expected);
    params.download(&mut got).unwrap();
    let (mut want, mut m, mut v) = (grads.clone(), zeros.clone(), zeros);
    for step in 1..=3 {
        flat::adam(&mut want, &grads, &mut m, &mut v, None, &hyper(step)).unwrap();
    }
    assert_bits("params", &got, &want);
}

/// Buffers of a chain of operations: host -> f32 -> bf16 -> added to a sum -> host.
struct Chain {
    kernels: Arc<Kernels>,
    input: PinnedBuffer,
    wide: DeviceBuffer,
    narrow: DeviceBuffer,
    sum: DeviceBuffer,
    output: PinnedBuffer,
}

impl Chain {
    fn new(kernels: &Arc<Kernels>) -> Self {
        let mut input = PinnedBuffer::new(kernels, 4 * N).unwrap();
        input.as_mut_slice().copy_from_slice(&gradients());
        Self {
            kernels: Arc::clone(kernels),
            input,
            wide: DeviceBuffer::uninit(kernels, 4 * N).unwrap(),
            narrow: DeviceBuffer::uninit(kernels, 2 * N).unwrap(),
            sum: DeviceBuffer::new(kernels, &vec![0.0f32; N]).unwrap(),
            output: PinnedBuffer::new(kernels, 4 * N).unwrap(),
        }
    }

    /// Puts the chain on `stream`, the middle of it on `middle`, with events where the work changes streams.
    unsafe fn put_on(&self, stream: &Stream, middle: &Stream) -> Result<(), Error> {
        let [there, back] = [0, 1].map(|_| Event::new(&self.kernels).unwrap());
        let cast = ToBf16 {
            src: self.wide.address(),
            dst: self.narrow.address(),
            n: N,
        };
        let add = AccumulateBf16 {
            src: self.narrow.address(),
            dst: self.sum.address(),
            n: N,
            first: false,
        };
        let kernels = &self.kernels;
        let (on, bytes) = (stream.handle(), 4 * N);
        // SAFETY: the buffers have these lengths; the caller keeps them and the streams alive.
        unsafe {
            kernels.copy_to_device_async(on, self.wide.address(), self.input.as_ptr(), bytes)?;
            there.record(on)?;
            middle.wait(&there)?;
            kernels.run(middle.handle(), &cast)?;
            back.record(middle.handle())?;
            stream.wait(&back)?;
            kernels.run(on, &add)?;
            kernels.copy_to_host_async(on, self.output.as_ptr(), self.sum.address(), bytes)
        }
    }
}

pub fn a_replayed_chain_does_what_a_plain_run_does(kernels: &Arc<Kernels>) {
    let [stream, other] = [0, 1].map(|_| Stream::new(kernels).unwrap());
    for middle in [&stream, &other] {
        let plain = Chain::new(kernels);
        let mut replayed = Chain::new(kernels);
        // SAFETY: the buffers outlive the last synchronize.
        let graph = unsafe {
            Graph::capture(kernels, stream.handle(), || {
                replayed.put_on(&stream, middle)
            })
        };
        let (graph, ()) = graph.unwrap();
        for _ in 0..3 {
            // SAFETY: as above.
            unsafe {
                plain.put_on(&stream, middle).unwrap();
                graph.launch(stream.handle()).unwrap();
            }
        }
        stream.synchronize().unwrap();
        let got = replayed.output.as_slice::<f32>();
        assert_bits("output", got, plain.output.as_slice());
        let thrice: Vec<f32> = gradients()
            .iter()
            .map(|&x| 3.0 * half::bf16::from_f32(x).to_f32())
            .collect();
        let near = |(got, want): (&f32, &f32)| (got - want).abs() < 1e-6;
        assert!(got.iter().zip(&thrice).all(near));

        // The graph reads the input at the launch, on whichever stream that is.
        replayed.input.as_mut_slice::<f32>().fill(2.0);
        replayed.sum.upload(&vec![1.0f32; N]).unwrap();
        // SAFETY: as above.
        unsafe { graph.launch(other.handle()).unwrap() };
        other.synchronize().unwrap();
        let three = replayed.output.as_slice::<f32>().iter().all(|&x| x == 3.0);
        assert!(three);
    }
}

/// Whatever failed before, the stream can be used and captured again.
fn is_sound(kernels: &Arc<Kernels>, stream: &Stream) {
    let chain = Chain::new(kernels);
    // SAFETY: the buffers outlive the synchronize.
    unsafe {
        let captured = Graph::capture(kernels, stream.handle(), || chain.put_on(stream, stream));
        let (graph, ()) = captured.unwrap();
        graph.launch(stream.handle()).unwrap();
        stream.synchronize().unwrap();
        let once = half::bf16::from_f32(gradients()[7]).to_f32();
        assert_eq!(chain.output.as_slice::<f32>()[7], once);
        stream.synchronize().unwrap();
    }
}

pub fn a_capture_ends_when_its_work_fails(kernels: &Arc<Kernels>) {
    #[derive(Debug, PartialEq)]
    enum Failure {
        Ours,
        Cuda(String),
    }
    impl From<Error> for Failure {
        fn from(error: Error) -> Self {
            Self::Cuda(error.to_string())
        }
    }
    let stream = Stream::new(kernels).unwrap();
    let chain = Chain::new(kernels);
    // SAFETY: the capture is never launched.
    let failed = unsafe {
        Graph::capture(kernels, stream.handle(), || {
            chain.put_on(&stream, &stream)?;
            Err::<(), _>(Failure::Ours)
        })
    };
    assert_eq!(failed.err(), Some(Failure::Ours));
    is_sound(kernels, &stream);

    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: as above.
        unsafe {
            Graph::capture(kernels, stream.handle(), || -> Result<(), Error> {
                std::panic::resume_unwind(Box::new("work"))
            })
        }
    }));
    assert!(panicked.is_err());
    is_sound(kernels, &stream);
}

pub fn waiting_for_a_stream_spoils_its_capture(kernels: &Arc<Kernels>) {
    let stream = Stream::new(kernels).unwrap();
    let event = Event::new(kernels).unwrap();
    let on = stream.handle();
    let synchronize = || stream.synchronize();
    // SAFETY: a live stream.
    let ask = || unsafe { event.record(on).and_then(|()| event.is_done().map(|_| ())) };
    // SAFETY: a live stream.
    let wait_for_outside = || unsafe { wait_event(on, &event) };
    let offences: [&dyn Fn() -> Result<(), Error>; 3] = [&synchronize, &ask, &wait_for_outside];
    for (expected, offence) in [900, 907, 905].into_iter().zip(offences) {
        // An event that was recorded on a stream that is not captured.
        let other = Stream::new(kernels).unwrap();
        // SAFETY: live streams; nothing is captured that could be launched.
        unsafe {
            event.record(other.handle()).unwrap();
            let failed = Graph::capture(kernels, on, offence);
            assert_eq!(code(&failed.unwrap_err()), expected);
            is_sound(kernels, &stream);
            // Work that ignores the error gets no graph either.
            event.record(other.handle()).unwrap();
            let spoilt = Graph::capture(kernels, on, || {
                offence().unwrap_err();
                Ok::<_, Error>(())
            });
            let error = spoilt.unwrap_err();
            assert_eq!(code(&error), 901);
            let help = "\n  help: something waited for a stream that was being captured";
            assert!(error.to_string().contains(help), "{error}");
        }
        is_sound(kernels, &stream);
    }
}

pub fn streams_that_cannot_be_captured_are_refused(kernels: &Arc<Kernels>) {
    // SAFETY: the default stream, of which nothing is captured.
    let default = unsafe { Graph::capture(kernels, 0, || Ok::<_, Error>(())) };
    assert_eq!(code(&default.unwrap_err()), 900);

    let stream = Stream::new(kernels).unwrap();
    let on = stream.handle();
    // SAFETY: nothing is captured that could be launched.
    let twice = unsafe {
        Graph::capture(kernels, on, || {
            Graph::capture(kernels, on, || Ok::<_, Error>(())).map(|_| ())
        })
    };
    assert_eq!(code(&twice.unwrap_err()), 401);

    // A second stream that is not waited for.
    let other = Stream::new(kernels).unwrap();
    let event = Event::new(kernels).unwrap();
    let buffer = DeviceBuffer::uninit(kernels, 16).unwrap();
    // SAFETY: live streams, a buffer of 16 bytes; no graph comes of it.
    let unjoined = unsafe {
        Graph::capture(kernels, on, || {
            event.record(on)?;
            other.wait(&event)?;
            kernels.fill_async(other.handle(), buffer.address(), 0, 16)
        })
    };
    assert_eq!(code(&unjoined.unwrap_err()), 904);
    is_sound(kernels, &stream);
    is_sound(kernels, &other);
}
