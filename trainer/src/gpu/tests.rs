//! The GPU's step with the kernels and the driver emulated, and with libtorch's tensors on the CPU.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use fovea_collectives::{self as collectives, DeviceCollective};
use fovea_coordinator::order::{EpochOrder, Grain, Unit};
use fovea_dataset::{Dataset, PrepareOptions, Silent, Split, prepare};
use fovea_emulate::driver;
use fovea_kernels::CropSpec;
use fovea_kernels::DType;
use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{
    DeviceBuffer, Event, Kernels, PatchCrop, StepRecord, Stream, spec_records,
};
use fovea_run::config::{Config, ReduceDtype};
use fovea_synth::{SynthOptions, synth};
use half::bf16;
use tch::Tensor;

use super::images::Images;
use super::inputs::{Block, BlockShape};
use super::*;
use crate::host;
use crate::lanes::ThreadLanes;
use crate::objective::{Denominators, objective};
use crate::overlap::Exchange;
use crate::params::StateBuffer;
use crate::precision::Precision;
use crate::replica::{Replica, Sums};
use crate::samples::{Pixels, SampleSource, ShardBatch, order_input};

impl Gpu {
    /// A GPU that is only emulated. Tensors lie on the CPU.
    pub(crate) fn emulated(engine: NormEngine) -> Self {
        static KERNELS: OnceLock<(Arc<Kernels>, Stream)> = OnceLock::new();
        let (kernels, stream) = KERNELS.get_or_init(|| {
            driver::load().unwrap();
            // Compiled once per build for all processes of these tests: next to target/*/deps.
            let test = std::env::current_exe().unwrap();
            let cache = test.ancestors().nth(3).unwrap().join("tmp/kernels");
            let kernels = Kernels::load(0, &Search::from_env(), Some(&cache)).unwrap();
            let stream = Stream::new(&kernels).unwrap();
            (kernels, stream)
        });
        Self::on_host(Arc::clone(kernels), stream.handle(), engine)
    }
}

/// One test at a time uses the driver: a process has one, which runs kernels one after the other, and a test makes it
/// lazy.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A synthetic dataset of 5 images, prepared at 256 pixels with patches of 64.
fn prepared(dir: &Path) -> PathBuf {
    let (raw, out) = (dir.join("raw"), dir.join("data"));
    let (images, size, patch, seed) = (5, 256, 64, 3);
    let made = SynthOptions { images, size, seed };
    synth(&raw, &made, &Silent).unwrap();
    let options = PrepareOptions {
        size,
        patch,
        ..PrepareOptions::default()
    };
    prepare(&raw, &out, &options, &Silent).unwrap();
    out
}

struct Setup {
    data: Arc<Dataset>,
    config: Config,
    _dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let prepared = prepared(dir.path());
        let mut config = Config::preset("hybrid").unwrap();
        config.data.global_size = 64;
        config.data.patches_per_image = 3;
        config.train.images_per_step = 4;
        config.train.virtual_shards = 4;
        config.train.seed = 11;
        Self {
            data: Arc::new(Dataset::open_unverified(&prepared).unwrap()),
            config,
            _dir: dir,
        }
    }

    fn source(&self, precision: Precision, on_gpu: bool) -> SampleSource {
        let data = Arc::clone(&self.data);
        SampleSource::new(data, &self.config, Grain::Cell, precision, on_gpu)
    }

    fn gpu(&self, engine: NormEngine) -> Gpu {
        let mut gpu = Gpu::emulated(engine);
        gpu.load_images(Arc::clone(&self.data)).unwrap();
        gpu
    }

    fn replica(&self, precision: Precision, gpu: Option<Gpu>) -> Replica {
        let source = self.source(precision, false);
        let objective = objective(&self.config.loss, &source).unwrap();
        let (task, lanes) = (source.task(), ThreadLanes::one());
        Replica::configured(&self.config, task, precision, objective, lanes, gpu).unwrap()
    }

    /// The units of the first step, by virtual shard; the second shard is empty.
    fn units(&self) -> Vec<Vec<Unit>> {
        let order =
            EpochOrder::new(&order_input(&self.data, Grain::Cell, &self.config), 0).unwrap();
        let mut shards: Vec<Vec<Unit>> =
            order.units()[..4].chunks(2).map(<[Unit]>::to_vec).collect();
        shards.insert(1, Vec::new());
        shards
    }

    fn shards(&self, source: &SampleSource, epoch: Option<u32>) -> Vec<Option<ShardBatch>> {
        let load =
            |units: &Vec<Unit>| (!units.is_empty()).then(|| source.load(units, epoch).unwrap());
        self.units().iter().map(load).collect()
    }

    fn total(&self) -> Denominators {
        let units = self.units().concat();
        Denominators {
            images: units.len(),
            patches: units.iter().map(|u| u.cells.len() as u64).sum(),
        }
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.permute([0, 2, 3, 1]).contiguous();
    let values = flat.to_kind(tch::Kind::Float).view([-1]);
    host::slice::<f32>(&values)
        .unwrap()
        .iter()
        .map(|x| x.to_bits())
        .collect()
}

