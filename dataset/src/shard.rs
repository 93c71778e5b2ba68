//! One shard file: a safetensors file with the pixels, areas, black cells and masks of some images.
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `areas` | u16 | `[n, G, G, C]` | lesion pixels per cell and class of the target at patch level |
//! | `black` | u8 | `[n, G, G]` | 1 for black cells |
//! | `images` | u8 | `[n, S, S, 3]` | RGB |
//! | `mask` | u8 | `[n, S, S]` | class bits per pixel; optional |
//!
//! The header is written by hand because a shard is written image by image, in any order, before it is complete.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// What determines every offset in a shard file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardShape {
    /// Images in the shard.
    pub images: usize,
    /// Pixels along an edge.
    pub size: usize,
    /// Cells along an edge.
    pub grid: usize,
    /// Classes of the target at patch level; 0 without one.
    pub classes: usize,
    /// Whether masks are stored.
    pub mask: bool,
}

/// One image as it goes into a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardRow<'a> {
    pub areas: &'a [u16],
    pub black: &'a [u8],
    pub image: &'a [u8],
    pub mask: &'a [u8],
}

struct Tensor {
    name: &'static str,
    dtype: &'static str,
    shape: Vec<usize>,
    /// Bytes of one image's part.
    row: usize,
}

impl ShardShape {
    /// The tensors in file order: wide types first, then by name, as the safetensors library writes them.
    fn tensors(self) -> Vec<Tensor> {
        let Self {
            images: n,
            size: s,
            grid: g,
            classes,
            mask,
        } = self;
        let mut tensors = vec![
            Tensor {
                name: "areas",
                dtype: "U16",
                shape: vec![n, g, g, classes],
                row: g * g * classes * 2,
            },
            Tensor {
                name: "black",
                dtype: "U8",
                shape: vec![n, g, g],
                row: g * g,
            },
            Tensor {
                name: "images",
                dtype: "U8",
                shape: vec![n, s, s, 3],
                row: s * s * 3,
            },
        ];
        if mask {
            tensors.push(Tensor {
                name: "mask",
                dtype: "U8",
                shape: vec![n, s, s],
                row: s * s,
            });
        }
        tensors
    }

    /// Length prefix and JSON header, padded with spaces to 8 bytes.
    pub fn header(self) -> Vec<u8> {
        let mut json =
            String::from("{\"__metadata__\":{\"format\":\"fovea-shard\",\"version\":\"1\"}");
        let mut offset = 0;
        for Tensor {
            name,
            dtype,
            shape,
            row,
        } in self.tensors()
        {
            let end = offset + row * self.images;
            let shape = shape
                .iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(",");
            json += &format!(
                ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{offset},{end}]}}"
            );
            offset = end;
        }
        json.push('}');
        while !json.len().is_multiple_of(8) {
            json.push(' ');
        }
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        header
    }

    /// Length of the whole file in bytes.
    pub fn file_bytes(self) -> u64 {
        let data: usize = self
            .tensors()
            .iter()
            .map(|tensor| tensor.row * self.images)
            .sum();
        (self.header().len() + data) as u64
    }

    /// Writes image number `row` at its places. The header is written by [`ShardShape::write_header`].
    pub fn write_row(self, file: &File, row: usize, data: ShardRow) -> std::io::Result<()> {
        let areas: Vec<u8> = data
            .areas
            .iter()
            .flat_map(|area| area.to_le_bytes())
            .collect();
        let parts = [&areas[..], data.black, data.image, data.mask];
        let mut offset = self.header().len();
        for (tensor, part) in self.tensors().iter().zip(parts) {
            debug_assert_eq!(part.len(), tensor.row, "{}", tensor.name);
            file.write_all_at(part, (offset + row * tensor.row) as u64)?;
            offset += tensor.row * self.images;
        }
        Ok(())
    }

    /// Writes what precedes the tensors.
    pub fn write_header(self, file: &File) -> std::io::Result<()> {
        file.write_all_at(&self.header(), 0)
    }
}

