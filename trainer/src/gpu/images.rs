//! The dataset's images in device memory: all of them if there is room, else those of one batch at a time, uploaded
//! from page-locked memory while the GPU computes the batch before. Measurements make their images there.

use std::sync::Arc;

use fovea_dataset::Dataset;
use fovea_kernels::cuda::{
    DeviceBuffer, Event, ImageRecord, Kernels, PinnedBuffer, Stream, wait_event,
};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// What images may take of the memory that is free at the start; the rest is for the model and its activations.
const SHARE: f64 = 0.5;
/// Images of a batch that are on their way while the one before is computed.
const SLOTS: usize = 2;

/// Where a batch's images are.
pub struct Placed {
    /// Address of `[count]` [`ImageRecord`].
    pub records: u64,
    /// How many records there are.
    pub count: usize,
    /// Record of each image that was asked for.
    pub index: Vec<u32>,
}

/// How many images there are, all square, and how large they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetShape {
    /// Images.
    pub count: usize,
    /// Pixels along an edge.
    pub size: usize,
    /// Pixels along an edge of a patch.
    pub patch: usize,
}

impl SetShape {
    /// Of a dataset.
    fn of(data: &Dataset) -> Self {
        Self {
            count: data.len(),
            size: data.size(),
            patch: data.patch(),
        }
    }

    /// Bytes of an image.
    pub fn image_bytes(self) -> usize {
        self.size * self.size * 3
    }
}

/// Images in device memory.
pub struct Images {
    shape: SetShape,
    store: ImageStore,
}

enum ImageStore {
    All {
        records: DeviceBuffer,
        /// Keeps the pixels.
        _pixels: DeviceBuffer,
    },
    Some(Box<ImageStaging>),
}

struct ImageStaging {
    data: Arc<Dataset>,
    kernels: Arc<Kernels>,
    copies: Stream,
    slots: Vec<Slot>,
    next: usize,
}

/// Room for the images of one batch.
struct Slot {
    host: PinnedBuffer,
    pixels: DeviceBuffer,
    records: DeviceBuffer,
    uploaded: Event,
    /// The batch that was here has been cut.
    free: Event,
}

impl Images {
    /// Uploads all of them, if they fit.
    pub fn new(kernels: &Arc<Kernels>, data: Arc<Dataset>) -> Result<Self> {
        let room = (kernels.free_bytes()? as f64 * SHARE) as usize;
        Self::within(kernels, data, room)
    }

    /// The same with a limit in bytes.
    pub fn within(kernels: &Arc<Kernels>, data: Arc<Dataset>, room: usize) -> Result<Self> {
        let shape = SetShape::of(&data);
        let store = if shape.count * shape.image_bytes() <= room {
            all(kernels, &data)?
        } else {
            let slots = (0..SLOTS).map(|_| Slot::new(kernels, 0, shape.size));
            ImageStore::Some(Box::new(ImageStaging {
                data,
                kernels: Arc::clone(kernels),
                copies: Stream::new(kernels)?,
                slots: slots.collect::<Result<_>>()?,
                next: 0,
            }))
        };
        Ok(Self { shape, store })
    }

    /// Images of random pixels, made where they stay. `device` is where libtorch finds the memory of `kernels`; what it
    /// puts on its stream is to be waited for before another stream reads them.
    pub fn random(kernels: &Arc<Kernels>, shape: SetShape, device: Device) -> Result<Self> {
        let bytes = shape.image_bytes();
        let pixels = DeviceBuffer::uninit(kernels, shape.count * bytes)?;
        for image in 0..shape.count {
            let start = (pixels.address() + (image * bytes) as u64) as *const u8;
            // SAFETY: memory of this device and this length, which outlives the tensor.
            let mut values =
                unsafe { Tensor::f_from_blob(start, &[bytes as i64], &[1], Kind::Uint8, device)? };
            let _ = values.f_random_()?;
        }
        let records = records(pixels.address(), shape.count, shape.size);
        Ok(Self {
            shape,
            store: ImageStore::All {
                records: DeviceBuffer::new(kernels, &records)?,
                _pixels: pixels,
            },
        })
    }

    /// Pixels along an edge.
    pub fn size(&self) -> usize {
        self.shape.size
    }

    /// Pixels along an edge of a patch.
    pub fn patch(&self) -> usize {
        self.shape.patch
    }

    /// How many images are there all the time, of how many.
    pub fn resident(&self) -> (usize, usize) {
        let all = self.shape.count;
        match self.store {
            ImageStore::All { .. } => (all, all),
            ImageStore::Some(_) => (0, all),
        }
    }