/// `|a - b| / |b|`.
fn deviation(a: &[f32], b: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = a.iter().zip(b);
    squares(&mut pairs.map(|(a, b)| f64::from(a - b)))
        / squares(&mut b.iter().map(|b| f64::from(*b)))
}

fn alone_in_the_world(_: &mut [f32]) -> Result<()> {
    Ok(())
}

#[test]
fn pixels_are_those_of_the_cpu_bit_for_bit() {
    let _alone = alone();
    let setup = Setup::new();
    for precision in [Precision::F32, Precision::Bf16] {
        let gpu = setup.gpu(NormEngine::Fused);
        let replica = setup.replica(precision, None);
        let cutter = views::Cutter::new(&gpu, &replica.net, &setup.config).unwrap();
        for epoch in [Some(3), None] {
            let there = setup.shards(&setup.source(precision, true), epoch);
            let here = setup.shards(&setup.source(precision, false), epoch);
            for (there, here) in there.iter().flatten().zip(here.iter().flatten()) {
                let shape = BlockShape::of(&replica.net);
                let mut block = Block::new(&gpu.kernels, gpu.device, &shape).unwrap();
                block.begin(&gpu.kernels, there).unwrap();
                let got = {
                    let ready = cutter.upload(&gpu, &mut block, there).unwrap();
                    cutter.views(&gpu, &block, ready).unwrap()
                };
                let Pixels::Views(want) = &here.pixels else {
                    panic!("no pixels")
                };
                assert_eq!(bits(&got.globals), bits(&want.globals));
                assert_eq!(bits(&got.patches), bits(&want.patches));
                assert_eq!(there.labels, here.labels);
                assert_eq!(there.image_ids, here.image_ids);
            }
        }
    }
    driver::check().unwrap();
}

/// A model of cells alone: patches as before, and no whole image, on either device.
#[test]
fn whole_images_are_made_for_models_that_read_them() {
    let _alone = alone();
    let setup = Setup::new();
    let gpu = setup.gpu(NormEngine::Fused);
    let replica = setup.replica(Precision::F32, None);
    let cutter = views::Cutter::new(&gpu, &replica.net, &setup.config).unwrap();
    let source = |on_gpu, reads| setup.source(Precision::F32, on_gpu).with_images(reads);
    let there = setup.shards(&source(true, false), Some(3));
    let here = setup.shards(&source(false, false), Some(3));
    let full = setup.shards(&source(false, true), Some(3));
    for ((there, here), full) in there.iter().zip(&here).zip(&full) {
        let (Some(there), Some(here), Some(full)) = (there, here, full) else {
            continue;
        };
        let shape = BlockShape::of(&replica.net);
        let mut block = Block::new(&gpu.kernels, gpu.device, &shape).unwrap();
        block.begin(&gpu.kernels, there).unwrap();
        let ready = cutter.upload(&gpu, &mut block, there).unwrap();
        let got = cutter.views(&gpu, &block, ready).unwrap();
        let (Pixels::Views(here), Pixels::Views(full)) = (&here.pixels, &full.pixels) else {
            panic!("no pixels")
        };
        assert_eq!(bits(&got.patches), bits(&full.patches));
        assert_eq!(bits(&here.patches), bits(&full.patches));
        assert_eq!(got.globals.size(), [0, 3, 0, 0]);
        assert_eq!(here.globals.size(), [0, 3, 0, 0]);
        assert!(full.globals.size()[0] > 0);
    }
    driver::check().unwrap();
}