/// An opened shard; its content is mapped, not read.
#[derive(Debug)]
pub(crate) struct Shard {
    map: Mmap,
    shape: ShardShape,
    areas: Range<usize>,
    black: Range<usize>,
    images: Range<usize>,
    mask: Option<Range<usize>>,
}

impl Shard {
    /// Maps `path` and checks that its tensors are those of `shape`.
    pub fn open(path: &Path, shape: ShardShape) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        Self::map(&file, path, shape)
    }

    /// As [`Shard::open`] for a file that is open already; `path` is for messages.
    pub fn map(file: &File, path: &Path, shape: ShardShape) -> Result<Self> {
        // SAFETY: shards are written aside and renamed when complete, and nothing in this crate changes one afterwards.
        // Another program that truncates a shard while it is mapped would end this process by SIGBUS; it cannot make
        // the bytes invalid, because every value of a u8 is valid.
        let map = unsafe { Mmap::map(file) }.map_err(|e| Error::io("map", path, e))?;
        let format = |reason: String| Error::ShardFormat {
            path: path.to_owned(),
            reason,
        };
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| format(e.to_string()))?;
        let data = header + 8;
        let mut ranges = shape.tensors().into_iter().map(|tensor| {
            let info = metadata
                .info(tensor.name)
                .ok_or_else(|| format(format!("has no tensor `{}`", tensor.name)))?;
            check_tensor(info, &tensor).map_err(format)?;
            Ok(data + info.data_offsets.0..data + info.data_offsets.1)
        });
        let mut next = || {
            ranges
                .next()
                .unwrap_or_else(|| Err(format("has too few tensors".to_owned())))
        };
        let (areas, black, images) = (next()?, next()?, next()?);
        let mask = if shape.mask { Some(next()?) } else { None };
        drop(ranges);
        Ok(Self {
            map,
            shape,
            areas,
            black,
            images,
            mask,
        })
    }

    fn part(&self, range: &Range<usize>, row: usize) -> &[u8] {
        let all = &self.map[range.clone()];
        let bytes = all.len() / self.shape.images;
        &all[row * bytes..(row + 1) * bytes]
    }

    /// RGB pixels of image number `row`, `[S, S, 3]`.
    pub fn image(&self, row: usize) -> &[u8] {
        self.part(&self.images, row)
    }

    /// Class bits per pixel, `[S, S]`.
    pub fn mask(&self, row: usize) -> Option<&[u8]> {
        self.mask.as_ref().map(|range| self.part(range, row))
    }

    /// 1 for black cells, `[G, G]`.
    pub fn black(&self, row: usize) -> &[u8] {
        self.part(&self.black, row)
    }

    /// Lesion pixels per cell and class, `[G, G, classes]`.
    pub fn areas(&self, row: usize) -> Vec<u16> {
        let bytes = self.part(&self.areas, row);
        bytes
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect()
    }
}

fn check_tensor(info: &TensorInfo, expected: &Tensor) -> std::result::Result<(), String> {
    let dtype = if expected.dtype == "U16" {
        Dtype::U16
    } else {
        Dtype::U8
    };
    if info.dtype == dtype && info.shape == expected.shape {
        return Ok(());
    }
    Err(format!(
        "tensor `{}` is {:?} {:?}, its manifest describes {} {:?}",
        expected.name, info.dtype, info.shape, expected.dtype, expected.shape
    ))
}

/// The name of shard number `index`.
pub(crate) fn file_name(index: usize) -> String {
    format!("shard-{index:05}.safetensors")
}

