//! Other machines: no GPU, several, little memory, a driver that ends before the program.

use fovea_emulate::driver;
use fovea_kernels::cuda::{Device, DeviceBuffer, Error, Event, Graph, PinnedBuffer, Stream};

use crate::{Turn, load};

#[test]
fn both_names_of_the_driver_lead_to_the_stand_in() {
    let _turn = Turn::take();
    driver::load().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        // SAFETY: loaded already, so nothing runs; the symbol is only looked up.
        let there = unsafe {
            let library = libloading::Library::new(name).unwrap();
            library.get::<*const ()>(b"fovea_driver_check\0").is_ok()
        };
        assert!(there, "{name}");
    }
}

#[test]
fn the_emulated_gpu() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let device = kernels.device();
    assert_eq!(device.name, "Emulated GPU");
    assert_eq!(device.arch.to_string(), "sm_90");
    assert_eq!((device.ordinal, device.total_bytes), (0, 8 << 30));
    assert_eq!(
        (device.multiprocessors, device.driver_version()),
        (2, "13.0".into())
    );
}

#[test]
fn a_machine_without_gpus() {
    let _turn = Turn::take();
    driver::set_devices(0);
    let errors = [
        Device::count().unwrap_err(),
        Device::open(0).unwrap_err(),
        load(0).unwrap_err(),
    ];
    driver::set_devices(1);
    for error in errors.map(|error| error.to_string()) {
        assert!(
            error.starts_with("CUDA: cuInit failed with 100 (CUDA_ERROR_NO_DEVICE"),
            "{error}"
        );
        assert!(error.contains("\n  help: nvidia-smi -L"), "{error}");
    }
    assert_eq!(Device::count(), Ok(1));
}

#[test]
fn each_gpu_has_its_own_memory() {
    let turn = Turn::take();
    driver::set_devices(3);
    assert_eq!(Device::count(), Ok(3));
    let first = turn.kernels();
    let third = load(2).unwrap();
    assert_eq!(third.device().ordinal, 2);
    let free = [&first, &third].map(|kernels| kernels.free_bytes().unwrap());
    let buffer = DeviceBuffer::new(&third, &[6u8; 1 << 20]).unwrap();
    assert_eq!(first.free_bytes(), Ok(free[0]));
    assert_eq!(third.free_bytes(), Ok(free[1] - (1 << 20)));

    // A stream of one GPU may wait for an event of another, but not carry its work.
    let streams = [Stream::new(&first).unwrap(), Stream::new(&third).unwrap()];
    let event = Event::new(&third).unwrap();
    driver::set_lazy(true);
    let host = PinnedBuffer::new(&third, 1 << 20).unwrap();
    // SAFETY: live streams and buffers of this length that outlive the synchronize.
    unsafe {
        third
            .copy_to_host_async(
                streams[1].handle(),
                host.as_ptr(),
                buffer.address(),
                1 << 20,
            )
            .unwrap();
        event.record(streams[1].handle()).unwrap();
        streams[0].wait(&event).unwrap();
        let foreign = third.fill_async(streams[0].handle(), buffer.address(), 0, 1);
        assert!(
            foreign
                .unwrap_err()
                .to_string()
                .contains("CUDA_ERROR_INVALID_HANDLE")
        );
    }
    streams[0].synchronize().unwrap();
    assert_eq!(host.as_slice::<u8>()[12345], 6);

    drop((buffer, host, streams, event));
    assert_eq!(third.free_bytes(), Ok(free[1]));
    drop(third);
    driver::set_devices(1);
}

#[test]
fn a_small_gpu() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let used = kernels.device().total_bytes - kernels.free_bytes().unwrap();
    driver::set_memory(used + 1000);
    let some = DeviceBuffer::uninit(&kernels, 600);
    let too_much = DeviceBuffer::uninit(&kernels, 401);
    let rest = DeviceBuffer::uninit(&kernels, 400);
    let free = kernels.free_bytes();
    // The host's memory is not the device's.
    let pinned = PinnedBuffer::new(&kernels, 4096);
    driver::set_memory(8 << 30);
    assert!(some.is_ok() && rest.is_ok() && pinned.is_ok());
    assert_eq!(free, Ok(0));
    let error = too_much.unwrap_err().to_string();
    assert!(
        error.contains("OUT_OF_MEMORY") && error.contains("smaller batch"),
        "{error}"
    );
}

#[test]
fn new_and_freed_memory_is_nan() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let mut read = [0.0f32; 100];
    DeviceBuffer::uninit(&kernels, 400)
        .unwrap()
        .download(&mut read)
        .unwrap();
    assert!(read.iter().all(|x| x.is_nan()));
}

#[test]
fn what_is_dropped_is_gone() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let before = driver::alive();
    let stream = Stream::with_high_priority(&kernels).unwrap();
    // SAFETY: a live stream; nothing is captured.
    let graph = unsafe { Graph::capture(&kernels, stream.handle(), || Ok::<_, Error>(())) };
    let all = (
        DeviceBuffer::new(&kernels, &[1u8; 10]).unwrap(),
        PinnedBuffer::new(&kernels, 10).unwrap(),
        Event::new(&kernels).unwrap(),
        graph.unwrap(),
        stream,
    );
    assert_eq!(
        driver::alive(),
        before + 5,
        "of the graph only what can be launched"
    );
    let again = load(0).unwrap();
    let modules = fovea_kernels::cuda::source::sources().count();
    assert_eq!(driver::alive(), before + 5 + modules);
    drop((all, again));
    assert_eq!(driver::alive(), before);
}

#[test]
fn nothing_panics_when_the_driver_is_gone() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let stream = Stream::new(&kernels).unwrap();
    // SAFETY: a live stream; nothing is captured.
    let graph = unsafe { Graph::capture(&kernels, stream.handle(), || Ok::<_, Error>(())) };
    let (graph, ()) = graph.unwrap();
    let all = (
        DeviceBuffer::new(&kernels, &[1u8; 10]).unwrap(),
        PinnedBuffer::new(&kernels, 10).unwrap(),
        Event::new(&kernels).unwrap(),
        load(0).unwrap(),
    );
    driver::set_gone(true);
    let refused = (stream.synchronize(), all.2.is_done(), Device::count());
    drop((graph, stream, all));
    driver::set_gone(false);
    for error in [
        refused.0.unwrap_err(),
        refused.1.unwrap_err(),
        refused.2.unwrap_err(),
    ] {
        assert!(
            error.to_string().contains("CUDA_ERROR_DEINITIALIZED"),
            "{error}"
        );
    }
    // The next start in the same process finds everything as before.
    DeviceBuffer::new(&kernels, &[1u8; 10]).unwrap();
}
