//! The dataset's images in device memory: all of them if there is room, else those of one batch at a time, uploaded
//! from page-locked memory while the GPU computes the batch before. Measurements make random images there instead.

use std::sync::Arc;

use fovea_dataset::Dataset;
use fovea_kernels::cuda::{
    DeviceBuffer, Event, ImageRecord, Kernels, PinnedBuffer, Stream, wait_event,
};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Share of the free memory at the start that images may take; the rest is for the model and its activations.
const SHARE: f64 = 0.5;
/// Batches whose images have room: one is uploaded while the one before is computed.
const SLOTS: usize = 2;

/// Where a batch's images are.
pub struct Placed {
    /// Address of `[count]` [`ImageRecord`].
    pub records: u64,
    /// How many records there are.
    pub count: usize,
    /// Index of the record of each image that was asked for.
    pub index: Vec<u32>,
}

/// Number and size of a set of square images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetShape {
    /// Number of images in the set.
    pub count: usize,
    /// Side of an image, pixels.
    pub size: usize,
    /// Side of a patch, pixels.
    pub patch: usize,
}

impl SetShape {
    /// The number and size of a dataset's images.
    fn of(data: &Dataset) -> Self {
        Self {
            count: data.len(),
            size: data.size(),
            // Without a grid there are no patches, and their batch is empty at any size.
            patch: data.patch().max(1),
        }
    }

    /// Bytes of one image.
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
        /// Owns the memory that the records point to.
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
    /// Reached when the batch that was here has been cut.
    free: Event,
}

impl Images {
    /// Uploads all images if they fit, else prepares to upload those of each batch.
    pub fn new(kernels: &Arc<Kernels>, data: Arc<Dataset>) -> Result<Self> {
        let room = (kernels.free_bytes()? as f64 * SHARE) as usize;
        Self::within(kernels, data, room)
    }

    /// As [`Images::new`], with a limit in bytes.
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

    /// Images of random pixels, made in device memory. `device` is where libtorch finds the memory of `kernels`; wait
    /// for libtorch's stream before another stream reads them.
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

    /// Side of an image, pixels.
    pub fn size(&self) -> usize {
        self.shape.size
    }

    /// Side of a patch, pixels.
    pub fn patch(&self) -> usize {
        self.shape.patch
    }

    /// The number of images that are always in device memory, and the number of all images.
    pub fn resident(&self) -> (usize, usize) {
        let all = self.shape.count;
        match self.store {
            ImageStore::All { .. } => (all, all),
            ImageStore::Some(_) => (0, all),
        }
    }

    /// Brings these images (indices of the dataset) to where `stream` can read them. This may overwrite the images
    /// placed the time before last: [`Images::cut`] marks when they are no longer read.
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

    /// Marks that the work on `stream` up to now has read the images placed last.
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
    // Two page-locked pieces: one is filled while the other is copied.
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
        // SAFETY: both sides have at least this many bytes. The host side and the device side are next written after
        // `free`, which is recorded behind the wait for this copy.
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