    /// Brings these images (of the dataset) where `stream` can read them. What was placed the time before last may be
    /// overwritten: [`Images::cut`] says when it is no longer read.
    pub fn place(&mut self, images: &[u32], stream: usize) -> Result<Placed> {
        let count = self.shape.count;
        if let Some(beyond) = images.iter().find(|i| **i as usize >= count) {
            return Err(Error::Internal(format!("image {beyond} of {count}")));
        }
        match &mut self.store {
            ImageStore::All { records, .. } => Ok(Placed {
                records: records.address(),
                count,
                index: images.to_vec(),
            }),
            ImageStore::Some(staging) => staging.place(images, stream),
        }
    }

    /// What was placed last has been read by the work that `stream` holds now.
    pub fn cut(&mut self, stream: usize) -> Result<()> {
        if let ImageStore::Some(staging) = &mut self.store {
            let last = (staging.next + SLOTS - 1) % SLOTS;
            // SAFETY: the caller's stream, which lives as long as the process.
            unsafe { staging.slots[last].free.record(stream) }?;
        }
        Ok(())
    }
}

fn records(first: u64, count: usize, size: usize) -> Vec<ImageRecord> {
    let bytes = (size * size * 3) as u64;
    (0..count as u64)
        .map(|i| ImageRecord {
            data: first + i * bytes,
            height: size as u32,
            width: size as u32,
        })
        .collect()
}

fn all(kernels: &Arc<Kernels>, data: &Dataset) -> Result<ImageStore> {
    let bytes = SetShape::of(data).image_bytes();
    let pixels = DeviceBuffer::uninit(kernels, data.len() * bytes)?;
    let uploads = Stream::new(kernels)?;
    // Two page-locked pieces: one is filled while the other is on its way.
    let mut pieces = [
        PinnedBuffer::new(kernels, bytes)?,
        PinnedBuffer::new(kernels, bytes)?,
    ];
    let sent = [Event::new(kernels)?, Event::new(kernels)?];
    for image in 0..data.len() {
        let which = image % 2;
        sent[which].synchronize()?;
        let piece = &mut pieces[which];
        piece
            .as_mut_slice::<u8>()
            .copy_from_slice(data.image(image).data);
        let target = pixels.address() + (image * bytes) as u64;
        // SAFETY: both sides have this many bytes; the piece is not touched before its event, and both outlive the
        // wait below.
        unsafe {
            kernels.copy_to_device_async(uploads.handle(), target, piece.as_ptr(), bytes)?;
            sent[which].record(uploads.handle())?;
        }
    }
    uploads.synchronize()?;
    Ok(ImageStore::All {
        records: DeviceBuffer::new(kernels, &records(pixels.address(), data.len(), data.size()))?,
        _pixels: pixels,
    })
}

impl Slot {
    fn new(kernels: &Arc<Kernels>, images: usize, size: usize) -> Result<Self> {
        let bytes = images * size * size * 3;
        let pixels = DeviceBuffer::uninit(kernels, bytes)?;
        Ok(Self {
            host: PinnedBuffer::new(kernels, bytes)?,
            records: DeviceBuffer::new(kernels, &records(pixels.address(), images, size))?,
            pixels,
            uploaded: Event::new(kernels)?,
            free: Event::new(kernels)?,
        })
    }
}

impl ImageStaging {
    fn place(&mut self, images: &[u32], stream: usize) -> Result<Placed> {
        let data = &self.data;
        let bytes = SetShape::of(data).image_bytes();
        let slot = &mut self.slots[self.next];
        slot.free.synchronize()?;
        if slot.pixels.bytes() < images.len() * bytes {
            *slot = Slot::new(&self.kernels, images.len(), data.size())?;
        }
        self.next = (self.next + 1) % SLOTS;
        let total = images.len() * bytes;
        let pieces = slot.host.as_mut_slice::<u8>().chunks_exact_mut(bytes);
        for (piece, &image) in pieces.zip(images) {
            piece.copy_from_slice(data.image(image as usize).data);
        }
        // SAFETY: both sides have at least this many bytes. The host side is written next after `free`, which is
        // recorded behind the wait for this copy; so is the device side.
        unsafe {
            let (device, host) = (slot.pixels.address(), slot.host.as_ptr());
            self.kernels
                .copy_to_device_async(self.copies.handle(), device, host, total)?;
            slot.uploaded.record(self.copies.handle())?;
            wait_event(stream, &slot.uploaded)?;
        }
        Ok(Placed {
            records: slot.records.address(),
            count: images.len(),
            index: (0..images.len() as u32).collect(),
        })
    }
}
