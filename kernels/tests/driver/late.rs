//! Lazy mode: a missing wait shows, where eager mode gives the right result by luck.

use std::sync::Arc;

use fovea_emulate::driver;
use fovea_kernels::cuda::{DeviceBuffer, Event, Kernels, PinnedBuffer, Stream};

use crate::Turn;

const BYTES: usize = 1000;

/// The byte that a second stream copies out after the first was told to write 7s over 1s. With `waits`, the second
/// waits for the first.
fn copied_out(kernels: &Arc<Kernels>, waits: bool) -> u8 {
    let [writer, reader] = [0, 1].map(|_| Stream::new(kernels).unwrap());
    let buffer = DeviceBuffer::new(kernels, &[1u8; BYTES]).unwrap();
    let host = PinnedBuffer::new(kernels, BYTES).unwrap();
    let written = Event::new(kernels).unwrap();
    // SAFETY: live streams; buffers of this length that outlive the synchronize; the driver is the stand-in, which runs
    // one item after the other.
    unsafe {
        kernels
            .fill_async(writer.handle(), buffer.address(), 7, BYTES)
            .unwrap();
        written.record(writer.handle()).unwrap();
        if waits {
            reader.wait(&written).unwrap();
        }
        kernels
            .copy_to_host_async(reader.handle(), host.as_ptr(), buffer.address(), BYTES)
            .unwrap();
    }
    reader.synchronize().unwrap();
    host.as_slice::<u8>()[BYTES - 1]
}

#[test]
fn a_stream_that_does_not_wait_for_another() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    assert_eq!(copied_out(&kernels, false), 7, "in eager mode");
    driver::set_lazy(true);
    assert_eq!(copied_out(&kernels, true), 7);
    assert_eq!(copied_out(&kernels, false), 1);
}

#[test]
fn a_host_that_does_not_wait() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let stream = Stream::new(&kernels).unwrap();
    let buffer = DeviceBuffer::new(&kernels, &[1u8; BYTES]).unwrap();
    let mut host = PinnedBuffer::new(&kernels, BYTES).unwrap();
    host.as_mut_slice::<u8>().fill(2);
    driver::set_lazy(true);
    let on = stream.handle();
    // SAFETY: live streams and buffers of this length that outlive the synchronize; as in `copied_out`.
    unsafe {
        kernels
            .copy_to_device_async(on, buffer.address(), host.as_ptr(), BYTES)
            .unwrap();
    }
    // Too early: the copy has not read it yet.
    host.as_mut_slice::<u8>().fill(3);
    // SAFETY: as above.
    unsafe {
        kernels
            .copy_to_host_async(on, host.as_ptr(), buffer.address(), BYTES / 2)
            .unwrap();
    }
    host.as_mut_slice::<u8>()[0] = 4;
    let mut read = [0u8; BYTES];
    // Waits for the default stream only.
    buffer.download(&mut read).unwrap();
    assert_eq!(read, [1; BYTES]);
    assert_eq!(host.as_slice::<u8>()[0], 4, "the copy is not done yet");
    stream.synchronize().unwrap();
    buffer.download(&mut read).unwrap();
    assert_eq!((read[0], read[BYTES - 1]), (4, 3));
}

#[test]
fn events_are_reached_one_step_per_question() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let [first, second] = [0, 1].map(|_| Stream::new(&kernels).unwrap());
    let buffer = DeviceBuffer::uninit(&kernels, BYTES).unwrap();
    let [halfway, end] = [0, 1].map(|_| Event::new(&kernels).unwrap());
    driver::set_lazy(true);
    // SAFETY: live streams; a buffer of this length that outlives the last question.
    unsafe {
        for value in [1, 2] {
            kernels
                .fill_async(first.handle(), buffer.address(), value, BYTES)
                .unwrap();
        }
        halfway.record(first.handle()).unwrap();
        kernels
            .fill_async(first.handle(), buffer.address(), 3, BYTES)
            .unwrap();
        second.wait(&halfway).unwrap();
        end.record(second.handle()).unwrap();
    }
    let answers: Vec<bool> = (0..4).map(|_| halfway.is_done().unwrap()).collect();
    assert_eq!(answers, [false, false, false, true]);
    // A wait for a reached event is a step as well.
    let answers: Vec<bool> = (0..3).map(|_| end.is_done().unwrap()).collect();
    assert_eq!(answers, [false, false, true]);
    let mut read = [0u8; BYTES];
    buffer.download(&mut read).unwrap();
    assert_eq!(read, [2; BYTES], "the last fill is done by nobody's wait");
}

#[test]
fn memory_is_freed_after_what_uses_it() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let stream = Stream::new(&kernels).unwrap();
    let host = PinnedBuffer::new(&kernels, BYTES).unwrap();
    driver::set_lazy(true);
    let buffer = DeviceBuffer::new(&kernels, &[5u8; BYTES]).unwrap();
    // SAFETY: a live stream and buffers of this length, the first of which waits when it is dropped.
    unsafe {
        kernels
            .copy_to_host_async(stream.handle(), host.as_ptr(), buffer.address(), BYTES)
            .unwrap();
    }
    drop(buffer);
    assert_eq!(host.as_slice::<u8>(), [5; BYTES]);
}