/// Two slots and several batches on their way, with each copy and kernel as late as the driver may run it.
#[test]
fn images_that_come_batch_by_batch_are_the_same() {
    let _alone = alone();
    let setup = Setup::new();
    let gpu = Gpu::emulated(NormEngine::Fused);
    let (patch, size) = (setup.data.patch(), setup.data.size());
    let step = DeviceBuffer::new(&gpu.kernels, &[StepRecord::new(1, 2)]).unwrap();
    let cut = |room: usize| -> (usize, Vec<Vec<u8>>) {
        let mut images = Images::within(&gpu.kernels, Arc::clone(&setup.data), room).unwrap();
        let mut kept = Vec::new();
        for batch in [&[0u32, 3][..], &[1], &[4, 2, 0], &[2], &[3, 3]] {
            let placed = images.place(batch, gpu.stream).unwrap();
            let specs: Vec<CropSpec> = placed
                .index
                .iter()
                .enumerate()
                .map(|(i, record)| CropSpec {
                    image: *record as usize,
                    y: 64,
                    x: 64 * i as u32,
                    sample_id: i as u64,
                })
                .collect();
            let sizes = vec![(size, size); placed.count];
            let records = spec_records(&sizes, &specs, patch).unwrap();
            let specs = DeviceBuffer::new(&gpu.kernels, &records).unwrap();
            let out = DeviceBuffer::uninit(&gpu.kernels, batch.len() * patch * patch * 12).unwrap();
            let crop = PatchCrop {
                images: placed.records,
                image_count: placed.count,
                specs: specs.address(),
                n: batch.len(),
                step: step.address(),
                size: patch,
                augment: None,
                dtype: DType::F32,
                out: out.address(),
            };
            // SAFETY: buffers of these lengths, which are kept until the stream is done.
            unsafe { gpu.run(&crop) }.unwrap();
            images.cut(gpu.stream).unwrap();
            kept.push((specs, out));
        }
        // SAFETY: the stream lives as long as the process.
        unsafe { gpu.kernels.synchronize(gpu.stream) }.unwrap();
        let pixels = kept.iter().map(|(_, out)| {
            let mut bytes = vec![0u8; out.bytes()];
            out.download(&mut bytes).unwrap();
            bytes
        });
        (images.resident().0, pixels.collect())
    };
    let (there, resident) = cut(usize::MAX);
    assert_eq!(there, setup.data.len());
    driver::set_lazy(true);
    let (there, staged) = cut(0);
    driver::set_lazy(false);
    assert_eq!(there, 0);
    assert!(staged == resident);
    driver::check().unwrap();
}