/// Whether a file in a dataset directory is a shard by its name.
pub(crate) fn is_shard_name(name: &str) -> bool {
    name.strip_prefix("shard-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .is_some_and(|number| number.len() >= 5 && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Compares length and, when `hash` is given, content of a shard file with what is recorded of it.
pub(crate) fn verify(path: &PathBuf, bytes: u64, hash: Option<&str>) -> Result<()> {
    let found = std::fs::metadata(path)
        .map_err(|e| Error::io("open", path, e))?
        .len();
    if found != bytes {
        return Err(Error::ShardSize {
            path: path.clone(),
            expected: bytes,
            found,
        });
    }
    let Some(expected) = hash else { return Ok(()) };
    let found = fovea_files::hash_file(path)?;
    if found == expected {
        return Ok(());
    }
    Err(Error::ShardHash {
        path: path.clone(),
        expected: expected.to_owned(),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ShardShape = ShardShape {
        images: 2,
        size: 8,
        grid: 2,
        classes: 4,
        mask: true,
    };

    fn written(shape: ShardShape) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file_name(0));
        let file = File::create(&path).unwrap();
        for row in [1usize, 0] {
            let areas: Vec<u16> = (0..16).map(|i| i * 1000 + row as u16).collect();
            let image: Vec<u8> = (0..192).map(|i| i as u8 ^ row as u8).collect();
            let mask = vec![row as u8 + 1; 64];
            let row_data = ShardRow {
                areas: &areas,
                black: &[0, 1, row as u8, 0],
                image: &image,
                mask: &mask,
            };
            shape.write_row(&file, row, row_data).unwrap();
        }
        shape.write_header(&file).unwrap();
        (dir, path)
    }

    #[test]
    fn the_safetensors_library_reads_what_is_written_by_hand() {
        for mask in [true, false] {
            let shape = ShardShape { mask, ..SHAPE };
            let (_dir, path) = written(shape);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len() as u64, shape.file_bytes());
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(tensors.len(), if mask { 4 } else { 3 });
            let areas = tensors.tensor("areas").unwrap();
            assert_eq!(
                (areas.dtype(), areas.shape()),
                (Dtype::U16, &[2, 2, 2, 4][..])
            );
            assert_eq!(areas.data()[32..36], [1, 0, 0xe9, 3]);
            assert_eq!(tensors.tensor("images").unwrap().shape(), [2, 8, 8, 3]);
            assert_eq!(tensors.tensor("mask").is_ok(), mask);
        }
    }

    #[test]
    fn a_shard_gives_back_its_rows() {
        let (_dir, path) = written(SHAPE);
        let shard = Shard::open(&path, SHAPE).unwrap();
        assert_eq!(shard.areas(1)[15], 15_001);
        assert_eq!(shard.black(0), [0, 1, 0, 0]);
        assert_eq!(shard.black(1), [0, 1, 1, 0]);
        assert_eq!(shard.image(1)[..3], [1, 0, 3]);
        assert_eq!(shard.mask(0), Some(&[1u8; 64][..]));
        let other = ShardShape { grid: 4, ..SHAPE };
        let text = Shard::open(&path, other).unwrap_err().to_string();
        assert!(
            text.contains(
                "tensor `areas` is U16 [2, 2, 2, 4], its manifest describes U16 [2, 4, 4, 4]"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_flipped_byte_and_a_wrong_length_are_found() {
        let (_dir, path) = written(SHAPE);
        let hash = fovea_files::hash_file(&path).unwrap();
        verify(&path, SHAPE.file_bytes(), Some(&hash)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[400] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let found = fovea_files::hash_file(&path).unwrap();
        let text = verify(&path, SHAPE.file_bytes(), Some(&hash))
            .unwrap_err()
            .to_string();
        for part in [
            "shard-00000.safetensors",
            hash.as_str(),
            found.as_str(),
            "\n  help: ",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        std::fs::write(&path, &bytes[1..]).unwrap();
        let text = verify(&path, SHAPE.file_bytes(), None)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains(&format!(
                "has {} bytes, its manifest says {}",
                bytes.len() - 1,
                bytes.len()
            )),
            "{text}"
        );
    }

    #[test]
    fn a_full_disk_stops_the_writer() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let error = SHAPE.write_header(&file).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    #[test]
    fn only_shards_are_called_shards() {
        assert!(is_shard_name("shard-00012.safetensors"));
        assert!(is_shard_name(&file_name(123_456)));
        for name in [
            "shard-.safetensors",
            "shard-0001.safetensors",
            "shard-0000a.safetensors",
            "weights.safetensors",
            "shard-00001.safetensors.part",
        ] {
            assert!(!is_shard_name(name), "{name}");
        }
    }
}
