//! The CUDA kernels against their CPU twins: one body per kernel, which every `cargo test` runs on the emulator, and
//! which runs on a GPU on request:
//! `cargo test --release -p fovea-kernels --test cuda -- --ignored`.

#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test; what a test cannot go on without"
)]

mod confusion;
mod crop;
mod flat;
mod graph;
mod guarded;
mod losses;
mod memory;
mod refusals;
mod resize;
mod runner;
mod sources;
mod stream;
mod view;

#[macro_use]
mod bodies;

/// Makes each body one test on the emulator and one on the device.
macro_rules! on_both {
    ($($module:ident :: $body:ident),* $(,)?) => {
        mod emulated {
            $(
                #[test]
                fn $body() {
                    super::$module::$body(&super::runner::Emulator::default());
                }
            )*
        }
        mod device {
            $(
                #[test]
                #[ignore = "needs a GPU: cargo test --release -p fovea-kernels --test cuda -- --ignored"]
                fn $body() {
                    super::$module::$body(&super::runner::Device::open());
                }
            )*
        }
    };
}

on_both! {
    crop::any_crop_has_the_bits_of_the_twin,
    crop::large_crops_have_the_bits_of_the_twin,
    crop::specs_that_do_not_fit_give_nan_and_touch_nothing,
    resize::any_resize_has_the_bits_of_the_twin,
    resize::wide_images_and_wide_results,
    resize::images_of_another_size_give_nan,
    view::any_view_has_the_bits_of_the_twin,
    view::large_views_have_the_bits_of_the_twin,
    view::indices_beyond_the_images_give_nan,
    losses::losses_and_gradients_are_those_of_the_twin,
    losses::large_batches,
    losses::single_terms_are_accurate,
    losses::nan_and_infinity_come_through,
    losses::nan_and_infinity_stay_in_the_row_of_a_softmax,
    losses::a_softmax_has_the_bits_of_the_twin,
    losses::unlabelled_rows_count_for_nothing,
    losses::bits_are_the_same_in_every_run,
    confusion::counts_have_the_bits_of_the_twin,
    flat::casts_have_the_bits_of_the_twin,
    flat::casts_of_every_kind_of_number,
    flat::sums_are_those_of_the_twin,
    flat::adam_has_the_bits_of_the_twin,
}

/// Tests that need a device and no twin: here on a GPU, in tests/driver on the stand-in for its driver.
macro_rules! on_gpu {
    ($($module:ident :: $body:ident),* $(,)?) => {
        mod gpu {
            $(
                #[test]
                #[ignore = "needs a GPU: cargo test --release -p fovea-kernels --test cuda -- --ignored"]
                fn $body() {
                    super::$module::$body(&super::runner::Device::open().0);
                }
            )*
        }
    };
}

device_bodies!(on_gpu);
