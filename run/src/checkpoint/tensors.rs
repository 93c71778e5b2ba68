//! Tensors on their way to and from safetensors, and the hash that names a set of weights.

use std::collections::BTreeSet;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};

use super::{Error, Result};

#[cfg(not(target_endian = "little"))]
compile_error!("checkpoints are little-endian; this machine would need to swap bytes");

/// The elements of a tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// Parameters, buffers and moments.
    F32(Vec<f32>),
    /// Counters, such as `num_batches_tracked`.
    I64(Vec<i64>),
}

impl TensorData {
    /// The elements as they are written, little-endian.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice(v),
            Self::I64(v) => bytemuck::cast_slice(v),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::I64(_) => Dtype::I64,
        }
    }
}

/// A tensor with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name of the parameter or buffer, with dots between modules.
    pub name: String,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<usize>,
    /// Its elements, as many as the product of the dimensions.
    pub data: TensorData,
}

impl NamedTensor {
    fn from_view(name: String, view: &TensorView<'_>) -> Result<Self> {
        let bytes = view.data();
        let data = match view.dtype() {
            Dtype::F32 => TensorData::F32(copy(bytes)),
            Dtype::I64 => TensorData::I64(copy(bytes)),
            // Half-precision weights from elsewhere: every value has an exact f32.
            Dtype::F16 => TensorData::F32(copy::<f16>(bytes).iter().map(|v| v.to_f32()).collect()),
            Dtype::BF16 => {
                TensorData::F32(copy::<bf16>(bytes).iter().map(|v| v.to_f32()).collect())
            }
            other => {
                let reason = format!("its type is {other}");
                return Err(Error::Tensor { name, reason });
            }
        };
        Ok(Self {
            name,
            shape: view.shape().to_vec(),
            data,
        })
    }
}

/// The elements that bytes at any alignment are.
fn copy<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut elements = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut elements).copy_from_slice(bytes);
    elements
}

/// blake3 over a set of weights, in hex: over what they are, not over the file they are in, so that
/// the same weights have the same hash in every file. It is the hash of
///
/// ```text
/// "fovea weights v1\n"
/// number of tensors                                                          u64
/// per tensor, in byte order of the names:
///     length of the name, name, length of the dtype, dtype ("F32" or "I64")  u64, bytes, u64, bytes
///     number of dimensions, dimensions                                       u64, u64 each
///     number of bytes, elements in row-major order                           u64, bytes
/// ```
///
/// with all numbers little-endian. The tensors may come in any order; their names are distinct.
pub fn weights_blake3(tensors: &[NamedTensor]) -> String {
    let mut tensors: Vec<&NamedTensor> = tensors.iter().collect();
    tensors.sort_by_key(|tensor| &tensor.name);
    let mut hasher = blake3::Hasher::new();
    let number = |hasher: &mut blake3::Hasher, n: usize| {
        hasher.update(&(n as u64).to_le_bytes());
    };
    let bytes = |hasher: &mut blake3::Hasher, bytes: &[u8]| {
        number(hasher, bytes.len());
        hasher.update(bytes);
    };
    hasher.update(b"fovea weights v1\n");
    number(&mut hasher, tensors.len());
    for NamedTensor { name, shape, data } in tensors {
        bytes(&mut hasher, name.as_bytes());
        bytes(&mut hasher, data.dtype().to_string().as_bytes());
        number(&mut hasher, shape.len());
        for dimension in shape {
            number(&mut hasher, *dimension);
        }
        bytes(&mut hasher, data.bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// A safetensors file ready to be written: its header, and the tensors in the order of their data.
pub(super) struct Encoded<'a> {
    pub(super) header: Vec<u8>,
    pub(super) tensors: Vec<&'a NamedTensor>,
}

impl Encoded<'_> {
    pub(super) fn bytes(&self) -> u64 {
        let data: usize = self.tensors.iter().map(|t| t.data.bytes().len()).sum();
        (self.header.len() + data) as u64
    }
}

/// Lays tensors out as the safetensors library does: by falling alignment, then by name. The same
/// tensors give the same bytes whatever order they come in.
pub(super) fn encode(tensors: &[NamedTensor]) -> Result<Encoded<'_>> {
    let mut names = BTreeSet::new();
    for tensor in tensors {
        check(tensor, names.insert(&tensor.name))?;
    }
    let mut tensors: Vec<&NamedTensor> = tensors.iter().collect();
    let order = |t: &&NamedTensor| (std::cmp::Reverse(t.data.dtype()), t.name.clone());
    tensors.sort_by_cached_key(order);
    let mut offset = 0;
    let info = |tensor: &&NamedTensor| {
        let start = offset;
        offset += tensor.data.bytes().len();
        let info = TensorInfo {
            dtype: tensor.data.dtype(),
            shape: tensor.shape.clone(),
            data_offsets: (start, offset),
        };
        (tensor.name.clone(), info)
    };
    let infos = tensors.iter().map(info).collect();
    let refused = |reason: String| Error::Tensor {
        name: "(all)".to_string(),
        reason,
    };
    let metadata = Metadata::new(None, infos).map_err(|e| refused(e.to_string()))?;
    let json = serde_json::to_vec(&metadata).map_err(|e| refused(e.to_string()))?;
    let padded = json.len().next_multiple_of(8);
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend_from_slice(&json);
    header.resize(8 + padded, b' ');
    Ok(Encoded { header, tensors })
}

fn check(tensor: &NamedTensor, name_is_new: bool) -> Result<()> {
    let elements = tensor
        .shape
        .iter()
        .try_fold(1_usize, |n, d| n.checked_mul(*d));
    let reason = if !name_is_new {
        "the name is used twice".to_string()
    } else if tensor.name == "__metadata__" {
        "safetensors keeps this name for itself".to_string()
    } else if elements != Some(tensor.data.len()) {
        let (shape, len) = (&tensor.shape, tensor.data.len());
        format!("its shape is {shape:?}, but it has {len} elements")
    } else {
        return Ok(());
    };
    let name = tensor.name.clone();
    Err(Error::Tensor { name, reason })
}

/// The tensors of a safetensors file, in byte order of their names.
pub(super) fn decode(bytes: &[u8]) -> std::result::Result<Vec<NamedTensor>, DecodeError> {
    let file = safetensors::SafeTensors::deserialize(bytes)
        .map_err(|e| DecodeError::Format(e.to_string()))?;
    let tensors = file.tensors().into_iter();
    let mut tensors = tensors
        .map(|(name, view)| NamedTensor::from_view(name, &view))
        .collect::<Result<Vec<_>>>()
        .map_err(DecodeError::Tensor)?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Why a file's bytes are no tensors; the caller knows which file.
pub(super) enum DecodeError {
    Format(String),
    Tensor(Error),
}
