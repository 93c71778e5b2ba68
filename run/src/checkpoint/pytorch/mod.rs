//! Reading the state dicts that `torch.save` writes (`.pth`, `.pt`), without running what they contain.
//!
//! PyTorch 1.6 and later write a zip archive: `data.pkl` describes the tensors, `data/KEY` are their elements. Earlier
//! versions, and `_use_new_zipfile_serialization=False`, write several pickles and then the elements. [`pickle`] reads
//! both descriptions as plain data. Memory is bounded: descriptions up to [`MOST_DESCRIPTION`] bytes, tensors up to
//! [`GROWTH`] elements for each byte of the file.

mod pickle;

use std::collections::BTreeMap;
use std::io::Cursor;

use half::{bf16, f16};

use self::pickle::{ElementType, Heap, Id, Refusal, TensorView, Value};
use super::{NamedTensor, TensorData};

/// Longest description of tensors that is read, bytes.
const MOST_DESCRIPTION: usize = 64 << 20;
/// Most elements for each byte of the file: tensors may share a storage, or repeat its elements.
const GROWTH: usize = 4;
/// Most entries that are looked at on the way to the state dict.
const MOST_ENTRIES: usize = 1 << 20;
/// First bytes of a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";
/// The number with which the older format begins (`torch.serialization.MAGIC_NUMBER`), as LONG1 writes it.
const LEGACY: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// Keys under which training scripts store a state dict.
const HOLDERS: [&str; 9] = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "ema",
];

const SAVE: &str = "save the state dict alone with torch.save(model.state_dict(), 'x.pth'), or with safetensors.torch.save_file";

/// Why a file of PyTorch is not read, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub what: String,
    pub help: &'static str,
}

type Result<T> = std::result::Result<T, Unreadable>;

fn unreadable<T>(what: impl Into<String>) -> Result<T> {
    Err(Unreadable {
        what: what.into(),
        help: SAVE,
    })
}

impl From<Refusal> for Unreadable {
    fn from(refusal: Refusal) -> Self {
        let what = match refusal {
            Refusal::Name(name) => format!(
                "its pickle names {name:?}, which is not on the list of names that a state dict needs; nothing of it was run"
            ),
            Refusal::Instruction(op) => format!(
                "its pickle has instruction 0x{op:02x}, which state dicts do not use; nothing of it was run"
            ),
            Refusal::Malformed(why) => format!("its pickle is damaged: {why}"),
        };
        Self { what, help: SAVE }
    }
}

/// Whether bytes begin as a file of PyTorch does, of either format.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(ZIP) || bytes.starts_with(b"\x80")
}

/// The tensors of a state dict, in byte order of their names. Floating-point elements come as f32, others as i64.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<NamedTensor>> {
    let (heap, root, storages) = if bytes.starts_with(ZIP) {
        archive(bytes)?
    } else {
        legacy(bytes)?
    };
    let mut entries = MOST_ENTRIES;
    let views = state_dict(&heap, root, 0, &mut entries)?;
    let mut room = bytes.len().saturating_mul(GROWTH);
    let mut tensors = Vec::with_capacity(views.len());
    for (name, view) in views {
        let data = elements(view, &storages, &mut room).map_err(|why| Unreadable {
            what: format!("tensor {name}: {why}"),
            help: "copy the file again if it was cut off; else save it again",
        })?;
        tensors.push(NamedTensor {
            name: name.to_owned(),
            shape: view.shape.clone(),
            data,
        });
    }
    Ok(tensors)
}

/// The elements of all storages, by key.
type Storages<'a> = BTreeMap<String, &'a [u8]>;

