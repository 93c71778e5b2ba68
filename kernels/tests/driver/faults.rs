//! Faults that the stand-in finds: each test breaks one rule.

use cudarc::driver::sys::{self, CUresult};
use fovea_emulate::driver;
use fovea_kernels::cuda::{DeviceBuffer, Error, Graph, PinnedBuffer, Stream, ToBf16};

use crate::Turn;

/// Returns the finding, and checks that it is reported once.
fn found() -> String {
    let found = driver::check().unwrap_err();
    driver::check().unwrap();
    found
}

#[test]
fn writes_around_a_buffer_are_found() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let source = DeviceBuffer::new(&kernels, &[1.5f32; 64]).unwrap();
    let target = DeviceBuffer::uninit(&kernels, 2 * 60).unwrap();
    let cast = |dst, n| ToBf16 {
        src: source.address(),
        dst,
        n,
    };
    // SAFETY: writes outside of the buffer land in the stand-in's guard zones.
    unsafe {
        // 7 elements are too few for wide writes, which the emulator would stop.
        kernels.run(0, &cast(target.address() + 2 * 56, 7)).unwrap();
        kernels.run(0, &cast(target.address() - 2, 1)).unwrap();
    }
    let text = found();
    assert!(
        text.contains("6 bytes were written after device buffer"),
        "{text}"
    );
    assert!(
        text.contains("of 120 bytes, the first at byte 120"),
        "{text}"
    );
    assert!(
        text.contains("2 bytes were written before device buffer"),
        "{text}"
    );
    assert!(text.contains("the first at byte -2"), "{text}");

    // SAFETY: as above.
    unsafe { kernels.run(0, &cast(target.address() + 2 * 60, 1)).unwrap() };
    drop(target);
    let text = found();
    assert!(text.contains("2 bytes were written after"), "{text}");
}

#[test]
fn writes_to_freed_memory_are_found() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let stream = Stream::new(&kernels).unwrap();
    let source = DeviceBuffer::new(&kernels, &[1.5f32; 4]).unwrap();
    let [first, second] = [0, 1].map(|_| DeviceBuffer::uninit(&kernels, 16).unwrap());
    let capture = |target: &DeviceBuffer, by_kernel: bool| {
        let (on, target) = (stream.handle(), target.address());
        let src = source.address();
        // SAFETY: the stand-in keeps freed blocks for a while.
        let captured = unsafe {
            Graph::capture(&kernels, on, || match by_kernel {
                true => kernels.run(
                    on,
                    &ToBf16 {
                        src,
                        dst: target,
                        n: 4,
                    },
                ),
                false => kernels.copy_on_device_async(on, target, src, 16),
            })
        };
        captured.unwrap().0
    };
    let [kernel, copy] = [capture(&first, true), capture(&second, false)];
    drop((first, second));
    // SAFETY: as above.
    unsafe { kernel.launch(stream.handle()).unwrap() };
    let text = found();
    assert!(
        text.contains("8 bytes were written into the freed device buffer"),
        "{text}"
    );
    // SAFETY: as above.
    let error = unsafe { copy.launch(stream.handle()) }.unwrap_err();
    assert!(error.to_string().contains("which was freed"), "{error}");
    assert!(found().contains("a copy of 16 bytes from byte 0 of device buffer"));
}

#[test]
fn copies_beyond_a_buffer_are_refused() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let buffer = DeviceBuffer::new(&kernels, &[1u8; 100]).unwrap();
    let pinned = PinnedBuffer::new(&kernels, 100).unwrap();
    let (device, host) = (buffer.address(), pinned.as_ptr());
    let refused = |result: fovea_kernels::cuda::Result<()>, words: &str| {
        assert!(
            matches!(result, Err(Error::Driver { code: 1, .. })),
            "{result:?}"
        );
        let text = found();
        assert!(text.contains(words), "{text}");
    };
    // SAFETY: the stand-in refuses all of them.
    unsafe {
        refused(
            kernels.copy_to_device_async(0, device + 1, host, 100),
            "cuMemcpyHtoDAsync of 100 bytes from byte 1 of device buffer",
        );
        refused(
            kernels.copy_to_host_async(0, host, device - 1, 10),
            "from byte -1 of device buffer",
        );
        refused(
            kernels.copy_to_device_async(0, device, host.wrapping_add(60), 60),
            "from byte 60 of pinned buffer",
        );
        refused(
            kernels.fill_async(0, device + 100, 0, 1),
            "from byte 100 of device buffer",
        );
        refused(
            kernels.fill_async(0, 0, 0, 1),
            "cuMemsetD8Async of address 0",
        );
        refused(
            kernels.copy_on_device_async(0, device, device + 8, 16),
            "16 bytes onto themselves",
        );
    }
    let mut read = [0u8; 100];
    buffer.download(&mut read).unwrap();
    assert_eq!(read, [1; 100]);
}

