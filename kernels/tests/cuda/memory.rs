//! Device memory, pinned memory, asynchronous copies: on the stand-in for the driver and on a GPU.

use std::sync::Arc;

use fovea_kernels::cuda::{DeviceBuffer, Event, Kernels, PinnedBuffer, Stream};

const N: usize = 10_007;

fn values(salt: u32) -> Vec<u32> {
    (0..N as u32)
        .map(|k| k.wrapping_mul(2_654_435_761) ^ salt)
        .collect()
}

pub fn buffers_hold_what_is_uploaded(kernels: &Arc<Kernels>) {
    let mut buffer = DeviceBuffer::new(kernels, &values(1)).unwrap();
    assert_eq!(buffer.bytes(), 4 * N);
    assert!(buffer.address() > 0 && buffer.address().is_multiple_of(256));
    let mut read = vec![0u32; N];
    buffer.download(&mut read).unwrap();
    assert!(read == values(1));
    buffer.upload(&values(2)).unwrap();
    buffer.download(&mut read).unwrap();
    assert!(read == values(2));

    let refused = buffer.upload(&[0u8; 3]).unwrap_err().to_string();
    assert!(
        refused.contains("40028") && refused.contains('3'),
        "{refused}"
    );
    assert!(buffer.download(&mut [0u32; N - 1]).is_err());
    buffer.download(&mut read).unwrap();
    assert!(read == values(2));

    let mut same = DeviceBuffer::uninit(kernels, 4 * N).unwrap();
    same.upload(&read).unwrap();
    let mut nothing = DeviceBuffer::new::<u64>(kernels, &[]).unwrap();
    assert_eq!((nothing.address(), nothing.bytes()), (0, 0));
    nothing.upload::<u8>(&[]).unwrap();
    nothing.download::<u8>(&mut []).unwrap();
}

pub fn pinned_buffers_are_zero_and_hold_whole_elements(kernels: &Arc<Kernels>) {
    let mut buffer = PinnedBuffer::new(kernels, 4 * N + 3).unwrap();
    assert_eq!(buffer.bytes(), 4 * N + 3);
    assert!(buffer.address() > 0 && buffer.address().is_multiple_of(4096));
    assert_eq!(buffer.address(), buffer.as_ptr() as u64);
    assert!(buffer.as_slice::<u8>().iter().all(|&byte| byte == 0));
    assert_eq!(buffer.as_slice::<u8>().len(), 4 * N + 3);
    assert_eq!(buffer.as_slice::<u64>().len(), (4 * N + 3) / 8);
    assert_eq!(buffer.as_slice::<[u8; 0]>().len(), 0);
    buffer.as_mut_slice().copy_from_slice(&values(3));
    assert!(buffer.as_slice::<u32>() == values(3));

    let mut nothing = PinnedBuffer::new(kernels, 0).unwrap();
    assert_eq!((nothing.address(), nothing.bytes()), (0, 0));
    assert!(nothing.as_slice::<u32>().is_empty() && nothing.as_mut_slice::<u32>().is_empty());
}

/// Copies host to device, on the device, fills the middle, and copies back.
pub fn copies_run_in_the_order_of_their_stream(kernels: &Arc<Kernels>) {
    let stream = Stream::new(kernels).unwrap();
    let mut host = PinnedBuffer::new(kernels, 4 * N).unwrap();
    let back = PinnedBuffer::new(kernels, 4 * N).unwrap();
    host.as_mut_slice().copy_from_slice(&values(4));
    let [first, second] = [0, 1].map(|_| DeviceBuffer::uninit(kernels, 4 * N).unwrap());
    let (on, bytes) = (stream.handle(), 4 * N);
    // SAFETY: all buffers have this many bytes and outlive the synchronize.
    unsafe {
        kernels
            .copy_to_device_async(on, first.address(), host.as_ptr(), bytes)
            .unwrap();
        kernels
            .copy_on_device_async(on, second.address(), first.address(), bytes)
            .unwrap();
        kernels
            .fill_async(on, second.address() + 40, 0xA5, 8)
            .unwrap();
        kernels
            .copy_to_host_async(on, back.as_ptr(), second.address(), bytes)
            .unwrap();
    }
    stream.synchronize().unwrap();
    let mut want = values(4);
    want[10..12].fill(0xA5A5_A5A5);
    assert!(back.as_slice::<u32>() == want);
    let mut untouched = vec![0u32; N];
    first.download(&mut untouched).unwrap();
    assert!(untouched == values(4));
}

