//! The kernels' work written with libtorch alone: one operation after another, each of which passes over memory. It
//! runs on any device. The tests compare it with the twins.

use fovea_kernels::flat::AdamParams;
use fovea_kernels::loss::{LossSettings, effective_number_weights};
use fovea_kernels::{IMAGENET_MEAN, IMAGENET_STD};
use tch::{Kind, Reduction, Tensor};

use fovea_trainer::Result;

/// Crops, mirrors and normalises by indexing: `images` `[i, h, w, 3]` u8, `which` `[n]`, `rows` and `columns` `[n, s]`
/// i64 (descending columns mirror) -> `[n, s, s, 3]`. Turns and colour jitter are left out.
pub fn crop(
    images: &Tensor,
    which: &Tensor,
    rows: &Tensor,
    columns: &Tensor,
    kind: Kind,
) -> Result<Tensor> {
    let at = [
        which.f_view([-1, 1, 1])?,
        rows.f_unsqueeze(2)?,
        columns.f_unsqueeze(1)?,
    ];
    let patches = images.f_index(&at.map(Some))?;
    normalise(&patches.f_to_kind(Kind::Float)?, kind)
}

/// `(x / 255 - mean) / std` of `[.., 3]` f32 in 0..255.
pub fn normalise(pixels: &Tensor, kind: Kind) -> Result<Tensor> {
    let channels = |values: [f32; 3]| Tensor::from_slice(&values).f_to_device(pixels.device());
    let mut unit = pixels.f_div_scalar(255.0)?;
    let mut centred = unit.f_sub_(&channels(IMAGENET_MEAN)?)?;
    Ok(centred.f_div_(&channels(IMAGENET_STD)?)?.f_to_kind(kind)?)
}

/// Antialiased bilinear resize of `[n, h, w, 3]` u8 -> `[n, s, s, 3]` f32 in 0..255.
pub fn resize(images: &Tensor, size: i64) -> Result<Tensor> {
    let images = images.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?;
    let resized = images.f_internal_upsample_bilinear2d_aa([size, size], false, None, None)?;
    Ok(resized.f_permute([0, 2, 3, 1])?)
}

/// Mirrors where `flip` `[n, 1, 1, 1]` is true, and normalises: `[n, s, s, 3]` f32 in 0..255 -> the same shape. Turns
/// and colour jitter are left out.
pub fn view(resized: &Tensor, flip: &Tensor, kind: Kind) -> Result<Tensor> {
    let mirrored = resized.f_flip([2])?.f_where_self(flip, resized)?;
    normalise(&mirrored, kind)
}

/// The bits of the labels `[n]` i64 as `[n, classes]` f32, 0 or 1.
fn bits(targets: &Tensor, classes: usize) -> Result<Tensor> {
    let masks: Vec<i64> = (0..classes).map(|class| 1 << class).collect();
    let masks = Tensor::from_slice(&masks).f_to_device(targets.device())?;
    let bits = targets.f_unsqueeze(1)?.f_bitwise_and_tensor(&masks)?;
    Ok(bits.f_ne(0)?.f_to_kind(Kind::Float)?)
}

/// Summed loss called `name` over `[n, c]` logits, and `scale` times its gradient by autograd. `labels` are `[n]` i64: bits
/// of classes, or the index of the class for `cross_entropy`.
pub fn loss(
    name: &str,
    logits: &Tensor,
    labels: &Tensor,
    params: &LossSettings,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let on_device = |values: &[f32]| Tensor::from_slice(values).f_to_device(logits.device());
    let plain = LossSettings::plain(params.alpha.len());
    match name {
        "class_balanced" => {
            let weights = LossSettings {
                gamma: params.gamma,
                alpha: effective_number_weights(params.beta, &params.positives),
                ..plain
            };
            focal(logits, labels, &weights, scale)
        }
        "bce" | "cross_entropy" => {
            let z = logits.f_detach()?.f_set_requires_grad(true)?;
            let weight = on_device(&params.alpha)?;
            let loss = if name == "bce" {
                let y = bits(labels, params.alpha.len())?;
                let (weight, pos_weight) = (Some(weight), Some(on_device(&params.pos_weight)?));
                z.f_binary_cross_entropy_with_logits(&y, weight, pos_weight, Reduction::Sum)?
            } else {
                let smoothing = f64::from(params.label_smoothing);
                z.f_cross_entropy_loss(labels, Some(weight), Reduction::Sum, -100, smoothing)?
            };
            let gradient = Tensor::f_run_backward(&[&loss], &[&z], false, false)?;
            Ok((loss.f_detach()?, gradient[0].f_mul_scalar(scale)?))
        }
        _ => focal(logits, labels, params, scale),
    }
}

