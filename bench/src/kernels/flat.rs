//! Trials of the loss and of the kernels that pass over flat buffers.

use std::sync::Arc;

use fovea_kernels::DType;
use fovea_kernels::cuda::{DeviceBuffer, FusedAdam, SumSquares, ToBf16};
use fovea_kernels::flat::{self, AdamParams, AdamScalars};
use fovea_kernels::loss::{Loss, LossAt, LossEntry, LossSettings};
use fovea_task::{Kind as LabelKind, Label};
use fovea_trainer::Result;
use fovea_trainer::gpu::Gpu;
use half::bf16;
use rand::{Rng, RngCore};
use tch::{Kind, Tensor};

use super::{Shapes, Trial, address, kind, numbers, on};
use crate::composed;

/// Columns of the logits: one per label class.
const CLASSES: usize = 4;

/// `n` numbers in -1..1, about the size of gradients and parameters.
fn noise(n: usize, rng: &mut dyn RngCore) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A loss with its gradient.
pub struct LossTrial {
    settings: LossSettings,
    loss: Arc<dyn Loss>,
    scale: f32,
    host: (Vec<f32>, Vec<Label>),
    logits: Tensor,
    /// Labels `[n]` i64: one bit per class, or the index of the class.
    labels: Tensor,
    record: DeviceBuffer,
    scale_on_device: DeviceBuffer,
    dlogits: Tensor,
    sum: Tensor,
    scratch: DeviceBuffer,
}

impl LossTrial {
    pub fn new(
        gpu: &Gpu,
        s: &Shapes,
        entry: &'static LossEntry,
        rng: &mut dyn RngCore,
    ) -> Result<Self> {
        let n = s.rows;
        let settings = LossSettings {
            gamma: 2.0,
            alpha: vec![0.7, 0.3, 0.5, 2.5],
            pos_weight: vec![2.0, 0.5, 1.0, 4.0],
            label_smoothing: 0.1,
            beta: 0.9999,
            positives: vec![11_993, 28_829, 17_647, 3_448],
            ..LossSettings::plain(CLASSES)
        };
        let scale = 1.0 / n.max(1) as f32;
        let logits: Vec<f32> = (0..n * CLASSES)
            .map(|_| rng.random_range(-6.0..6.0))
            .collect();
        let labels = match entry.kind {
            LabelKind::AnyOf => 1 << CLASSES,
            LabelKind::OneOf => CLASSES as i64,
        };
        let labels: Vec<i64> = (0..n).map(|_| rng.random_range(0..labels)).collect();
        let shape = [n as i64, CLASSES as i64];
        let loss = (entry.build)(&settings)?;
        let scratch = loss.scratch_bytes(n);
        Ok(Self {
            logits: on(gpu, &logits)?.f_view(shape)?,
            labels: on(gpu, &labels)?,
            record: DeviceBuffer::new(gpu.kernels(), loss.record())?,
            scale_on_device: DeviceBuffer::new(gpu.kernels(), &[scale])?,
            dlogits: Tensor::f_zeros(shape, (Kind::Float, gpu.device()))?,
            sum: Tensor::f_zeros([1], (Kind::Double, gpu.device()))?,
            scratch: DeviceBuffer::uninit(gpu.kernels(), scratch)?,
            host: (
                logits,
                labels.iter().map(|&bits| Label(bits as u64)).collect(),
            ),
            settings,
            loss,
            scale,
        })
    }
}

impl Trial for LossTrial {
    fn shape(&self) -> String {
        format!("[{} x {CLASSES}]", self.host.1.len())
    }

    /// Per row: the f32 logits in, as many gradients out, and 8 bytes of labels in.
    fn bytes(&self) -> usize {
        8 * self.host.0.len() + 8 * self.host.1.len()
    }

    fn kernel(&self, gpu: &Gpu) -> Result<()> {
        let op = self.loss.op(LossAt {
            logits: address(&self.logits),
            labels: address(&self.labels),
            n: self.host.1.len(),
            record: self.record.address(),
            scale: self.scale_on_device.address(),
            dlogits: address(&self.dlogits),
            loss: address(&self.sum),
            scratch: self.scratch.address(),
        });
        // SAFETY: these are self's buffers, made for these sizes; the caller waits for the work before it drops self.
        unsafe { gpu.run(&*op) }
    }

    fn composed(&self) -> Result<()> {
        let scale = f64::from(self.scale);
        let Self {
            logits,
            labels,
            settings,
            ..
        } = self;
        composed::loss(self.loss.name(), logits, labels, settings, scale).map(drop)
    }

    /// The mean loss, then the gradients of the summed loss.
    fn got(&self) -> Result<Vec<f64>> {
        let loss = numbers(&self.sum)?[0] * f64::from(self.scale);
        let dlogits = numbers(&self.dlogits)?.into_iter();
        Ok([loss]
            .into_iter()
            .chain(dlogits.map(|d| d / f64::from(self.scale)))
            .collect())
    }

    fn twin(&self) -> Result<Vec<f64>> {
        let (logits, labels) = &self.host;
        let mut dlogits = vec![0.0; logits.len()];
        let loss = self.loss.host(logits, labels, self.scale, &mut dlogits)?;
        let scale = f64::from(self.scale);
        let dlogits = dlogits.into_iter().map(|d| f64::from(d) / scale);
        Ok([loss * scale].into_iter().chain(dlogits).collect())
    }
}

/// One step of Adam, with or without the bf16 working copy.
pub struct Adam {
    params: AdamParams,
    /// Parameters, gradients, first and second moments.
    host: [Vec<f32>; 4],
    device: [Tensor; 4],
    working: Option<Tensor>,
    scalars: DeviceBuffer,
}