/// The driver copies pageable memory before the call returns: afterwards the program may change or read it.
pub fn pageable_memory_can_be_copied_as_well(kernels: &Arc<Kernels>) {
    let stream = Stream::new(kernels).unwrap();
    let device = DeviceBuffer::uninit(kernels, 4 * N).unwrap();
    let mut host = values(5);
    let mut back = vec![0u32; N];
    // SAFETY: all buffers have this many bytes; the copies are done when the second call returns.
    unsafe {
        kernels
            .copy_to_device_async(
                stream.handle(),
                device.address(),
                host.as_ptr().cast(),
                4 * N,
            )
            .unwrap();
        host.fill(0);
        kernels
            .copy_to_host_async(
                stream.handle(),
                back.as_mut_ptr().cast(),
                device.address(),
                4 * N,
            )
            .unwrap();
    }
    assert!(back == values(5));
}

pub fn copies_of_nothing_do_nothing(kernels: &Arc<Kernels>) {
    let null = std::ptr::null_mut();
    // SAFETY: no bytes are read or written.
    unsafe {
        kernels.copy_to_device_async(0, 0, null, 0).unwrap();
        kernels.copy_to_host_async(0, null, 0, 0).unwrap();
        kernels.copy_on_device_async(0, 0, 0, 0).unwrap();
        kernels.fill_async(0, 0, 1, 0).unwrap();
    }
}

pub fn more_memory_than_there_is_is_refused(kernels: &Arc<Kernels>) {
    let error = DeviceBuffer::uninit(kernels, 1 << 50)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("CUDA: cuMemAlloc failed with 2 (CUDA_ERROR_OUT_OF_MEMORY"),
        "{error}"
    );
    assert!(error.contains("\n  help: use a smaller batch"), "{error}");
    let error = PinnedBuffer::new(kernels, 1 << 50).unwrap_err().to_string();
    assert!(
        error.starts_with("CUDA: cuMemHostAlloc failed with 2"),
        "{error}"
    );
    assert!(
        error.contains("\n  help: the host has not that much memory"),
        "{error}"
    );
    // The device still works.
    DeviceBuffer::new(kernels, &[1u8]).unwrap();
}

pub fn what_is_made_outlives_the_callers_kernels(kernels: &Arc<Kernels>) {
    let others = Arc::clone(kernels);
    let made = (
        DeviceBuffer::new(&others, &[7u32]).unwrap(),
        PinnedBuffer::new(&others, 8).unwrap(),
        Stream::new(&others).unwrap(),
        Event::new(&others).unwrap(),
    );
    drop(others);
    let elsewhere = std::thread::spawn(move || {
        let mut read = [0u32];
        made.0.download(&mut read).unwrap();
        made.2.synchronize().unwrap();
        read
    });
    assert_eq!(elsewhere.join().unwrap(), [7]);
}

pub fn facts_about_the_device(kernels: &Arc<Kernels>) {
    use fovea_kernels::cuda::{Arch, Device};

    let device = kernels.device();
    assert_eq!(device, &Device::open(device.ordinal).unwrap());
    assert!(device.ordinal < Device::count().unwrap());
    assert!(!device.name.is_empty() && device.multiprocessors > 0);
    assert!(device.arch >= Arch(75));
    let (major, minor) = (device.driver / 1000, device.driver % 1000 / 10);
    assert_eq!(device.driver_version(), format!("{major}.{minor}"));
    assert!(major >= 12, "{device:?}");
    let free = kernels.free_bytes().unwrap();
    assert!(
        free > 0 && free <= device.total_bytes,
        "{free} of {device:?}"
    );

    for beyond in [Device::count().unwrap(), u32::MAX] {
        let error = Device::open(beyond).unwrap_err().to_string();
        assert!(error.contains("CUDA_ERROR_INVALID_DEVICE"), "{error}");
        assert!(error.contains("\n  help: nvidia-smi -L"), "{error}");
    }
}