#[test]
fn a_faulty_kernel_fails_this_call_and_all_others() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let stream = Stream::new(&kernels).unwrap();
    let source = DeviceBuffer::new(&kernels, &[1.5f32; 64]).unwrap();
    let target = DeviceBuffer::uninit(&kernels, 2 * 56).unwrap();
    let cast = ToBf16 {
        src: source.address(),
        dst: target.address(),
        n: 64,
    };
    for lazy in [false, true] {
        driver::set_lazy(lazy);
        // SAFETY: the emulator stops wide accesses beyond a buffer.
        let launched = unsafe { kernels.run(stream.handle(), &cast) };
        assert_eq!(launched.is_ok(), lazy, "{launched:?}");
        let error = stream.synchronize().unwrap_err().to_string();
        assert!(
            error.contains("CUDA_ERROR_LAUNCH_FAILED: fovea_to_bf16, block"),
            "{error}"
        );
        assert!(error.contains("outside of all buffers"), "{error}");
        assert!(source.download(&mut [0f32; 64]).is_err());
        assert!(DeviceBuffer::uninit(&kernels, 1).is_err());
        assert!(found().starts_with("fovea_to_bf16, block"));
        source.download(&mut [0f32; 64]).unwrap();
    }
}

#[test]
fn frees_of_what_is_not_there_are_found() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let buffer = DeviceBuffer::new(&kernels, &[1u8; 16]).unwrap();
    let pinned = PinnedBuffer::new(&kernels, 16).unwrap();
    let (device, host) = (buffer.address(), pinned.as_ptr());
    drop(buffer);
    in_context(|| {
        // SAFETY: the stand-in looks up the addresses that it frees.
        unsafe {
            let refused = CUresult::CUDA_ERROR_INVALID_VALUE;
            assert_eq!(sys::cuMemFree_v2(device), refused);
            assert!(found().contains("which is no such allocation any more"));
            assert_eq!(sys::cuMemFree_v2(host as u64), refused);
            assert_eq!(sys::cuMemFreeHost(host.wrapping_add(1).cast()), refused);
            let text = found();
            assert!(text.starts_with("cuMemFree of 0x"), "{text}");
            assert!(text.contains("\ncuMemFreeHost of 0x"), "{text}");
        }
    });
}

/// Our wrappers make the context current; direct calls can forget it.
#[test]
fn calls_without_a_context_are_refused() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let allocate = || {
        let mut address = 0;
        // SAFETY: writes one address.
        let code = unsafe { sys::cuMemAlloc_v2(&mut address, 16) };
        (code, address)
    };
    let refused = (CUresult::CUDA_ERROR_INVALID_CONTEXT, 0);
    assert_eq!(allocate(), refused);
    DeviceBuffer::uninit(&kernels, 16).unwrap();
    assert_eq!(allocate(), refused, "still");
    in_context(|| {
        let (code, address) = allocate();
        assert_eq!(code, CUresult::CUDA_SUCCESS);
        // SAFETY: allocated just now.
        unsafe {
            assert_eq!(sys::cuMemFree_v2(address), CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuCtxSynchronize(), CUresult::CUDA_SUCCESS);
        }
    });
    // A pointer that is no context.
    // SAFETY: the stand-in looks up the handle that it gets.
    let pushed = unsafe { sys::cuCtxPushCurrent_v2(std::ptr::dangling_mut()) };
    assert_eq!(pushed, CUresult::CUDA_ERROR_INVALID_CONTEXT);
}

/// Runs `test` with the context of GPU 0 current, by the driver's own functions.
fn in_context(test: impl FnOnce()) {
    let mut context = std::ptr::null_mut();
    // SAFETY: retained and released once, pushed and popped in this thread.
    unsafe {
        assert_eq!(
            sys::cuDevicePrimaryCtxRetain(&mut context, 0),
            CUresult::CUDA_SUCCESS
        );
        assert_eq!(sys::cuCtxPushCurrent_v2(context), CUresult::CUDA_SUCCESS);
        test();
        assert_eq!(
            sys::cuCtxPopCurrent_v2(&mut context),
            CUresult::CUDA_SUCCESS
        );
        assert_eq!(sys::cuDevicePrimaryCtxRelease_v2(0), CUresult::CUDA_SUCCESS);
    }
}