/// Summed focal loss over `[n, c]` logits, and `scale` times its gradient by autograd.
fn focal(
    logits: &Tensor,
    targets: &Tensor,
    params: &LossSettings,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let z = logits.f_detach()?.f_set_requires_grad(true)?;
    let y = bits(targets, params.alpha.len())?;
    let alpha = Tensor::from_slice(&params.alpha).f_to_device(logits.device())?;
    let (positive, negative) = (
        f64::from(params.positive_weight),
        f64::from(params.negative_weight),
    );
    let weight = (y
        .f_mul_scalar(positive - negative)?
        .f_add_scalar(negative)?)
    .f_mul(&alpha)?;
    let none = None::<&Tensor>;
    let bce = z.f_binary_cross_entropy_with_logits(&y, none, none, Reduction::None)?;
    let p = z.f_sigmoid()?;
    let both = p.f_mul(&y)?.f_mul_scalar(2.0)?;
    // 1 - p_t = p + y - 2 p y
    let missed = p.f_add(&y)?.f_sub(&both)?;
    let focus = missed.f_pow_tensor_scalar(f64::from(params.gamma))?;
    let loss = bce.f_mul(&focus)?.f_mul(&weight)?.f_sum(Kind::Float)?;
    let gradient = Tensor::f_run_backward(&[&loss], &[&z], false, false)?;
    Ok((loss.f_detach()?, gradient[0].f_mul_scalar(scale)?))
}