/// Reads a zip archive.
fn archive(bytes: &[u8]) -> Result<(Heap, Id, Storages<'_>)> {
    let damaged = |e: zip::result::ZipError| Unreadable {
        what: format!("it is a damaged PyTorch file or another zip archive: {e}"),
        help: "copy the file again if it was cut off",
    };
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    if zip.file_names().any(|name| name.contains("/code/")) {
        return unreadable("it is a TorchScript program, not a state dict");
    }
    let mut files = BTreeMap::new();
    for index in 0..zip.len() {
        let file = zip.by_index_raw(index).map_err(damaged)?;
        let name = file.name().to_owned();
        let place = (file.data_start(), file.size());
        let is_stored = file.compression() == zip::CompressionMethod::Stored && !file.encrypted();
        // PyTorch compresses nothing.
        let start = place.0.and_then(|start| usize::try_from(start).ok());
        let part = start.zip(usize::try_from(place.1).ok());
        let part = part.and_then(|(start, len)| bytes.get(start..start.checked_add(len)?));
        match part.filter(|_| is_stored) {
            Some(part) => drop(files.insert(name, part)),
            None => return unreadable(format!("its entry {name} is compressed or cut off")),
        }
    }
    let Some(folder) = files.keys().find_map(|name| name.strip_suffix("data.pkl")) else {
        return unreadable("it is a zip archive without data.pkl, so not a file of PyTorch");
    };
    let folder = folder.to_owned();
    let order = files.get(&format!("{folder}byteorder"));
    if order.is_some_and(|order| order.trim_ascii() != b"little") {
        return unreadable("it was written on a big-endian machine");
    }
    let description = files
        .get(&format!("{folder}data.pkl"))
        .copied()
        .unwrap_or_default();
    if description.len() > MOST_DESCRIPTION {
        return unreadable(format!(
            "its data.pkl has {} bytes; at most {MOST_DESCRIPTION} are read",
            description.len()
        ));
    }
    let (heap, root, _) = pickle::read(description)?;
    let data = format!("{folder}data/");
    let storages = files.iter().filter_map(|(name, bytes)| {
        let key = name.strip_prefix(&data)?;
        Some((key.to_owned(), *bytes))
    });
    Ok((heap, root, storages.collect()))
}

/// Reads the older format: magic number, version, machine, description, keys; then for each key a length and elements.
fn legacy(bytes: &[u8]) -> Result<(Heap, Id, Storages<'_>)> {
    if bytes.get(2..).is_none_or(|rest| !rest.starts_with(LEGACY)) {
        return unreadable("it is a Python pickle, but not one that torch.save wrote");
    }
    let mut at = 0;
    let mut next = || {
        let rest = bytes.get(at..).unwrap_or_default();
        // Elements follow the descriptions, so only these may be this long.
        let read = pickle::read(&rest[..rest.len().min(MOST_DESCRIPTION)])?;
        at += read.2;
        Ok::<_, Unreadable>((read.0, read.1))
    };
    let (_magic, version, machine) = (next()?, next()?, next()?);
    if version.0.size(version.1) != Some(1001) {
        return unreadable("it has another version of the older format than 1001");
    }
    if let Value::Dict(entries) = machine.0.get(machine.1) {
        let entry = |(key, value): &(Id, Id)| {
            machine.0.text(*key) == Some("little_endian")
                && *machine.0.get(*value) == Value::Bool(false)
        };
        if entries.iter().any(entry) {
            return unreadable("it was written on a big-endian machine");
        }
    }
    let (heap, root) = next()?;
    let (names, list) = next()?;
    let Value::List(keys) = names.get(list) else {
        return unreadable("its list of storages is missing");
    };
    let mut widths = BTreeMap::new();
    for id in 0..heap.len() {
        if let Value::Storage(storage) = heap.get(id) {
            widths.insert(storage.key.as_str(), storage.element.bytes());
        }
    }
    let mut storages = Storages::new();
    for key in keys {
        let key = names.text(*key).unwrap_or_default();
        let (Some(width), Some(length)) = (
            widths.get(key),
            bytes.get(at..).and_then(|rest| rest.first_chunk()),
        ) else {
            return unreadable(format!("storage {key} is missing: the file is cut off"));
        };
        let len = usize::try_from(u64::from_le_bytes(*length)).ok();
        let len = len.and_then(|len| len.checked_mul(*width));
        let start = at + 8;
        let part = len.and_then(|len| bytes.get(start..start.checked_add(len)?));
        let Some(part) = part else {
            return unreadable(format!(
                "storage {key} is longer than the file: it is cut off"
            ));
        };
        at = start + part.len();
        storages.insert(key.to_owned(), part);
    }
    Ok((heap, root, storages))
}

/// The tensors of the dict at `id`, or of the one that it holds as its model.
fn state_dict<'a>(
    heap: &'a Heap,
    id: Id,
    depth: usize,
    left: &mut usize,
) -> Result<BTreeMap<&'a str, &'a TensorView>> {
    let Value::Dict(entries) = heap.get(id) else {
        return unreadable("it holds no dict of tensors");
    };
    *left = match left.checked_sub(entries.len()) {
        Some(left) => left,
        None => return unreadable(format!("it has more than {MOST_ENTRIES} entries")),
    };
    let named = |(key, value): &(Id, Id)| Some((heap.text(*key)?, *value));
    let named: Vec<(&str, Id)> = entries.iter().filter_map(named).collect();
    let tensors: BTreeMap<&str, &TensorView> = named
        .iter()
        .filter_map(|(name, id)| match heap.get(*id) {
            Value::Tensor(view) => Some((*name, view)),
            _ => None,
        })
        .collect();
    if !tensors.is_empty() {
        return Ok(tensors);
    }
    for holder in HOLDERS.iter().filter(|_| depth < HOLDERS.len()) {
        let held = named.iter().rev().find(|(name, _)| name == holder);
        if let Some((_, id)) = held.filter(|(_, id)| matches!(heap.get(*id), Value::Dict(_))) {
            return state_dict(heap, *id, depth + 1, left);
        }
    }
    let keys: Vec<&str> = named.iter().map(|(name, _)| *name).take(8).collect();
    unreadable(format!(
        "it holds no tensors at its top, nor under one of {} (it has: {})",
        HOLDERS.join(", "),
        keys.join(", ")
    ))
}

