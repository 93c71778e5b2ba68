//! Kernels that are compiled, loaded and launched as on a GPU, against their twins.

use fovea_kernels::cuda::nvrtc::Search;
use fovea_kernels::cuda::{Kernels, ToBf16};
use fovea_kernels::flat::to_bf16;
use half::bf16;

use crate::Turn;
use crate::runner::Device;

/// The bodies of the other binary: casts, sums, Adam, the loss.
macro_rules! through_the_driver {
    ($($module:ident :: $body:ident),* $(,)?) => {
        $(
            #[test]
            fn $body() {
                let turn = Turn::take();
                crate::$module::$body(&Device(turn.kernels()));
            }
        )*
    };
}

through_the_driver! {
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

#[test]
fn kernels_come_from_the_cache_the_second_time() {
    let _turn = Turn::take();
    let cache = tempfile::tempdir().unwrap();
    let entries = || {
        let entries = std::fs::read_dir(cache.path()).unwrap();
        let mut entries: Vec<_> = entries
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name(),
                    entry.metadata().unwrap().modified().unwrap(),
                )
            })
            .collect();
        entries.sort();
        entries
    };
    let load = || drop(Kernels::load(0, &Search::from_env(), Some(cache.path())).unwrap());
    load();
    let stored = entries();
    assert_eq!(stored.len(), fovea_kernels::cuda::source::sources().count());
    let names: Vec<_> = stored
        .iter()
        .map(|(name, _)| name.to_string_lossy())
        .collect();
    assert!(
        names.iter().all(|name| name.contains("-sm_90-")),
        "{names:?}"
    );
    load();
    assert_eq!(entries(), stored, "they were read, not written");
}

/// Memory that the driver does not know passes for device memory, like a tensor of libtorch's on the CPU.
#[test]
fn kernels_run_on_memory_of_others() {
    let turn = Turn::take();
    let kernels = turn.kernels();
    let source: Vec<u128> = (0..1000u128).collect();
    let source: &[f32] = bytemuck::cast_slice(&source);
    let mut target = vec![0u128; 500];
    let cast = ToBf16 {
        src: source.as_ptr() as u64,
        dst: target.as_mut_ptr() as u64,
        n: source.len(),
    };
    // SAFETY: on the stand-in, host memory will do; it has these lengths.
    unsafe { kernels.run(0, &cast).unwrap() };
    let mut want = vec![bf16::ZERO; source.len()];
    to_bf16(source, &mut want).unwrap();
    assert!(bytemuck::cast_slice::<_, bf16>(&target) == want);
}