impl Adam {
    pub fn new(gpu: &Gpu, s: &Shapes, working: bool, rng: &mut dyn RngCore) -> Result<Self> {
        let n = s.parameters;
        let mut host = [(); 4].map(|()| noise(n, rng));
        host[3].iter_mut().for_each(|v| *v = v.abs());
        let [p, g, m, v] = host.each_ref().map(|values| on(gpu, values));
        let params = AdamParams {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-5,
            decoupled: false,
            step: 10,
            grad_scale: 1.0,
        };
        let copy = (Kind::BFloat16, gpu.device());
        Ok(Self {
            device: [p?, g?, m?, v?],
            working: working
                .then(|| Tensor::f_zeros([n as i64], copy))
                .transpose()?,
            scalars: DeviceBuffer::new(gpu.kernels(), &[AdamScalars::new(&params)?])?,
            host,
            params,
        })
    }
}

impl Trial for Adam {
    fn shape(&self) -> String {
        format!("{} parameters", self.host[0].len())
    }

    /// Per parameter: four f32 in, three out, and 2 bytes of the working copy, where there is one.
    fn bytes(&self) -> usize {
        self.host[0].len() * (28 + if self.working.is_some() { 2 } else { 0 })
    }

    fn kernel(&self, gpu: &Gpu) -> Result<()> {
        let [params, grads, m, v] = self.device.each_ref().map(address);
        let op = FusedAdam {
            params,
            grads,
            m,
            v,
            working: self.working.as_ref().map_or(0, address),
            n: self.host[0].len(),
            scalars: self.scalars.address(),
        };
        // SAFETY: as for `LossTrial`.
        unsafe { gpu.run(&op) }
    }

    fn composed(&self) -> Result<()> {
        composed::adam(self.device.each_ref(), self.working.as_ref(), &self.params)
    }

    fn got(&self) -> Result<Vec<f64>> {
        let [params, _, m, v] = &self.device;
        let mut all = [params, m, v]
            .map(numbers)
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        if let Some(working) = &self.working {
            all.push(numbers(working)?);
        }
        Ok(all.concat())
    }

    fn twin(&self) -> Result<Vec<f64>> {
        let [mut params, grads, mut m, mut v] = self.host.clone();
        let mut working = vec![bf16::ZERO; params.len()];
        let copy = self.working.is_some().then_some(working.as_mut_slice());
        flat::adam(&mut params, &grads, &mut m, &mut v, copy, &self.params)?;
        let mut all: Vec<f64> = [params, m, v].concat().into_iter().map(f64::from).collect();
        if self.working.is_some() {
            all.extend(working.into_iter().map(f64::from));
        }
        Ok(all)
    }
}

/// The cast to bf16.
pub struct Cast {
    host: Vec<f32>,
    source: Tensor,
    out: Tensor,
}

impl Cast {
    pub fn new(gpu: &Gpu, s: &Shapes, rng: &mut dyn RngCore) -> Result<Self> {
        let host = noise(s.parameters, rng);
        Ok(Self {
            source: on(gpu, &host)?,
            out: Tensor::f_zeros([host.len() as i64], (Kind::BFloat16, gpu.device()))?,
            host,
        })
    }
}

impl Trial for Cast {
    fn shape(&self) -> String {
        format!("{} elements", self.host.len())
    }

    /// Per element: 4 bytes in, 2 bytes out.
    fn bytes(&self) -> usize {
        6 * self.host.len()
    }

    fn kernel(&self, gpu: &Gpu) -> Result<()> {
        let op = ToBf16 {
            src: address(&self.source),
            dst: address(&self.out),
            n: self.host.len(),
        };
        // SAFETY: as for `LossTrial`.
        unsafe { gpu.run(&op) }
    }

    fn composed(&self) -> Result<()> {
        Ok(self.source.f_to_kind(kind(DType::Bf16)).map(drop)?)
    }

    fn got(&self) -> Result<Vec<f64>> {
        numbers(&self.out)
    }

    fn twin(&self) -> Result<Vec<f64>> {
        let mut out = vec![bf16::ZERO; self.host.len()];
        flat::to_bf16(&self.host, &mut out)?;
        Ok(out.into_iter().map(f64::from).collect())
    }
}

/// The sum of squares, in f64; the composition's `norm` sums in f32.
pub struct Squares {
    host: Vec<f32>,
    values: Tensor,
    total: Tensor,
    scratch: DeviceBuffer,
}

impl Squares {
    pub fn new(gpu: &Gpu, s: &Shapes, rng: &mut dyn RngCore) -> Result<Self> {
        let host = noise(s.parameters, rng);
        let scratch = SumSquares::scratch_bytes(host.len());
        Ok(Self {
            values: on(gpu, &host)?,
            total: Tensor::f_zeros([1], (Kind::Double, gpu.device()))?,
            scratch: DeviceBuffer::uninit(gpu.kernels(), scratch)?,
            host,
        })
    }
}

impl Trial for Squares {
    fn shape(&self) -> String {
        format!("{} elements", self.host.len())
    }

    /// Per element: 4 bytes in; the single sum does not count.
    fn bytes(&self) -> usize {
        4 * self.host.len()
    }

    fn kernel(&self, gpu: &Gpu) -> Result<()> {
        let op = SumSquares {
            x: address(&self.values),
            n: self.host.len(),
            total: address(&self.total),
            scratch: self.scratch.address(),
        };
        // SAFETY: as for `LossTrial`.
        unsafe { gpu.run(&op) }
    }

    fn composed(&self) -> Result<()> {
        Ok(self.values.f_norm().map(drop)?)
    }

    fn got(&self) -> Result<Vec<f64>> {
        numbers(&self.total)
    }

    fn twin(&self) -> Result<Vec<f64>> {
        Ok(vec![flat::sum_squares(&self.host)])
    }
}
