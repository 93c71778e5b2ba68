//! Parameters in one flat buffer: master copy, working copy, optimizer moments.
//!
//! The optimizer updates the f32 master copy, and a checkpoint holds it. Convolution weights come first, channels-last,
//! so a bf16 run's working copy is a prefix of the same layout. The leaves that autograd sees are views: of the working
//! copy for convolutions of a bf16 run, of the master copy otherwise. Gradients never live in `.grad`: backward hands
//! them out and [`crate::reduce`] adds them into its own flat buffers of this same layout.
//!
//! All of it lies on one device. Code that needs it on the host (checkpoints, hashes, other ranks) uses
//! [`Params::read`] and [`Params::edit`], which on the CPU are the buffers themselves.

use std::borrow::Cow;
use std::ops::Range;

use fovea_kernels::flat::{self, AdamParams};
use fovea_run::config::DecayTarget;
use half::bf16;
use rand::SeedableRng;
use rand::distr::{Distribution, Uniform};
use rand_chacha::ChaCha8Rng;
use rand_distr::Normal;
use tch::{Device, Kind, Tensor};

use crate::blueprint::{Blueprint, Init, ParamSpec};
use crate::error::{Error, Result};
use crate::host;
use crate::ops;
use crate::precision::Precision;
use crate::trainable::{Trainable, UpdateRange};

/// Every tensor starts on a multiple of this many elements (one 128-byte line of f32).
const ALIGN: usize = 32;

/// Where each parameter lies in the flat buffers.
#[derive(Clone, Debug)]
pub struct FlatLayout {
    /// Elements of each parameter, indexed by [`crate::models::ParamId`].
    pub ranges: Vec<Range<usize>>,
    /// Length of the prefix that a bf16 run keeps a working copy of, elements.
    pub working_len: usize,
    /// Length of a buffer, elements; includes alignment gaps, which are always zero.
    pub len: usize,
}

impl FlatLayout {
    /// Places convolution weights first, then the rest, each in declaration order.
    pub fn new(specs: &[ParamSpec]) -> Self {
        let mut layout = Self {
            ranges: vec![0..0; specs.len()],
            working_len: 0,
            len: 0,
        };
        for working in [true, false] {
            for (range, spec) in layout
                .ranges
                .iter_mut()
                .zip(specs)
                .filter(|(_, s)| s.working == working)
            {
                *range = layout.len..layout.len + spec.numel();
                layout.len = range.end.next_multiple_of(ALIGN);
            }
            if working {
                layout.working_len = layout.len;
            }
        }
        layout
    }

    /// The end of a parameter's elements with the gap behind it.
    pub fn padded_end(&self, range: &Range<usize>) -> usize {
        range.end.next_multiple_of(ALIGN)
    }
}

/// One of the flat f32 buffers that make up a model's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateBuffer {
    /// The f32 parameters, `[layout.len]`.
    Master,
    /// Adam's first moments, in the layout of the parameters.
    FirstMoment,
    /// Adam's second moments, in the layout of the parameters.
    SecondMoment,
    /// Running statistics, `[stats_len]` (see [`crate::models::NormSpec`]).
    Running,
}

impl StateBuffer {
    /// All buffers, which together determine the next step.
    pub const ALL: [Self; 4] = [
        Self::Master,
        Self::FirstMoment,
        Self::SecondMoment,
        Self::Running,
    ];
}

/// Parameters, optimizer moments and batch normalisation statistics of one model.
pub struct Params {
    /// Names, shapes and initial values of the parameters.
    pub blueprint: Blueprint,
    /// Where each parameter lies in the flat buffers.
    pub layout: FlatLayout,
    device: Device,
    master: Tensor,
    working: Option<Tensor>,
    leaves: Vec<Tensor>,
    /// Those of `leaves` that move.
    trained: Vec<Tensor>,
    trainable: Trainable,
    updates: Vec<UpdateRange>,
    m: Tensor,
    v: Tensor,
    running: Tensor,
}

/// A view of a parameter's elements in a flat tensor, in PyTorch's shape.
fn view(flat: &Tensor, range: &Range<usize>, spec: &ParamSpec) -> Result<Tensor> {
    let part = flat.f_narrow(0, range.start as i64, range.len() as i64)?;
    Ok(match (spec.working, spec.shape.as_slice()) {
        (true, &[o, i, h, w]) => part.f_view([o, h, w, i])?.f_permute([0, 3, 1, 2])?,
        _ => part.f_view(spec.shape.as_slice())?,
    })
}

