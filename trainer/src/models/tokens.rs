//! Turns images and patches into the padded sequences that attention reads: token 0 is the image, the others its
//! patches.

use tch::{Device, Tensor};

use crate::error::Result;

/// Where each token of the padded sequences comes from, and where the patches are in them.
struct TokenLayout {
    /// `[b * t]` rows of `cat([images, patches, one row of zeros])`.
    gather: Vec<i64>,
    /// `[n]` rows of the flattened `[b * t, width]` sequence that hold patches.
    patches: Vec<i64>,
    /// `[b, 1, 1, t]`: 0 for tokens, -inf for padding; none when no sequence is padded.
    padding: Option<Vec<f32>>,
    /// `[b * t]`: 0 for patches, -inf for padding and the image's token, which stands in where an image has no patches.
    bag: Vec<f32>,
    /// Tokens per sequence, the image token included.
    tokens: usize,
}

impl TokenLayout {
    fn new(counts: &[usize]) -> Self {
        let images = counts.len();
        let tokens = 1 + counts.iter().copied().max().unwrap_or(0);
        let total: usize = counts.iter().sum();
        let zeros = (images + total) as i64;
        let mut layout = Self {
            gather: Vec::with_capacity(images * tokens),
            patches: Vec::with_capacity(total),
            padding: None,
            bag: Vec::with_capacity(images * tokens),
            tokens,
        };
        let mut mask = Vec::with_capacity(images * tokens);
        let mut next = images as i64;
        for (image, &count) in counts.iter().enumerate() {
            layout.gather.push(image as i64);
            layout.gather.extend(next..next + count as i64);
            layout
                .gather
                .extend(std::iter::repeat_n(zeros, tokens - 1 - count));
            let first = (image * tokens + 1) as i64;
            layout.patches.extend(first..first + count as i64);
            layout
                .bag
                .push(if count == 0 { 0.0 } else { f32::NEG_INFINITY });
            layout.bag.extend(std::iter::repeat_n(0.0, count));
            layout.bag.resize((image + 1) * tokens, f32::NEG_INFINITY);
            mask.extend(std::iter::repeat_n(0.0, 1 + count));
            mask.extend(std::iter::repeat_n(f32::NEG_INFINITY, tokens - 1 - count));
            next += count as i64;
        }
        if mask.iter().any(|&m| m != 0.0) {
            layout.padding = Some(mask);
        }
        layout
    }
}

/// The layout of a batch, as tensors on the device that computes it.
pub struct Tokens {
    /// Number of images, `b`.
    pub images: i64,
    /// Tokens `t` of each sequence: 1 plus the largest number of patches of an image.
    pub per_image: i64,
    /// `[b * t]` i64: rows of `cat([images, patches, one row of zeros])`.
    pub gather: Tensor,
    /// `[n]` i64: rows of the flattened `[b * t, width]` sequence that hold patches.
    pub patches: Tensor,
    /// `[b, 1, 1, t]` f32: 0 for tokens, -inf for padding; none when no sequence is padded.
    pub padding: Option<Tensor>,
    /// `[b, t, 1]` f32: 0 for patches, -inf for padding and for the image's token, which is 0 where an image has no
    /// patches; so each sequence has a 0.
    pub bag: Tensor,
}

impl Tokens {
    /// The layout for images with these numbers of patches, on `device`.
    pub fn new(counts: &[usize], device: Device) -> Result<Self> {
        let layout = TokenLayout::new(counts);
        let (images, per_image) = (counts.len() as i64, layout.tokens as i64);
        let indices = |values: &[i64]| Tensor::from_slice(values).f_to_device(device);
        let padding = |mask: &Vec<f32>| {
            let mask = Tensor::from_slice(mask).f_view([images, 1, 1, per_image])?;
            mask.f_to_device(device)
        };
        Ok(Self {
            images,
            per_image,
            bag: Tensor::from_slice(&layout.bag)
                .f_view([images, per_image, 1])?
                .f_to_device(device)?,
            gather: indices(&layout.gather)?,
            patches: indices(&layout.patches)?,
            padding: layout.padding.as_ref().map(padding).transpose()?,
        })
    }

    /// Further handles of all tensors, which share their memory.
    pub fn tensors(&self) -> Vec<Tensor> {
        let tensors = [
            Some(&self.gather),
            Some(&self.patches),
            Some(&self.bag),
            self.padding.as_ref(),
        ];
        tensors
            .into_iter()
            .flatten()
            .map(Tensor::shallow_clone)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_images_are_padded_and_masked() {
        let layout = TokenLayout::new(&[2, 1]);
        assert_eq!(layout.tokens, 3);
        assert_eq!(layout.gather, [0, 2, 3, 1, 4, 5]); // 5 is the row of zeros
        assert_eq!(layout.patches, [1, 2, 4]);
        let padding = layout.padding.expect("the second image is shorter");
        assert_eq!(padding.iter().filter(|m| m.is_infinite()).count(), 1);
        assert!(padding[5].is_infinite());
        let none = f32::NEG_INFINITY;
        assert_eq!(layout.bag, [none, 0.0, 0.0, none, 0.0, none]);
        assert_eq!(TokenLayout::new(&[0, 1]).bag, [0.0, none, none, 0.0]);
    }

    #[test]
    fn even_images_need_no_mask() {
        let layout = TokenLayout::new(&[3, 3]);
        assert!(layout.padding.is_none());
        assert_eq!(layout.gather, [0, 2, 3, 4, 1, 5, 6, 7]);
    }
}