#[test]
fn steps_are_those_of_the_cpu() {
    let _alone = alone();
    let setup = Setup::new();
    let total = setup.total();
    let cpu_shards = setup.shards(&setup.source(Precision::F32, false), Some(0));
    let gpu_shards = setup.shards(&setup.source(Precision::F32, true), Some(0));
    let mut cpu = setup.replica(Precision::F32, None);
    for engine in [NormEngine::Fused, NormEngine::Composed] {
        let mut gpu = setup.replica(Precision::F32, Some(setup.gpu(engine)));
        let want = cpu
            .attempt(&cpu_shards, 0, total, &mut alone_in_the_world, &mut || ())
            .unwrap();
        let mut computed = 0;
        let got = gpu
            .attempt(&gpu_shards, 0, total, &mut alone_in_the_world, &mut || {
                computed += 1
            })
            .unwrap();
        assert_eq!(computed, 1);
        let (got_verdict, want_verdict) = (gpu.verdict(&got, total), cpu.verdict(&want, total));
        let off = (got_verdict.loss / want_verdict.loss - 1.0).abs();
        assert!(off < 1e-5, "{engine:?}: loss deviates by {off:e}");
        // Backward divides by standard deviations over as few as 8 rows, which enlarges roundings.
        let limit = match engine {
            NormEngine::Fused => 1e-5,
            NormEngine::Composed => 1e-3,
        };
        let off = (got_verdict.grad_norm / want_verdict.grad_norm - 1.0).abs();
        assert!(off < limit, "{engine:?}: norm deviates by {off:e}");
        let (got_sums, want_sums) = (got.to_host().unwrap(), want.to_host().unwrap());
        let off = deviation(&got_sums, &want_sums);
        assert!(off < limit, "{engine:?}: sums deviate by {off:e}");
        assert_eq!(got_sums.last(), Some(&2.0), "virtual shards with samples");

        // From the same sums, both replicas must move and evaluate alike.
        let mut twin = setup.replica(Precision::F32, None);
        let mut sums = got_sums.clone();
        // The verdicts are over the same gradient.
        let verdict = got_verdict;
        gpu.commit(got, &setup.config, 1e-3, 1, verdict).unwrap();
        twin.commit(
            Sums::Host(std::mem::take(&mut sums)),
            &setup.config,
            1e-3,
            1,
            verdict,
        )
        .unwrap();
        for part in [
            StateBuffer::Master,
            StateBuffer::FirstMoment,
            StateBuffer::SecondMoment,
        ] {
            let (got, want) = (
                gpu.net.params.read(part).unwrap(),
                twin.net.params.read(part).unwrap(),
            );
            assert!(got == want, "{part:?}");
        }
        let off = deviation(
            &gpu.net.params.read(StateBuffer::Running).unwrap(),
            &twin.net.params.read(StateBuffer::Running).unwrap(),
        );
        assert!(off < 1e-7, "running statistics deviate by {off:e}");
        let image = setup.data.indices(Split::Val).first().copied().unwrap_or(0);
        let score = |replica: &Replica, on_gpu: bool| {
            let source = setup.source(Precision::F32, on_gpu);
            let batch = source.load(&[source.whole_image(image)], None).unwrap();
            replica.evaluate(&batch).unwrap()
        };
        let (got, want) = (score(&gpu, true), score(&twin, false));
        for (got, want) in got.heads.iter().zip(&want.heads) {
            assert_eq!(got.len(), want.len());
            assert!(deviation(got, want) < 1e-4);
        }
    }
    driver::check().unwrap();
}

/// Sums over two ranks that have the same values, in GPU memory.
struct Twice<'a> {
    log: &'a mut Vec<(usize, DType)>,
    open: usize,
}

impl DeviceCollective for Twice<'_> {
    unsafe fn all_reduce_start(
        &mut self,
        address: u64,
        len: usize,
        dtype: DType,
        _: usize,
    ) -> collectives::Result<()> {
        self.log.push((len, dtype));
        self.open += 1;
        // SAFETY: the emulated device's memory is the host's, and the step passed this many elements of it.
        unsafe {
            match dtype {
                DType::F32 => {
                    let values = std::slice::from_raw_parts_mut(address as *mut f32, len);
                    values.iter_mut().for_each(|x| *x *= 2.0);
                }
                DType::Bf16 => {
                    let values = std::slice::from_raw_parts_mut(address as *mut bf16, len);
                    values
                        .iter_mut()
                        .for_each(|x| *x = bf16::from_f32(2.0 * x.to_f32()));
                }
            }
        }
        Ok(())
    }

    unsafe fn join(&mut self, _: usize) -> collectives::Result<()> {
        self.open = 0;
        Ok(())
    }

    fn wait(&mut self, _: &Event, _: Instant) -> collectives::Result<()> {
        Ok(())
    }
}

struct OnDevice<'a>(Twice<'a>);

impl Exchange for OnDevice<'_> {
    fn all_reduce(&mut self, _: &mut [f32]) -> Result<()> {
        panic!("sums in GPU memory were to stay there")
    }

    fn device(&mut self) -> Option<&mut dyn DeviceCollective> {
        Some(&mut self.0)
    }

    fn wait(&mut self, done: &Event) -> Result<()> {
        assert_eq!(self.0.open, 0, "joined before it is waited for");
        Ok(done.synchronize()?)
    }
}