impl Params {
    /// Draws initial values from `seed`; the same on every machine and device. Everything moves, until
    /// [`Params::set_trainable`].
    pub fn new(
        blueprint: Blueprint,
        precision: Precision,
        seed: u64,
        device: Device,
    ) -> Result<Self> {
        let layout = FlatLayout::new(&blueprint.params);
        let zeros = |len: usize, kind| Tensor::f_zeros([len as i64], (kind, device));
        let master = zeros(layout.len, Kind::Float)?;
        let working = match precision {
            Precision::Bf16 => Some(zeros(layout.working_len, Kind::BFloat16)?),
            Precision::F32 => None,
        };
        let trainable = Trainable::all(&blueprint, DecayTarget::All);
        let mut params = Self {
            master,
            working,
            leaves: Vec::new(),
            trained: Vec::new(),
            updates: Vec::new(),
            trainable: trainable.clone(),
            m: zeros(layout.len, Kind::Float)?,
            v: zeros(layout.len, Kind::Float)?,
            running: zeros(blueprint.stats_len(), Kind::Float)?,
            blueprint,
            layout,
            device,
        };
        params.set_trainable(trainable)?;
        params.initialise(seed)?;
        Ok(params)
    }

    /// Decides which parameters move and which normalisation layers are frozen. Autograd stops at frozen parameters.
    pub fn set_trainable(&mut self, trainable: Trainable) -> Result<()> {
        let (mut leaves, mut trained) = (Vec::new(), Vec::new());
        let params = self.blueprint.params.iter().zip(&self.layout.ranges);
        for (index, (spec, range)) in params.enumerate() {
            let flat = if spec.working {
                self.working.as_ref().unwrap_or(&self.master)
            } else {
                &self.master
            };
            let leaf = view(flat, range, spec)?.f_detach()?;
            let leaf = leaf.f_set_requires_grad(trainable.moves(index))?;
            if trainable.moves(index) {
                ops::watch(&leaf, index)?;
                trained.push(leaf.shallow_clone());
            }
            leaves.push(leaf);
        }
        for (index, norm) in self.blueprint.norms.iter_mut().enumerate() {
            norm.frozen = trainable.is_frozen(index);
        }
        self.updates = trainable.ranges(&self.layout);
        (self.leaves, self.trained, self.trainable) = (leaves, trained, trainable);
        Ok(())
    }

    /// What moves.
    pub fn trainable(&self) -> &Trainable {
        &self.trainable
    }

    /// The elements that the optimizer updates.
    pub fn updates(&self) -> &[UpdateRange] {
        &self.updates
    }

    /// The leaves that move, in the order of their parameters.
    pub fn trained(&self) -> &[Tensor] {
        &self.trained
    }

    fn initialise(&mut self, seed: u64) -> Result<()> {
        let specs = self.blueprint.params.clone();
        let ranges = self.layout.ranges.clone();
        self.edit(StateBuffer::Master, |master| {
            for (index, (spec, range)) in specs.iter().zip(ranges).enumerate() {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(index as u64 + 1);
                draw(spec, &mut rng, &mut master[range])?;
            }
            Ok(())
        })?;
        let norms = self.blueprint.norms.clone();
        self.edit(StateBuffer::Running, |running| {
            for norm in &norms {
                running[norm.offset + norm.channels..norm.offset + 2 * norm.channels].fill(1.0);
            }
            Ok(())
        })
    }

    /// Forward copies, indexed by [`crate::models::ParamId`]; leaves of autograd.
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// The device that holds all buffers.
    pub fn device(&self) -> Device {
        self.device
    }

    /// A buffer on its device, `[layout.len]` or `[stats_len]` f32.
    pub fn tensor(&self, part: StateBuffer) -> &Tensor {
        match part {
            StateBuffer::Master => &self.master,
            StateBuffer::FirstMoment => &self.m,
            StateBuffer::SecondMoment => &self.v,
            StateBuffer::Running => &self.running,
        }
    }

    /// The bf16 copy of the first [`FlatLayout::working_len`] elements; none in an f32 run.
    pub fn working(&self) -> Option<&Tensor> {
        self.working.as_ref()
    }