/// The elements of a view, row-major. `room`: how many elements may still be made.
fn elements(
    view: &TensorView,
    storages: &Storages<'_>,
    room: &mut usize,
) -> std::result::Result<TensorData, String> {
    let TensorView {
        storage,
        offset,
        shape,
        strides,
    } = view;
    let bytes = storages.get(&storage.key);
    let bytes = bytes.ok_or_else(|| format!("its storage {} is missing", storage.key))?;
    let width = storage.element.bytes();
    if storage
        .len
        .checked_mul(width)
        .is_none_or(|len| len > bytes.len())
    {
        return Err(format!(
            "its storage {} has {} bytes, but {} elements of {width}",
            storage.key,
            bytes.len(),
            storage.len
        ));
    }
    if shape.len() != strides.len() {
        return Err(format!("shape {shape:?} with strides {strides:?}"));
    }
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let count = count.filter(|count| count <= room).ok_or_else(|| {
        format!("shape {shape:?} has more elements than the whole file makes likely (at most {GROWTH} for each byte)")
    })?;
    *room -= count;
    if count > 0 {
        let last = shape
            .iter()
            .zip(strides)
            .try_fold(*offset, |last, (size, stride)| {
                last.checked_add((size - 1).checked_mul(*stride)?)
            });
        if last.is_none_or(|last| last >= storage.len) {
            return Err(format!(
                "shape {shape:?} with strides {strides:?} from {offset} does not lie in its storage of {} elements",
                storage.len
            ));
        }
    }
    let places = Places::new(*offset, shape, strides, count);
    Ok(convert(storage.element, bytes, places))
}

/// The indices of a view's elements in its storage, row-major.
struct Places<'a> {
    shape: &'a [usize],
    strides: &'a [usize],
    index: Vec<usize>,
    at: usize,
    left: usize,
}

impl<'a> Places<'a> {
    fn new(offset: usize, shape: &'a [usize], strides: &'a [usize], count: usize) -> Self {
        Self {
            shape,
            strides,
            index: vec![0; shape.len()],
            at: offset,
            left: count,
        }
    }
}

impl Iterator for Places<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let place = self.at;
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            self.at = self.at.wrapping_add(self.strides[axis]);
            if self.index[axis] < self.shape[axis] {
                break;
            }
            self.at = self
                .at
                .wrapping_sub(self.strides[axis].wrapping_mul(self.shape[axis]));
            self.index[axis] = 0;
        }
        Some(place)
    }
}

/// Elements at places that lie in the storage.
fn convert(element: ElementType, bytes: &[u8], places: Places<'_>) -> TensorData {
    fn all<const N: usize, T>(
        bytes: &[u8],
        places: Places<'_>,
        value: impl Fn([u8; N]) -> T,
    ) -> Vec<T> {
        let elements = bytes.as_chunks::<N>().0;
        let at = |place: usize| value(elements.get(place).copied().unwrap_or([0; N]));
        places.map(at).collect()
    }
    match element {
        ElementType::F32 => TensorData::F32(all(bytes, places, f32::from_le_bytes)),
        ElementType::F64 => TensorData::F32(all(bytes, places, |b| f64::from_le_bytes(b) as f32)),
        ElementType::F16 => TensorData::F32(all(bytes, places, |b| f16::from_le_bytes(b).to_f32())),
        ElementType::Bf16 => {
            TensorData::F32(all(bytes, places, |b| bf16::from_le_bytes(b).to_f32()))
        }
        ElementType::I64 => TensorData::I64(all(bytes, places, i64::from_le_bytes)),
        ElementType::I32 => TensorData::I64(all(bytes, places, |b| i32::from_le_bytes(b).into())),
        ElementType::I16 => TensorData::I64(all(bytes, places, |b| i16::from_le_bytes(b).into())),
        ElementType::I8 => TensorData::I64(all(bytes, places, |b| i8::from_le_bytes(b).into())),
        ElementType::U8 | ElementType::Bool => {
            TensorData::I64(all(bytes, places, |b| u8::from_le_bytes(b).into()))
        }
    }
}

#[cfg(test)]
mod tests;