/// One step of Adam or AdamW on flat tensors, operation by operation like PyTorch's foreach implementation.
pub fn adam(
    [params, grads, m, v]: [&Tensor; 4],
    working: Option<&Tensor>,
    adam: &AdamParams,
) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let [mut params, mut m, mut v] = [params, m, v].map(Tensor::shallow_clone);
    let mut grads = grads.f_mul_scalar(adam.grad_scale)?;
    if adam.decoupled {
        let _ = params.f_mul_scalar_(1.0 - adam.lr * adam.weight_decay)?;
    } else {
        let _ = grads.f_add_(&params.f_mul_scalar(adam.weight_decay)?)?;
    }
    let _ = m.f_lerp_(&grads, 1.0 - adam.beta1)?;
    let squares = grads.f_mul(&grads)?.f_mul_scalar_(1.0 - adam.beta2)?;
    let _ = v.f_mul_scalar_(adam.beta2)?.f_add_(&squares)?;
    let correction = |beta: f64| 1.0 - beta.powf(adam.step as f64);
    let mut root = v.f_sqrt()?;
    let mut root = root.f_div_scalar_(correction(adam.beta2).sqrt())?;
    let denominator = root.f_add_scalar_(adam.eps)?;
    let update = m.f_mul_scalar(-adam.lr / correction(adam.beta1))?;
    let _ = params.f_addcdiv_(&update, &denominator)?;
    if let Some(working) = working {
        working.shallow_clone().f_copy_(&params)?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use fovea_kernels::loss::LOSSES;
    use fovea_kernels::{
        Augment, BatchMut, CropSpec, ImageU8, flat, global_view, patch_crop, resize_antialias,
    };
    use fovea_task::Label;
    use half::bf16;

    /// `n` numbers in -1..=1, by hash.
    fn noise(n: usize, salt: u32) -> Vec<f32> {
        let word = |k| fovea_kernels::philox::philox4x32([k, salt, 0, 0], [5, 6])[0];
        (0..n as u32)
            .map(|k| word(k) as f32 / u32::MAX as f32 * 2.0 - 1.0)
            .collect()
    }

    fn pixels(n: usize) -> Vec<u8> {
        noise(n, 1)
            .iter()
            .map(|x| ((x + 1.0) * 127.5) as u8)
            .collect()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        let flat = tensor.to_kind(Kind::Float).contiguous().view([-1]);
        Vec::<f32>::try_from(&flat).unwrap()
    }

    /// Largest absolute difference between two slices of one length.
    fn off(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max)
    }

    const SIDE: usize = 20;
    const CUT: usize = 8;

    #[test]
    fn crops_are_those_of_the_twin() {
        let data = pixels(2 * SIDE * SIDE * 3);
        let images: Vec<ImageU8<'_>> = data
            .chunks(SIDE * SIDE * 3)
            .map(|data| ImageU8 {
                data,
                height: SIDE,
                width: SIDE,
            })
            .collect();
        let specs: Vec<CropSpec> = [(0, 3, 12), (1, 0, 0), (1, 12, 5)]
            .into_iter()
            .map(|(image, y, x)| CropSpec {
                image,
                y,
                x,
                sample_id: 0,
            })
            .collect();
        let side = SIDE as i64;
        let tensor = Tensor::from_slice(&data).view([2, side, side, 3]);
        let which = Tensor::from_slice(&[0i64, 1, 1]);
        let lines = |starts: [i64; 3]| {
            let all = starts.iter().flat_map(|start| *start..*start + CUT as i64);
            Tensor::from_slice(&all.collect::<Vec<i64>>()).view([3, CUT as i64])
        };
        let (rows, columns) = (lines([3, 0, 12]), lines([12, 0, 5]));
        let got = crop(&tensor, &which, &rows, &columns, Kind::Float).unwrap();
        let mut want = vec![0.0; 3 * CUT * CUT * 3];
        patch_crop(&images, &specs, CUT, 0, 0, None, BatchMut::F32(&mut want)).unwrap();
        assert!(off(&values(&got), &want) < 1e-6);

        // In this epoch the twin mirrors every patch: the draw flips for this seed and id.
        let augment = Augment {
            flip: true,
            ..Augment::default()
        };
        let flips = |epoch| fovea_kernels::draw(0, epoch, 0, &augment).flip;
        let epoch = (0..64).find(|epoch| flips(*epoch)).unwrap();
        let got = crop(&tensor, &which, &rows, &columns.flip([1]), Kind::BFloat16).unwrap();
        let mut want = vec![bf16::ZERO; 3 * CUT * CUT * 3];
        let out = BatchMut::Bf16(&mut want);
        patch_crop(&images, &specs, CUT, 0, epoch, Some(&augment), out).unwrap();
        let want: Vec<f32> = want.iter().map(|x| x.to_f32()).collect();
        assert!(off(&values(&got), &want) < 0.02, "one rounding to bf16");
    }

    #[test]
    fn resized_views_are_those_of_the_twin() {
        let data = pixels(SIDE * SIDE * 3);
        let image = ImageU8 {
            data: &data,
            height: SIDE,
            width: SIDE,
        };
        let side = SIDE as i64;
        let tensor = Tensor::from_slice(&data).view([1, side, side, 3]);
        let got = resize(&tensor, CUT as i64).unwrap();
        let want = resize_antialias(&image, CUT, CUT).unwrap();
        assert!(off(&values(&got), &want) < 1e-3, "of 255");
        let (stays, turns) = (Tensor::from_slice(&[false]), Tensor::from_slice(&[true]));
        let [stays, turns] = [stays, turns].map(|flag| flag.view([1, 1, 1, 1]));
        let mut plain = vec![0.0; want.len()];
        global_view(&want, CUT, 0, 0, 0, None, BatchMut::F32(&mut plain)).unwrap();
        let got_plain = view(&got, &stays, Kind::Float).unwrap();
        assert!(off(&values(&got_plain), &plain) < 1e-4);
        let mirrored = view(&got, &turns, Kind::Float).unwrap();
        assert!(off(&values(&mirrored.flip([2])), &plain) < 1e-4);
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_twins() {
        let n = 57;
        let logits: Vec<f32> = noise(n * 4, 2).iter().map(|x| x * 5.0).collect();
        for (entry, gamma) in LOSSES
            .iter()
            .flat_map(|entry| [2.0, 1.5, 0.0].map(|g| (entry, g)))
        {
            let kinds = match entry.kind {
                fovea_task::Kind::AnyOf => 16,
                fovea_task::Kind::OneOf => 4,
            };
            let labels: Vec<Label> = (0..n as u64).map(|k| Label(k * 7 % kinds)).collect();
            let targets: Vec<i64> = labels.iter().map(|label| label.0 as i64).collect();
            let settings = LossSettings {
                gamma,
                alpha: vec![0.5, 1.0, 2.0, 0.25],
                positive_weight: 0.8,
                negative_weight: 0.3,
                pos_weight: vec![2.0, 0.5, 1.0, 4.0],
                label_smoothing: 0.1,
                beta: 0.99,
                positives: vec![4, 90, 30, 500],
            };
            let mut want = vec![0.0; n * 4];
            let twin = (entry.build)(&settings).unwrap();
            let want_loss = twin.host(&logits, &labels, 0.125, &mut want).unwrap();
            let z = Tensor::from_slice(&logits).view([n as i64, 4]);
            let targets = Tensor::from_slice(&targets);
            let (sum, gradient) = loss(entry.name, &z, &targets, &settings, 0.125).unwrap();
            let off_by = (sum.double_value(&[]) / want_loss - 1.0).abs();
            assert!(off_by < 1e-5, "{} {gamma}: {off_by:e}", entry.name);
            assert!(
                off(&values(&gradient), &want) < 1e-6,
                "{} {gamma}",
                entry.name
            );
        }
    }

    #[test]
    fn adam_is_that_of_the_twin() {
        for decoupled in [false, true] {
            let n = 1000;
            let adam_params = AdamParams {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.1,
                decoupled,
                step: 3,
                grad_scale: 0.5,
            };
            let mut host = [3, 4, 5, 6].map(|salt| noise(n, salt));
            host[3].iter_mut().for_each(|v| *v = v.abs());
            let device = host.each_ref().map(|values| Tensor::from_slice(values));
            let working = Tensor::zeros([n as i64], (Kind::BFloat16, tch::Device::Cpu));
            let [p, g, m, v] = &device;
            adam([p, g, m, v], Some(&working), &adam_params).unwrap();
            let [params, grads, m, v] = &mut host;
            let mut copy = vec![bf16::ZERO; n];
            flat::adam(params, grads, m, v, Some(&mut copy), &adam_params).unwrap();
            for (got, want) in device.iter().zip(&host) {
                assert!(off(&values(got), want) < 1e-6);
            }
            let copy: Vec<f32> = copy.iter().map(|x| x.to_f32()).collect();
            assert!(off(&values(&working), &copy) < 0.01, "one rounding to bf16");
        }
    }
}