    /// Running statistics, `[stats_len]` (see [`crate::models::NormSpec`]).
    pub fn running(&self) -> &Tensor {
        &self.running
    }

    /// A buffer on the host: the buffer itself on the CPU, else a copy.
    pub fn read(&self, part: StateBuffer) -> Result<Cow<'_, [f32]>> {
        let tensor = self.tensor(part);
        if self.device == Device::Cpu {
            return Ok(Cow::Borrowed(host::slice(tensor)?));
        }
        let mut copy = vec![0.0; tensor.numel()];
        tensor.f_copy_data(&mut copy, tensor.numel())?;
        Ok(Cow::Owned(copy))
    }

    /// Makes `change` overwrite a buffer on the host: the buffer itself on the CPU, else a copy, which is then copied
    /// back even when `change` fails.
    pub fn edit<T>(
        &mut self,
        part: StateBuffer,
        change: impl FnOnce(&mut [f32]) -> Result<T>,
    ) -> Result<T> {
        let device = self.device;
        let tensor = match part {
            StateBuffer::Master => &mut self.master,
            StateBuffer::FirstMoment => &mut self.m,
            StateBuffer::SecondMoment => &mut self.v,
            StateBuffer::Running => &mut self.running,
        };
        let changed = if device == Device::Cpu {
            change(host::slice_mut(tensor)?)
        } else {
            let mut copy = vec![0.0; tensor.numel()];
            tensor.f_copy_data(&mut copy, tensor.numel())?;
            let changed = change(&mut copy);
            tch::no_grad(|| tensor.f_copy_(&Tensor::from_slice(&copy)))?;
            changed
        };
        if part == StateBuffer::Master {
            self.refresh_working()?;
        }
        changed
    }

    /// Recomputes the bf16 working copy from the master copy.
    fn refresh_working(&mut self) -> Result<()> {
        if let Some(working) = &mut self.working {
            let prefix = self.master.f_narrow(0, 0, self.layout.working_len as i64)?;
            tch::no_grad(|| working.f_copy_(&prefix))?;
        }
        Ok(())
    }

    /// One optimizer step on the CPU over everything that moves, from summed gradients in the flat layout. `adam` has
    /// the numbers of each class of [`Trainable::classes`].
    pub fn adam(&mut self, grads: &[f32], adam: &[AdamParams]) -> Result<()> {
        let mut working = match &mut self.working {
            Some(working) => Some(host::slice_mut::<bf16>(working)?),
            None => None,
        };
        let split = self.layout.working_len;
        let master = host::slice_mut::<f32>(&mut self.master)?;
        let (m, v) = (
            host::slice_mut::<f32>(&mut self.m)?,
            host::slice_mut::<f32>(&mut self.v)?,
        );
        for UpdateRange { elements, class } in &self.updates {
            let part = || elements.clone();
            let working = working.as_mut().filter(|_| elements.end <= split);
            let working = working.map(|working| &mut working[part()]);
            let (grads, params) = (&grads[part()], &mut master[part()]);
            flat::adam(
                params,
                grads,
                &mut m[part()],
                &mut v[part()],
                working,
                &adam[*class],
            )?;
        }
        Ok(())
    }

    /// Takes a parameter (or moment) out of a flat buffer, in PyTorch's element order.
    pub fn to_pytorch(&self, index: usize, flat: &[f32]) -> Vec<f32> {
        let part = &flat[self.layout.ranges[index].clone()];
        match ohwi(&self.blueprint.params[index]) {
            None => part.to_vec(),
            Some(order) => order.map(|source| part[source]).collect(),
        }
    }

    /// The inverse of [`Params::to_pytorch`]: writes `values`, in PyTorch's order, into a flat buffer.
    pub fn put_pytorch(&self, index: usize, values: &[f32], flat: &mut [f32]) -> Result<()> {
        let part = &mut flat[self.layout.ranges[index].clone()];
        let spec = &self.blueprint.params[index];
        if values.len() != part.len() {
            return Err(Error::Internal(format!(
                "{}: {} values for {:?}",
                spec.name,
                values.len(),
                spec.shape
            )));
        }
        match ohwi(spec) {
            None => part.copy_from_slice(values),
            Some(order) => order
                .zip(values)
                .for_each(|(target, &value)| part[target] = value),
        }
        Ok(())
    }
}

