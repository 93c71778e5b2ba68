//! Streams and events: on the stand-in for the driver and on a GPU.

use std::sync::Arc;

use fovea_kernels::cuda::{DeviceBuffer, Error, Event, Kernels, PinnedBuffer, Stream, wait_event};

const BYTES: usize = 8 << 20;

/// One stream writes, a second copies on, a third copies out; only events keep them in order.
fn through_three_streams(kernels: &Arc<Kernels>, streams: [usize; 3], value: u8) {
    let [first, second] = [0, 1].map(|_| DeviceBuffer::uninit(kernels, BYTES).unwrap());
    let host = PinnedBuffer::new(kernels, BYTES).unwrap();
    let [written, taken, copied] = [0, 1, 2].map(|_| Event::new(kernels).unwrap());
    let [a, b, c] = streams;
    // SAFETY: live streams, and buffers of this length that outlive the last event.
    unsafe {
        kernels
            .fill_async(a, first.address(), value, BYTES)
            .unwrap();
        written.record(a).unwrap();
        wait_event(b, &written).unwrap();
        kernels
            .copy_on_device_async(b, second.address(), first.address(), BYTES)
            .unwrap();
        taken.record(b).unwrap();
        wait_event(c, &taken).unwrap();
        kernels
            .copy_to_host_async(c, host.as_ptr(), second.address(), BYTES)
            .unwrap();
        copied.record(c).unwrap();
    }
    copied.synchronize().unwrap();
    assert!(host.as_slice::<u8>().iter().all(|&byte| byte == value));
    assert!(
        [&written, &taken, &copied]
            .iter()
            .all(|event| event.is_done().unwrap())
    );
}

pub fn streams_wait_for_each_others_events(kernels: &Arc<Kernels>) {
    let streams = [
        Stream::new(kernels).unwrap(),
        Stream::with_high_priority(kernels).unwrap(),
        Stream::new(kernels).unwrap(),
    ];
    let [a, b, c] = [0, 1, 2].map(|k| streams[k].handle());
    assert!(a != 0 && a != b && b != c && a != c);
    through_three_streams(kernels, [a, b, c], 0x11);
    // The default stream among them.
    through_three_streams(kernels, [a, 0, c], 0x22);
    through_three_streams(kernels, [0, a, 0], 0x33);
}

pub fn an_event_stands_for_its_last_recording(kernels: &Arc<Kernels>) {
    let stream = Stream::new(kernels).unwrap();
    let buffer = DeviceBuffer::uninit(kernels, BYTES).unwrap();
    let event = Event::new(kernels).unwrap();
    // Never recorded: it counts as reached, and waiting for it returns at once.
    assert!(event.is_done().unwrap());
    event.synchronize().unwrap();
    stream.wait(&event).unwrap();
    for value in [1, 2] {
        // SAFETY: a buffer of this length, which outlives the synchronize; a live stream.
        unsafe {
            kernels
                .fill_async(stream.handle(), buffer.address(), value, BYTES)
                .unwrap();
            event.record(stream.handle()).unwrap();
        }
        while !event.is_done().unwrap() {
            std::hint::spin_loop();
        }
        let mut read = vec![0u8; BYTES];
        buffer.download(&mut read).unwrap();
        assert!(read.iter().all(|&byte| byte == value));
    }
}

pub fn timed_events_measure_what_lies_between(kernels: &Arc<Kernels>) {
    let stream = Stream::new(kernels).unwrap();
    let buffer = DeviceBuffer::uninit(kernels, BYTES).unwrap();
    let [start, end] = [0, 1].map(|_| Event::timed(kernels).unwrap());
    let untimed = Event::new(kernels).unwrap();
    // SAFETY: a buffer of this length, which outlives the synchronize; a live stream.
    unsafe {
        start.record(stream.handle()).unwrap();
        for value in 0..20 {
            kernels
                .fill_async(stream.handle(), buffer.address(), value, BYTES)
                .unwrap();
        }
        end.record(stream.handle()).unwrap();
        untimed.record(stream.handle()).unwrap();
    }
    stream.synchronize().unwrap();
    let ms = end.ms_since(&start).unwrap();
    assert!(ms > 0.0 && ms < 10_000.0, "{ms} ms");

    for refused in [end.ms_since(&untimed), untimed.ms_since(&start)] {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("make both by Event::timed"), "{text}");
    }
    let never = Event::timed(kernels).unwrap();
    let error = never.ms_since(&start).unwrap_err();
    assert!(matches!(error, Error::Driver { code: 400, .. }), "{error}");
}

/// The work on a stream that is dropped is still done.
pub fn a_dropped_stream_finishes(kernels: &Arc<Kernels>) {
    let stream = Stream::new(kernels).unwrap();
    let buffer = DeviceBuffer::uninit(kernels, BYTES).unwrap();
    let event = Event::new(kernels).unwrap();
    // SAFETY: a buffer of this length, which outlives the synchronize; a live stream.
    unsafe {
        kernels
            .fill_async(stream.handle(), buffer.address(), 0x44, BYTES)
            .unwrap();
        event.record(stream.handle()).unwrap();
    }
    drop(stream);
    event.synchronize().unwrap();
    let mut read = vec![0u8; BYTES];
    buffer.download(&mut read).unwrap();
    assert!(read.iter().all(|&byte| byte == 0x44));
}