#[test]
fn buckets_are_summed_in_gpu_memory() {
    let _alone = alone();
    let mut setup = Setup::new();
    setup.config.train.bucket_mb = 8;
    let total = setup.total();
    let shards = setup.shards(&setup.source(Precision::F32, true), Some(0));
    let mut attempt = |dtype: ReduceDtype, exchange: &mut dyn Exchange| {
        setup.config.train.reduce_dtype = dtype;
        let mut gpu = setup.replica(Precision::F32, Some(setup.gpu(NormEngine::Fused)));
        let sums = gpu
            .attempt(&shards, 0, total, exchange, &mut || ())
            .unwrap();
        (sums.to_host().unwrap(), gpu.verdict(&sums, total))
    };
    let mut double = |bucket: &mut [f32]| {
        bucket.iter_mut().for_each(|x| *x *= 2.0);
        Ok(())
    };
    let (want, verdict) = attempt(ReduceDtype::F32, &mut double);
    let mut on_device = |dtype| {
        let mut log = Vec::new();
        let open = 0;
        let mut exchange = OnDevice(Twice {
            log: &mut log,
            open,
        });
        let (sums, got) = attempt(dtype, &mut exchange);
        (sums, got, log)
    };

    let (sums, got, log) = on_device(ReduceDtype::F32);
    assert!(sums == want);
    assert!((got.grad_norm / verdict.grad_norm - 1.0).abs() < 1e-12);
    assert!(log.len() > 3 && log.iter().all(|(_, dtype)| *dtype == DType::F32));
    assert_eq!(log.iter().map(|(len, _)| len).sum::<usize>(), want.len());

    let (sums, got, log) = on_device(ReduceDtype::Bf16);
    let off = deviation(&sums, &want);
    assert!(off > 1e-5 && off < 4e-3, "bf16 rounds: {off:e}");
    assert!(
        (got.loss - verdict.loss).abs() < 1e-12,
        "losses travel in f32"
    );
    let (last, others) = log.split_last().unwrap();
    assert_eq!(last.1, DType::F32);
    assert!(others.iter().all(|(_, dtype)| *dtype == DType::Bf16));
}

#[test]
fn after_an_attempt_that_failed_the_next_gives_the_same() {
    let _alone = alone();
    let setup = Setup::new();
    let total = setup.total();
    let shards = setup.shards(&setup.source(Precision::F32, true), Some(0));
    let mut gpu = setup.replica(Precision::F32, Some(setup.gpu(NormEngine::Fused)));
    let mut attempt = |exchange: &mut dyn Exchange| {
        let sums = gpu.attempt(&shards, 0, total, exchange, &mut || ())?;
        sums.to_host()
    };
    let first = attempt(&mut alone_in_the_world).unwrap();
    let mut calls = 0;
    let mut fails = |_: &mut [f32]| {
        calls += 1;
        match calls {
            2 => Err(Error::Internal("the cable".to_owned())),
            _ => Ok(()),
        }
    };
    let error = attempt(&mut fails).unwrap_err();
    assert!(error.to_string().contains("the cable"), "{error}");
    assert!(attempt(&mut alone_in_the_world).unwrap() == first);
}

#[test]
fn each_process_of_a_machine_gets_a_gpu() {
    let found = |count| VisibleGpus {
        count,
        problem: None,
    };
    let gpu = |choice, count, local| choose(choice, &found(count), local).unwrap();
    assert_eq!(gpu(Choice::Auto, 0, 3), None);
    assert_eq!(gpu(Choice::Auto, 4, 3), Some(3));
    assert_eq!(gpu(Choice::Cuda, 4, 5), Some(1), "shared");
    assert_eq!(gpu(Choice::Cpu, 4, 0), None);
    let none = VisibleGpus {
        count: 0,
        problem: Some("no CUDA driver on this machine\n  help: other help".to_owned()),
    };
    let text = choose(Choice::Cuda, &none, 0).unwrap_err().to_string();
    assert!(
        text.starts_with("no CUDA driver on this machine\n  help: nvidia-smi -L"),
        "{text}"
    );
}