/// For a channels-last weight, the flat position of each element in `[o, i, h, w]` order.
fn ohwi(spec: &ParamSpec) -> Option<impl Iterator<Item = usize>> {
    let &[o, i, h, w] = spec.shape.as_slice() else {
        return None;
    };
    let (o, i, area) = (o as usize, i as usize, (h * w) as usize);
    spec.working.then(move || {
        (0..o).flat_map(move |a| {
            (0..i).flat_map(move |b| (0..area).map(move |p| (a * area + p) * i + b))
        })
    })
}

fn draw(spec: &ParamSpec, rng: &mut ChaCha8Rng, out: &mut [f32]) -> Result<()> {
    let invalid = |e: &dyn std::fmt::Display| {
        Error::Internal(format!("initialisation of {}: {e}", spec.name))
    };
    match spec.init {
        Init::Constant(value) => out.fill(value),
        Init::Uniform(bound) => {
            let uniform = Uniform::new_inclusive(-bound, bound).map_err(|e| invalid(&e))?;
            out.iter_mut().for_each(|x| *x = uniform.sample(rng) as f32);
        }
        Init::KaimingFanOut | Init::KaimingFanIn => {
            let ends = if spec.init == Init::KaimingFanOut {
                spec.shape[0]
            } else {
                spec.shape[1]
            };
            let fan = ends * spec.shape[2..].iter().product::<i64>();
            let normal = Normal::new(0.0, (2.0 / fan as f64).sqrt()).map_err(|e| invalid(&e))?;
            out.iter_mut().for_each(|x| *x = normal.sample(rng) as f32);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;

    fn hybrid(precision: Precision) -> Params {
        Params::new(models::hybrid_for_lesions().1, precision, 7, Device::Cpu).expect("parameters")
    }

    #[test]
    fn layout_has_no_overlaps_and_working_weights_come_first() {
        let params = hybrid(Precision::F32);
        let mut ranges: Vec<_> = params
            .layout
            .ranges
            .iter()
            .cloned()
            .zip(&params.blueprint.params)
            .collect();
        ranges.sort_by_key(|(r, _)| r.start);
        for pair in ranges.windows(2) {
            assert!(pair[0].0.end <= pair[1].0.start);
        }
        for (range, spec) in &ranges {
            assert_eq!(
                spec.working,
                range.end <= params.layout.working_len,
                "{}",
                spec.name
            );
        }
        let numel: usize = params.blueprint.params.iter().map(ParamSpec::numel).sum();
        // 2 x ResNet18 without fc, two projections, attention, norm, two heads.
        assert_eq!(
            numel,
            2 * 11_176_512 + 2 * 131_328 + 263_168 + 512 + 2 * (32_896 + 516)
        );
    }

    #[test]
    fn pytorch_order_round_trips_and_matches_the_view() {
        let params = hybrid(Precision::F32);
        let flat = &*params.read(StateBuffer::Master).expect("master");
        let mut back = vec![0.0; flat.len()];
        for (index, leaf) in params.leaves().iter().enumerate() {
            let values = params.to_pytorch(index, flat);
            let contiguous = leaf.detach().contiguous().view(-1);
            assert_eq!(host::slice::<f32>(&contiguous).expect("slice"), values);
            params
                .put_pytorch(index, &values, &mut back)
                .expect("same length");
        }
        assert_eq!(flat, back);
    }

    #[test]
    fn an_optimizer_step_moves_leaves_in_both_precisions() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut params = hybrid(precision);
            let before: Vec<_> = params.leaves().iter().map(|l| l.detach().copy()).collect();
            let grads = vec![1.0; params.layout.len];
            let adam = AdamParams {
                lr: 0.01,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
                decoupled: false,
                step: 1,
                grad_scale: 1.0,
            };
            params.adam(&grads, &[adam]).expect("step");
            for (old, new) in before.iter().zip(params.leaves()) {
                let moved = (old - new)
                    .to_kind(Kind::Float)
                    .mean(Kind::Float)
                    .double_value(&[]);
                assert!(
                    (moved - 0.01).abs() < 2e-3,
                    "{precision:?} moved by {moved}"
                );
            }
        }
    }
}
