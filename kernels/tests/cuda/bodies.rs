//! Tests shared by two binaries: this one on a GPU, tests/driver on the stand-in for the driver.

/// Hands their bodies to the macro `$tests`.
macro_rules! device_bodies {
    ($tests:ident) => {
        $tests! {
            memory::buffers_hold_what_is_uploaded,
            memory::pinned_buffers_are_zero_and_hold_whole_elements,
            memory::copies_run_in_the_order_of_their_stream,
            memory::pageable_memory_can_be_copied_as_well,
            memory::copies_of_nothing_do_nothing,
            memory::more_memory_than_there_is_is_refused,
            memory::what_is_made_outlives_the_callers_kernels,
            memory::facts_about_the_device,
            stream::streams_wait_for_each_others_events,
            stream::an_event_stands_for_its_last_recording,
            stream::timed_events_measure_what_lies_between,
            stream::a_dropped_stream_finishes,
            graph::a_captured_step_reads_its_scalars_anew,
            graph::a_replayed_chain_does_what_a_plain_run_does,
            graph::a_capture_ends_when_its_work_fails,
            graph::waiting_for_a_stream_spoils_its_capture,
            graph::streams_that_cannot_be_captured_are_refused,
        }
    };
}
